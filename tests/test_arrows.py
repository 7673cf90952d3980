"""Arrows go one way: a room imports from the rooms below it, and no module imports itself by a detour."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = [  # the lowest first; rooms of one floor do not know each other
    {"module_names", "distributed", "files", "checks", "plots"},  # plots: of numbers, without a measure
    {"taps"},
    {"outline"},  # what runs, by the hooks of taps
    {"nets"},
    {"gates"},  # network_split.py in components looks at gates to find where a layer ends
    {"components", "discarding", "knowledge"},
    {"interventions"},  # changes networks and images, and looks at them again
    {"figures", "runs"},
    {"metrics"},  # their plot()
    {"loggers", "report"},
    {"datamodules"},
    {"callbacks"},
    {"lightning_modules"},
    {"analysis"},
    {"studies"},
    {"cli"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
PLAIN = set().union(*FLOORS[:7]) - {"runs"}  # what knows neither Lightning nor W&B


def modules():
    """{dotted name: file} of all source files; the links in netprism/ are followed."""
    found = {}
    for folder in (ROOT / "netprism", *(ROOT / name for name in ("callbacks", "datamodules", "lightning_modules"))):
        prefix = () if folder.name == "netprism" else ("netprism",)
        for file in folder.rglob("*.py"):
            parts = [*prefix, *file.relative_to(ROOT).with_suffix("").parts]
            if any((ROOT / Path(*parts[:depth])).is_symlink() for depth in range(1, len(parts))) and not prefix:
                continue
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = modules()


def imports(file):
    """Every module that a file imports, also within a function; not what only a type checker sees."""
    tree = ast.parse(file.read_text())
    skipped = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", None) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


ARROWS = {module: {name for name in imports(file) if name in MODULES} for module, file in MODULES.items()}


def room(module):
    return module.split(".")[1] if "." in module else module


def test_all_rooms_have_a_floor():
    assert {room(module) for module in MODULES} - {"netprism", "__main__"} <= set(FLOOR)


@pytest.mark.parametrize("module", sorted(module for module in MODULES if room(module) in FLOOR))
def test_a_module_imports_from_its_own_room_and_from_lower_floors(module):
    for other in ARROWS[module]:
        if room(other) in FLOOR and room(other) != room(module):
            assert FLOOR[room(other)] < FLOOR[room(module)], f"{module} imports {other}"


def test_no_module_imports_itself_by_a_detour():
    done, path = set(), []

    def walk(module):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            path.append(module)
            for other in sorted(ARROWS[module]):
                walk(other)
            done.add(path.pop())

    for module in sorted(ARROWS):
        walk(module)


@pytest.mark.parametrize("module", sorted(module for module in MODULES if room(module) in PLAIN))
def test_the_mathematics_knows_neither_lightning_nor_wandb(module):
    tops = {name.split(".")[0] for name in imports(MODULES[module])}
    assert not tops & {"pytorch_lightning", "lightning", "wandb"}


@pytest.mark.parametrize("path", sorted((ROOT / "callbacks").glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_a_callback_is_glue(path):
    assert len(path.read_text().splitlines()) < 150

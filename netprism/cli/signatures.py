"""Arguments of classes, read out of their source: no import, so that help and typos are answered without torch."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHORT = ("lightning_modules", "datamodules", "callbacks", "nets", "loggers")  # rooms whose classes have short names
# Classes that take no arguments of their own, and end the search.
ENDS = {"LightningModule", "LightningDataModule", "Callback", "Module", "ABC", "object", "Logger", "Generic"}


@dataclass(frozen=True)
class Argument:
    """An argument of a class.

    Attributes:
        name: Its name.
        default: Its default as text; "" where it has none.
        text: What the docstring says of it.
    """

    name: str
    default: str = ""
    text: str = ""


@dataclass(frozen=True)
class Signature:
    """A class or function, and what it takes.

    Attributes:
        path: Where it is.
        text: First line of its docstring.
        arguments: All arguments, those of its bases included where it passes them on.
    """

    path: str
    text: str
    arguments: tuple[Argument, ...]

    @property
    def names(self) -> list[str]:
        """Names of the arguments."""
        return [argument.name for argument in self.arguments]


@cache
def signature(path: str) -> Signature | None:
    """Returns what a class of netprism takes, or Lightning's Trainer; None where not all of it is known.

    Args:
        path: Its class path, or the short name of one of netprism's classes.
    """
    path = path if "." in path else next((f"netprism.{room}.{path}" for room in SHORT if path in names_in(room)), path)
    module, _, name = path.rpartition(".")
    tree = _tree(module)
    if tree is None:
        return None
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return _of_class(path, node, tree, module)
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return _of_function(path, node)
    origin = _imports(tree, module).get(name)
    return None if origin is None or origin == path else signature(origin)


@cache
def names_in(room: str) -> tuple[str, ...]:
    """Returns the public names of a package of netprism, as its `__all__` has them."""
    tree = _tree(f"netprism.{room}")
    for node in [] if tree is None else tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return tuple(ast.literal_eval(node.value))
    return ()


def methods(path: str) -> dict[str, list[str]]:
    """Returns {method: names of its arguments} of a class, without imports."""
    module, _, name = path.rpartition(".")
    tree = _tree(module)
    classes = [node for node in (tree.body if tree else []) if isinstance(node, ast.ClassDef) and node.name == name]
    return {
        node.name: [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)][1:]
        for own in classes
        for node in own.body
        if isinstance(node, ast.FunctionDef)
    }


@cache
def _tree(module: str) -> ast.Module | None:
    top, _, rest = module.partition(".")
    if top == "netprism":
        folder = ROOT
    else:
        spec = find_spec(top) if top.isidentifier() else None  # of the top package alone: it imports nothing
        if spec is None or spec.origin is None:
            return None
        folder = Path(spec.origin).parent
    parts = rest.split(".") if rest else []
    for file in (folder.joinpath(*parts).with_suffix(".py") if parts else None, folder.joinpath(*parts, "__init__.py")):
        if file is not None and file.is_file():
            return ast.parse(file.read_text(encoding="utf-8"))
    return None


def _of_class(path: str, node: ast.ClassDef, tree: ast.Module, module: str) -> Signature | None:
    docs = _documented(ast.get_docstring(node) or "")
    made = next((part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"), None)
    own = [] if made is None else _arguments(made, docs)
    takers = ["super().__init__"] if made is None else _takers(made)
    if made is not None and made.args.kwarg is not None and not takers:
        return None
    for taker in takers:
        bases = [ast.unparse(base) for base in node.bases] if taker == "super().__init__" else [taker]
        for base in bases:
            inherited = _of_other(base, tree, module)
            if inherited is None:
                return None
            own += [argument for argument in inherited if argument.name not in {known.name for known in own}]
    return Signature(path, _first_line(node), tuple(own))


def _takers(made: ast.FunctionDef) -> list[str]:
    """What an `__init__` hands its `**kwargs` on to: "super().__init__", or a function or class by its name there."""
    if made.args.kwarg is None:
        return []
    calls = (node for node in ast.walk(made) if isinstance(node, ast.Call))
    name = made.args.kwarg.arg
    return [
        ast.unparse(call.func)
        for call in calls
        if any(k.arg is None and isinstance(k.value, ast.Name) and k.value.id == name for k in call.keywords)
    ]


def _of_other(name: str, tree: ast.Module, module: str) -> tuple[Argument, ...] | None:
    """Arguments of a class that a module knows by this name."""
    name = name.partition("[")[0]
    if name.rpartition(".")[2] in ENDS:
        return ()
    local = any(isinstance(node, ast.ClassDef) and node.name == name for node in tree.body)
    found = signature(f"{module}.{name}" if local else _imports(tree, module).get(name, ""))
    return None if found is None else found.arguments


def _of_function(path: str, node: ast.FunctionDef) -> Signature | None:
    if node.args.kwarg is not None:
        return None
    docs = _documented(ast.get_docstring(node) or "")
    return Signature(path, _first_line(node), tuple(_arguments(node, docs, is_method=False)))


def _arguments(node: ast.FunctionDef, docs: dict[str, str], is_method: bool = True) -> list[Argument]:
    given = [*node.args.posonlyargs, *node.args.args]
    defaults: list[ast.expr | None] = [None] * (len(given) - len(node.args.defaults)) + list(node.args.defaults)
    pairs = list(zip(given, defaults, strict=True))[1 if is_method else 0 :]
    pairs += list(zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True))
    return [Argument(a.arg, "" if d is None else ast.unparse(d), docs.get(a.arg, "")) for a, d in pairs]


def _imports(tree: ast.Module, module: str) -> dict[str, str]:
    """{name: class path} of what a module imports."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _documented(docstring: str) -> dict[str, str]:
    """{argument: text} of a Google-style docstring."""
    section = re.search(r"^Args:\n((?:[ ].*\n?|\n)+)", docstring, re.MULTILINE)
    found: dict[str, str] = {}
    name = ""
    for line in section[1].splitlines() if section else []:
        start = re.match(r"    (\w+): (.*)", line)
        if start:
            name = start[1]
            found[name] = start[2]
        elif name and line.strip():
            found[name] += " " + line.strip()
    return found


def _first_line(node: ast.ClassDef | ast.FunctionDef) -> str:
    return (ast.get_docstring(node) or "").partition("\n")[0]

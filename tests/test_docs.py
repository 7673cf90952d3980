"""What README and docs tell people to type works: commands, options, experiments, files, Python, links."""

import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from netprism.cli.main import COMMANDS, OTHERS, experiments
from netprism.studies.study import shipped

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{page.name}" for page in sorted(ROOT.glob("docs/*.md")))]
TARGETS = set(re.findall(r"^([a-z][\w-]*)(?: [\w-]+)*:", (ROOT / "Makefile").read_text(), re.MULTILINE))
WORDS = {"python", ".venv/bin/python", "netprism", ".venv/bin/netprism", "make", "torchrun"}
GENERATED = {"keys.md", "experiments.md", "gallery.md", "contributing.md"}  # by docs/site/generated.py
PLACEHOLDERS = {"...", "EXPERIMENT"}


def blocks(page):
    """The code blocks of a page: (language, text), fenced ones and indented ones."""
    text = (ROOT / page).read_text()
    fenced = re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL)
    rest = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    # An indented block follows a blank line that does not continue a list.
    for block in re.findall(r"(?:\n|\A)[^\n]*[^\n\s]?[^\n]*\n\n((?:(?:    [^\n]*)?\n)*    [^\n]+)(?=\n|\Z)", rest):
        lines = [line[4:] for line in block.split("\n")]
        yield "", "\n".join(lines)
    yield from fenced


def is_python(language, text):
    return language == "python" or (not language and re.search(r"^(import|from) \w+", text, re.MULTILINE) is not None)


PYTHON = [(page, text) for page in PAGES for language, text in blocks(page) if is_python(language, text)]
SHELL = [
    (page, line)
    for page in PAGES
    for language, text in blocks(page)
    if not is_python(language, text)
    for line in text.replace("\\\n", " ").split("\n")
    if line.split() and (line.split()[0] in WORDS or line.split()[0].split("=")[0].isupper())
] + [
    (page, line)
    for page in PAGES
    for line in re.findall(r"`((?:make|netprism|python|torchrun) [^`]+)`", (ROOT / page).read_text().replace("\n", " "))
]


@pytest.mark.filterwarnings("ignore")  # a user's script is not run with warnings as errors
@pytest.mark.parametrize("page", sorted({page for page, _ in PYTHON}))
def test_the_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for number, text in enumerate(text for of, text in PYTHON if of == page):
        exec(compile(text, f"{page}, block {number}", "exec"), names)


def test_there_is_python_in_readme_and_on_the_pages():
    assert len([page for page, _ in PYTHON if page == "README.md"]) >= 2
    assert len({page for page, _ in PYTHON}) >= 6


@cache
def options_of(experiment):
    """Options that an experiment's classes have, dotted, as `--print_config` shows them."""
    import contextlib
    import io

    import yaml

    from netprism.cli.main import main

    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main(["fit", f"--config={experiment}", "--print_config"])
    found = set()

    def walk(node, path):
        found.add(".".join(path))
        for key, value in node.items() if isinstance(node, dict) else ():
            walk(value, (*path, key))
            if key == "init_args" and isinstance(value, dict):
                for inner, part in value.items():
                    walk(part, (*path, inner))

    walk(yaml.safe_load(out.getvalue()), ())
    return found | {"trainer.fast_dev_run", "ckpt_path", "help"}


@pytest.mark.parametrize(("page", "line"), SHELL, ids=[f"{page}-{i}" for i, (page, _) in enumerate(SHELL)])
def test_a_shell_line_names_what_is_there(page, line):
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words.pop(0)
    if not words:
        return
    command = Path(words[0]).name
    experiment, options = None, [word for word in words[1:] if word.startswith("--")]
    if command == "make":
        target = next((word for word in words[1:] if "=" not in word), "help")
        assert target in TARGETS, f"{page}: make has no target {target}"
        given = dict(word.split("=", 1) for word in words[1:] if "=" in word)
        experiment = given.get("EXP")
        study = given.get("STUDY", "...")
        assert study in {"...", *shipped()} or study.endswith(".yaml"), f"{page}: there is no study {study}"
        options = [word for word in given.get("ARGS", "").split() if word.startswith("--")]
        assert given.keys() <= {
            "EXP",
            "RUN",
            "ARGS",
            "NODES",
            "GPUS",
            "TASKS",
            "CPUS",
            "TIME",
            "PARTITION",
            "SIGNAL",
            "DRY",
            "STUDY",
            "JOBS",
            "RUNS",
            "RETRY",
        }
        if target.startswith("test"):
            return
    elif "netprism" in words and (command == "netprism" or "-m" in words):
        rest = words[words.index("netprism") + 1 :] if command != "netprism" else words[1:]
        verb = next((word for word in rest if not word.startswith("-")), "fit").split("|")
        assert set(verb) <= {*COMMANDS, *OTHERS}, f"{page}: netprism has no command {verb}"
        experiment = rest[rest.index("--config") + 1] if "--config" in rest else None
        if verb[0] not in COMMANDS:
            return
        options = [word for word in rest if word.startswith("--")]
    elif command.startswith("python"):
        script = next((word for word in words[1:] if word.endswith(".py")), None)
        assert script is None or (ROOT / script).is_file(), f"{page}: there is no {script}"
        return
    if experiment is None or experiment in PLACEHOLDERS:
        return
    assert experiment in experiments(), f"{page}: there is no experiment {experiment}"
    for option in options:
        name = option.removeprefix("--").split("=")[0].rstrip("+")
        if name not in ("config", "print_config", "ckpt_path"):
            assert name in options_of(experiment), f"{page}: {experiment} has no option --{name}"


@pytest.mark.parametrize("page", PAGES)
def test_no_placeholder_is_left(page):
    assert not re.search(r"^\s*(XX+|TODO.*|FIXME.*)\s*$", (ROOT / page).read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_links_to_files_and_headings_exist(page):
    dead = []
    for link in re.findall(r"\]\(([^)]+)\)", (ROOT / page).read_text()):
        path, _, heading = link.partition("#")
        if link.startswith("http") or path in GENERATED:
            continue
        target = (ROOT / page).parent / path if path else ROOT / page
        if not target.exists() or (heading and heading not in headings_of(target.read_text())):
            dead.append(link)
    assert not dead


def headings_of(text):
    """The names that headings have as targets of links: small letters, hyphens for spaces, and nothing else."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

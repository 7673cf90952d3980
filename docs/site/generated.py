"""Pages of the site that are made of the code: keys, experiments, API; and links that leave the site."""

import ast
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
LEAVES = re.compile(r"(?<!!)\[([^\]]+)\]\((?:\.\./)+([^)#]+)[^)]*\)")  # a link to a file beside docs/


def on_files(files, config):
    """Adds the generated pages."""
    pages = {
        "gallery.md": gallery(),
        "keys.md": keys(),
        "experiments.md": experiments(),
        "contributing.md": contributing(),
        "wide.css": ".md-grid { max-width: 75rem }\n",  # 120 columns of code beside the navigation
    }
    rooms = [name for group in config["nav"] for name in _api(group)]
    pages |= {f"api/{room}.md": api(room, rooms) for room in rooms}
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown, **_):
    """Names files that are not on the site instead of linking them."""
    return LEAVES.sub(r"\1 (`\2`)", markdown)


def gallery():
    """The gallery of README.md, whose links are seen from the root."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.partition("\n## Gallery\n")[2].partition("\n## ")[0]
    return "# Gallery\n" + section.replace("](docs/", "](")


def keys():
    """The tables in the docstrings of callbacks and modules, one after the other."""
    parts = [
        "# All logged keys\n",
        "Keys are `<monitor>/<quantity>[/<layer>]`, and `<monitor>/test/<quantity>[/<layer>]` of test images.",
    ]
    for folder in ("callbacks", "lightning_modules"):
        for file in sorted((ROOT / folder).glob("[!_]*.py")):
            for node in ast.parse(file.read_text(encoding="utf-8")).body:
                text = ast.get_docstring(node) or "" if isinstance(node, ast.ClassDef) else ""
                rows = [line for line in text.splitlines() if line.startswith(("| `", "| key", "| ---"))]
                if rows:
                    first = text.partition("\n")[0]
                    parts.append(f"\n## {node.name}\n\n{first}\n\n" + "\n".join(map(_row, rows)))
    return "\n".join(parts) + "\n"


def _row(line):
    cells = line.strip().removeprefix("|").removesuffix("|").split(" | ")
    return f"| {' | '.join(cell.strip().replace('|', chr(92) + '|') for cell in cells)} |"


def experiments():
    """The headers of the experiments: what each shows, its command, its time, what to expect."""
    folder = ROOT / "configs" / "experiment"
    parts = [
        "# All experiments\n",
        "Each trains with its command. Times and outcomes were measured, or it says that they were not.",
    ]
    for file in sorted(folder.rglob("*.yaml"), key=lambda file: (len(file.parts), file)):
        lines = []
        for line in file.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                break
            lines.append(line.removeprefix("#").removeprefix(" "))
        title, text = lines[0], "\n".join(map(_said, lines[1:]))
        parts.append(f"\n## {file.relative_to(folder).with_suffix('').as_posix()}\n\n{title}\n{text}")
    return "\n".join(parts) + "\n"


def _said(line):
    """A line of a header as Markdown: commands are indented, and labels begin a paragraph."""
    if line.startswith("  make "):
        return f"  {line}"
    label = re.match(r"(Time|Expect):", line)
    text = line.strip().replace("*", r"\*").replace("<", "&lt;")
    return f"\n**{label[1]}**{text[len(label[1]) :]}" if label else text


def contributing():
    """CONTRIBUTING.md, whose links are seen from the root."""
    return (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def api(room, rooms):
    """A page of mkdocstrings with the public names of a package, each from the module that it is in."""
    package = "netprism" if room == "netprism" else f"netprism.{room}"
    parts = [f"# {package}\n"]
    for name, origin in _public(package).items():
        home = origin.split(".")[1]
        elsewhere = room != home and home in rooms
        parts.append(f"- [{name}]({home}.md#{origin})" if elsewhere else f"\n::: {origin}\n")
    return "\n".join(sorted(parts, key=lambda part: part.startswith("\n:::"))) + "\n"


def _public(package):
    """{public name: path of its module and name}."""
    folder = ROOT / Path(*package.split("."))
    tree = ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("netprism"):
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    listed = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__" and package != "netprism"
    ]
    names = listed[0] if listed else list(found)
    resolved = {name: found[name] for name in names if name in found}
    return {name: _at_home(name, origin) for name, origin in resolved.items()} if package == "netprism" else resolved


def _at_home(name, origin):
    """The module of a name that comes from a package, which has it from a module."""
    package = origin.rpartition(".")[0]
    is_package = (ROOT / Path(*package.split(".")) / "__init__.py").is_file()
    return _public(package).get(name, origin) if is_package else origin


def _api(group):
    """The packages in the navigation."""
    if isinstance(group, dict):
        for value in group.values():
            yield from _api(value)
    elif isinstance(group, list):
        for value in group:
            yield from _api(value)
    elif isinstance(group, str) and group.startswith("api/"):
        yield Path(group).stem

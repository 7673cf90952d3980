"""The README's snippets run, and its links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.filterwarnings("ignore")  # a user's script is not run with warnings as errors
@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippet_runs(snippet, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "README.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out


def test_there_are_snippets():
    assert len(SNIPPETS) >= 2


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))])
def test_links_to_files_exist(page):
    links = re.findall(r"\]\(([^)#][^)]*)\)", (ROOT / page).read_text())
    assert [
        link for link in links if not link.startswith("http") and not (ROOT / page).parent.joinpath(link).exists()
    ] == []

"""What people install is what stands in the checkout: built, unpacked and imported far from it."""

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import netprism

ROOT = Path(__file__).parents[1]
LINKS = ("callbacks", "configs", "datamodules", "lightning_modules")  # in netprism/, of folders beside it


def call(*command, cwd):
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def build_wheel(source, folder):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--no-build-isolation"]
    call(*pip, "--quiet", "--wheel-dir", str(folder), str(source), cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def contents(wheel):
    """{name: bytes} of what a wheel installs, without what pip writes about it."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder that has the package and nothing else of it."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_has_every_source_file_and_puts_no_other_name_into_site_packages(wheel):
    names = set(contents(wheel))
    wanted = {
        path.relative_to(ROOT).as_posix()
        for folder in ("netprism", *(f"netprism/{link}" for link in LINKS))
        for pattern in ("*.py", "*.yaml", "*.html", "*.css", "*.js")
        for path in (ROOT / folder).rglob(pattern)
    }
    assert {
        "netprism/cli/main.py",
        "netprism/callbacks/__init__.py",
        "netprism/configs/experiment/quickstart.yaml",
    } <= wanted
    assert wanted <= names
    assert {name.partition("/")[0] for name in names} == {"netprism"}
    assert not [name for name in names if "__pycache__" in name]


def test_the_wheel_has_types_and_licence_and_no_tests_and_the_version_that_the_others_have(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert "netprism/py.typed" in names
    assert f"netprism-{version}.dist-info/licenses/LICENSE" in names
    assert not [name for name in names if "test" in name or name.endswith((".png", ".md"))]
    assert netprism.__version__ == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(rf"^## \[?{re.escape(version)}\]?", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_the_wheel_of_the_sdist_is_the_same(wheel, tmp_path):
    call(sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", str(tmp_path), cwd=ROOT)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"Makefile", "README.md", "tests/test_packaging.py", "pyproject.toml"} <= names
    assert contents(build_wheel(tmp_path / sdist.name.removesuffix(".tar.gz"), tmp_path)) == contents(wheel)


def test_the_wheel_imports_far_from_the_checkout(installed, tmp_path):
    # -I: neither the current folder nor PYTHONPATH; an editable install is taken off the path and out of the finders.
    code = f"""
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
sys.path = [{str(installed)!r}, *(path for path in sys.path if path.rstrip("/") != {str(ROOT)!r})]
import netprism.callbacks, netprism.cli.lightning_cli, netprism.datamodules, netprism.lightning_modules
for module in (netprism, netprism.callbacks, netprism.cli, netprism.datamodules, netprism.lightning_modules):
    assert module.__file__.startswith({str(installed)!r}), module.__file__
from netprism.cli.main import experiments
assert "gates/cifar10_resnet20" in experiments()
"""
    call(sys.executable, "-I", "-c", code, cwd=tmp_path)


def test_the_command_of_the_wheel_lists_the_experiments(installed, tmp_path):
    run = "import runpy; runpy.run_module('netprism', run_name='__main__')"  # what `python -m netprism` does
    out = call(sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(installed)!r}); {run}", cwd=tmp_path)
    assert "quickstart" in out
    assert "netprism fit --config" in out


def test_the_command_is_called_netprism(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "netprism = netprism.cli.main:main" in archive.read(name).decode()

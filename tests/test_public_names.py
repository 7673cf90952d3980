"""What people import, and where a reader of a paper finds its formulas."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

import netprism

ROOT = Path(netprism.__file__).parent

FORMULAS = {
    "entropy of gates H": ("gates/entropy.py", "kde_entropy"),
    "entropies of a network's gates": ("gates/entropy.py", "transformation_complexity"),
    "complexity loss": ("gates/loss.py", "ComplexityLoss"),
    "significance rho_c": ("components/measures.py", "significance"),
    "reliable part, rho_reli": ("components/reliability.py", "reliable_part"),
    "strict information discarding SID": ("discarding/sid.py", "strict_information_discarding"),
    "reconstruction uncertainty RU": ("discarding/reconstruction.py", "reconstruction_uncertainty"),
    "concentration": ("discarding/concentration.py", "concentration"),
    "kappa(l)": ("knowledge/vmf.py", "kappa_of_strength"),
    "Q(y|x)": ("knowledge/mixture.py", "log_posterior"),
    "importance of regions w^(r)": ("knowledge/importance.py", "regional_importance"),
    "knowledge points": ("knowledge/points.py", "knowledge_points"),
}


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.parametrize("name", netprism.__all__)
def test_every_public_name_is_there_and_is_the_one_of_its_package(name):
    home = importlib.import_module(netprism._HOME[name])
    assert getattr(netprism, name) is getattr(home, name)
    assert name in dir(netprism)


def test_the_import_takes_milliseconds_and_no_torch():
    timed = "; ".join(
        [
            "import sys, time",
            "start = time.process_time()",  # others may load the machine
            "import netprism",
            "print(time.process_time() - start, 'torch' in sys.modules)",
        ]
    )
    found = [run(timed).split() for _ in range(5)]
    assert {loaded for _, loaded in found} == {"False"}
    assert median(float(seconds) for seconds, _ in found) < 0.05


def test_an_unknown_name_tells_a_close_one():
    with pytest.raises(AttributeError, match="no attribute 'GateEntropy', did you mean 'GatingEntropy'"):
        netprism.GateEntropy  # noqa: B018


@pytest.mark.parametrize("paper", ["gates", "components", "discarding", "knowledge"])
def test_a_package_names_its_paper_and_its_names_exist(paper):
    package = importlib.import_module(f"netprism.{paper}")
    assert "https://" in package.__doc__
    assert package.__all__
    for name in package.__all__:
        assert hasattr(package, name), name


@pytest.mark.parametrize(("file", "name"), FORMULAS.values(), ids=FORMULAS)
def test_a_formula_is_where_a_reader_looks_for_it(file, name):
    definitions = ast.parse((ROOT / file).read_text()).body
    assert name in {d.name for d in definitions if isinstance(d, ast.FunctionDef | ast.ClassDef)}

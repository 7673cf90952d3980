import math

import pytest

from netprism.files import write_text
from netprism.studies.values import records

METRICS = """\
epoch,step,gates/entropy,gates/entropy/relu,gates/entropy/fc,val/loss,train/loss,val/accuracy
-1,0,3.0,1.0,2.0,,,
0,5,2.0,1.5,2.5,1.0,,0.5
0,6,,,,,0.75,
1,12,4.0,2.5,3.5,0.5,0.125,0.9
2,18,5.0,3.5,4.5,0.25,0.0625,0.8
"""


@pytest.fixture
def run(tmp_path):
    write_text(tmp_path / "metrics.csv", METRICS)
    return tmp_path


def test_of_a_whole_run_the_last_the_best_and_a_difference(run):
    read = {
        "H": "gates/entropy",
        "best": {"column": "val/accuracy", "take": "max"},
        "first": {"column": "gates/entropy", "take": "first"},
        "early": {"column": "gates/entropy", "at": 0},
        "gap": {"column": "val/loss", "minus": "train/loss"},
    }
    assert records(run, None, read, []) == [{"H": 5.0, "best": 0.9, "first": 3.0, "early": 2.0, "gap": 0.1875}]


def test_a_record_per_epoch_and_layer_repeats_what_is_of_less(run):
    read = {"H": "gates/entropy/*", "whole": "gates/entropy", "end": {"column": "val/accuracy", "take": "last"}}
    found = records(run, None, read, ["epoch", "layer"])
    assert len(found) == 8
    assert found[0] == {"epoch": -1, "layer": "relu", "H": 1.0, "whole": 3.0, "end": 0.8}
    assert {"epoch": 2, "layer": "fc", "H": 4.5, "whole": 5.0, "end": 0.8} in found


def test_an_epoch_without_a_value_has_none(run):
    found = records(run, None, {"H": "gates/entropy", "loss": "val/loss"}, ["epoch"])
    assert [row["epoch"] for row in found] == [-1, 0, 1, 2]
    assert math.isnan(found[0]["loss"])


def test_measured_rows_keep_what_they_are_of(run):
    write_text(run / "rows.csv", "order,rho\n4,0.5\n7,0.25\n")
    found = records(run, run / "rows.csv", {"rho": "measure.rho", "accuracy": "val/accuracy"}, ["order"])
    assert found == [{"order": 4, "rho": 0.5, "accuracy": 0.8}, {"order": 7, "rho": 0.25, "accuracy": 0.8}]


@pytest.mark.parametrize(
    ("read", "per", "says"),
    [
        ({"x": "gates/entrop"}, [], "x is read from 'gates/entrop', which was not logged; expected one of gates/entr"),
        ({"x": {"column": "val/loss", "take": "median"}}, [], "x: take is 'median'; expected one of last"),
        ({"x": {"column": "val/loss", "of": 1}}, [], "x: key is 'of'; expected column, take, at, minus"),
        ({"x": "val/loss"}, ["layer"], "per is layer, but no quantity has it"),
        ({"x": "measure.y"}, [], "x is read from measure.y, which was not measured; expected one of nothing"),
    ],
)
def test_what_was_not_logged_is_named(run, read, per, says):
    with pytest.raises(ValueError, match=".") as error:
        records(run, None, read, per)
    assert says in str(error.value)

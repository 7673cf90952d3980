import pytest

from netprism.studies.grid import expand, short, text


def test_every_combination_with_the_seeds_fastest():
    found = expand({"a": [1, 2], "b": ["x"]}, {}, [], [5, 7])
    assert [(s["a"], s["b"], s["seed"]) for s in found] == [(1, "x", 5), (1, "x", 7), (2, "x", 5), (2, "x", 7)]


def test_zipped_lists_go_together_and_are_combined_with_the_rest():
    found = expand({"c": [0, 1]}, {"samples": [10, 20], "epochs": [4, 2]}, [{"experiment": "e"}], 1)
    assert [(s["samples"], s["epochs"], s["c"]) for s in found] == [(10, 4, 0), (10, 4, 1), (20, 2, 0), (20, 2, 1)]
    assert {s["experiment"] for s in found} == {"e"}


@pytest.mark.parametrize(
    ("grid", "zipped", "runs", "seeds", "says"),
    [
        ({"a": []}, {}, [], 1, "a of the grid is []; expected a list of values"),
        ({"a": 3}, {}, [], 1, "a of the grid is 3; expected a list of values"),
        ({}, {"a": [1, 2], "b": [1]}, [], 1, "zip has lists of [1, 2] values; expected one length"),
        ({"a": [1]}, {}, [{"a": 2}], 1, "a is given twice"),
        ({"a": [1, 1]}, {}, [], 1, "a=1 seed=0 is given twice; expected different runs"),
        ({}, {}, [], 0, "seeds is 0; expected a number >= 1 or a list"),
    ],
)
def test_a_grid_that_contradicts_itself_is_refused(grid, zipped, runs, seeds, says):
    with pytest.raises(ValueError, match=".") as error:
        expand(grid, zipped, runs, seeds)
    assert says in str(error.value)


def test_a_setting_in_one_line():
    assert text({"lr": 1e-5, "on": True, "net": {"class_path": "a.b.MLP"}, "none": None}) == (
        "lr=1e-05 on=true net=MLP none=none"
    )
    assert short([8, 16]) == "8,16"

"""The regressor on the runs of a study, against what is known of networks that are made up."""

import numpy as np
import pytest

from netprism.studies.regression import Networks, planes, tables

ORDERS = (4, 7)


def records(noise=0.0):
    """Four architectures, four sample sizes, three seeds; the accuracy is a sum of two of the four numbers."""
    draws = np.random.default_rng(0)
    rows = []
    for label in "abcd":
        for samples in (10, 100, 1000, 10000):
            for seed in range(3):
                reliable, unreliable = draws.uniform(size=(2, 2))
                accuracy = 0.5 * reliable[0] - 0.25 * unreliable[1] + noise * draws.normal()
                rows += [
                    {
                        "label": label, "seed": seed, "train samples": samples, "layer": order, "order": order,
                        "reliable": reliable[i], "unreliable": unreliable[i], "accuracy": accuracy,
                        "loss": np.log(samples), "train accuracy": 1.0,
                    }
                    for i, order in enumerate(ORDERS)
                ]  # fmt: skip
    return rows


def test_what_predicts_without_error_and_with_which_weights():
    found = tables(records(), repeats=20)
    errors = {row["from"]: row for row in found["regressor"]}
    assert list(errors) == [
        "the 4 numbers", "the 2 reliable ones", "the 2 unreliable ones", "log training images", "training accuracy",
        "nothing: the mean of the others", "log training images and the 4",
    ]  # fmt: skip
    for new in ("network", "setting"):
        assert (
            errors["the 4 numbers"][f"accuracy, new {new}"]
            < 1e-12
            < errors["the 2 reliable ones"][f"accuracy, new {new}"]
        )
        assert errors["log training images"][f"loss, new {new}"] < 1e-12 < errors["the 4 numbers"][f"loss, new {new}"]
    nothing = errors["nothing: the mean of the others"]
    assert errors["training accuracy"]["loss, new setting"] == pytest.approx(nothing["loss, new setting"])
    weights = {row["symbol"]: row["accuracy"] for row in found["weights"]}
    assert weights == pytest.approx({"alpha_4": 0.5, "alpha_7": 0, "beta_4": 0, "beta_7": -0.25}, abs=1e-12)


def test_networks_of_a_published_table_have_no_seeds():
    published = [
        {key: value for key, value in row.items() if key != "train accuracy"} for row in records() if not row["seed"]
    ]
    of = Networks.of([{key: value for key, value in row.items() if key != "seed"} for row in published])
    assert of.ratios.shape == (16, 4)
    assert "training accuracy" not in of.known
    row = tables(published, repeats=5)["regressor"][0]
    assert set(row) == {"from", *(f"{what}, new network{sd}" for what in ("accuracy", "loss") for sd in ("", " sd"))}


def test_the_figure_and_records_that_do_not_do():
    assert list(planes(records())) == ["regressor"]
    with pytest.raises(ValueError, match="the records have no 'reliable'; expected label"):
        tables([{"label": "a", "train samples": 1, "order": 4}])
    with pytest.raises(ValueError, match="order 7 has no row"):
        tables(records()[:-1])

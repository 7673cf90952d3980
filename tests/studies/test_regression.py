"""The regressor on the runs of a study, against what is known of networks that are made up."""

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from netprism.studies.regression import Networks, compressed, planes, predictions, tables

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


def with_compressed(noise=0.0, shift=0.0):
    """The networks above; those of "a" again with other components, and the accuracy that these say plus a shift."""
    original = records(noise)
    draws, rows = np.random.default_rng(1), []
    for first, second in zip(original[::2], original[1::2], strict=True):
        if first["label"] == "a":
            parts = draws.uniform(size=(2, 2))
            accuracy = 0.5 * parts[0, 0] - 0.25 * parts[1, 1] + shift
            changed = {"label": "a, compressed", "accuracy": accuracy}
            rows += [
                {**row, **changed, "reliable": float(pair[0]), "unreliable": float(pair[1])}
                for row, pair in zip((first, second), parts.T, strict=True)
            ]
    return original + rows


def test_compressed_networks_by_the_regression_over_the_others():
    found = compressed(with_compressed(shift=0.125))
    assert [(row["network"], row["training images"]) for row in found["predicted"]] == [
        ("a", 10), ("a", 100), ("a", 1000), ("a", 10000)
    ]  # fmt: skip
    assert [row["accuracy error"] for row in found["predicted"]] == pytest.approx([-0.125] * 4)
    for row in found["predicted"]:
        assert row["accuracy predicted"] - row["accuracy after"] == pytest.approx(-0.125)
        assert row["loss before"] == row["loss after"] == pytest.approx(np.log(row["training images"]))
    errors = {row["from"]: row for row in found["errors"]}
    assert errors["the 4 numbers"]["accuracy, new setting"] == pytest.approx(0.125)
    assert errors["log training images"]["loss, known setting"] == pytest.approx(0, abs=1e-12)
    assert errors["what it was before compression"]["loss, new setting"] == 0


def test_predictions_are_those_of_another_least_squares_fit_without_the_setting_that_is_predicted():
    rows = with_compressed(noise=0.1)
    of = Networks.of(rows)
    after, before = slice(48, 60), slice(0, 12)
    accuracy = of.performance["accuracy"]
    known = LinearRegression().fit(of.ratios[:48], accuracy[:48]).predict(of.ratios[after])
    new, mean = np.empty(12), np.empty(12)
    for i in range(12):
        others = [j for j in range(48) if j // 3 != i // 3]
        new[i] = LinearRegression().fit(of.ratios[others], accuracy[others]).predict(of.ratios[[48 + i]])[0]
        mean[i] = accuracy[others].mean()
    errors = {row["from"]: row for row in compressed(rows)["errors"]}

    def per_seed(predicted):
        wrong = np.abs(predicted - accuracy[after]).reshape(4, 3).mean(axis=0)
        return wrong.mean(), wrong.std(ddof=1)

    for name, kind, predicted in (
        ("the 4 numbers", "known", known),
        ("the 4 numbers", "new", new),
        ("nothing: the mean of the others", "new", mean),
        ("what it was before compression", "known", accuracy[before]),
    ):
        row = errors[name]
        assert (row[f"accuracy, {kind} setting"], row[f"accuracy, {kind} setting sd"]) == pytest.approx(
            per_seed(predicted)
        )


def test_a_compressed_network_needs_its_original():
    assert list(predictions(with_compressed())) == ["predicted"]
    with pytest.raises(ValueError, match="no label ends with ', compressed'"):
        compressed(records())
    with pytest.raises(ValueError, match="'a, compressed' of 10 images and seed 0 has no original"):
        compressed(with_compressed()[2:])

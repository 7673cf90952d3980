import csv
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

from netprism.components.regressor import component_ratios, cross_validate, fit_plane, predict_performance
from netprism.figures.regressor import regression_plane

PUBLISHED = Path(__file__).parents[3] / "shared" / "data" / "published_cifar10_components.csv"


def row(order, feature=2.0, reliable=1.0, unreliable=0.5):
    return {
        "order": order,
        "var_feature": feature,
        "var_reliable_component": reliable,
        "var_unreliable_component": unreliable,
    }


@pytest.fixture(scope="module")
def published():
    """Ratios (25, 8), accuracy in per cent and loss of the 25 networks of the paper's appendix K."""
    if not PUBLISHED.is_file():
        pytest.skip("the published figures lie outside the project and are not here")
    with PUBLISHED.open() as file:
        rows = list(csv.DictReader(file))
    networks = [list(group) for _, group in groupby(rows, key=lambda r: (r["model"], r["train_samples"]))]
    ratios = np.array([component_ratios(network) for network in networks])
    return ratios, *(np.array([float(n[0][column]) for n in networks]) for column in ("test_accuracy", "test_loss"))


def test_published_networks_are_predicted_as_well_as_the_paper_says(published):
    ratios, accuracies, losses = published
    assert ratios.shape == (25, 8)
    accuracy, loss = cross_validate(ratios, accuracies), cross_validate(ratios, losses)
    assert accuracy.error == pytest.approx(2.73, abs=0.1)
    assert (accuracy.lowest, accuracy.highest) == (28.73, 72.83)
    assert loss.error == pytest.approx(0.49, abs=0.01)
    assert (round(loss.lowest, 2), round(loss.highest, 2)) == (1.59, 6.42)


def test_published_networks_in_the_plane(published):
    ratios, accuracies, _ = published
    plane = fit_plane(ratios, accuracies)
    centred = ratios - ratios.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    np.testing.assert_allclose(plane.explained, values[[-1, -2]] / values.sum())
    for i in (0, 1):
        np.testing.assert_allclose(np.abs(plane.points[:, i]), np.abs(centred @ vectors[:, -1 - i]), atol=1e-12)
    columns = np.column_stack([plane.points, np.ones(25)])
    np.testing.assert_allclose([*plane.slopes, plane.intercept], np.linalg.lstsq(columns, accuracies, rcond=None)[0])


def test_ratios_of_a_network():
    rows = [row(4), row(7, reliable=0.4, unreliable=0.2), row(13), row(25, reliable="0.1"), row(49)]
    expected = [0.5, 0.2, 0.5, 0.05, 0.25, 0.1, 0.25, 0.25]
    assert component_ratios(rows).tolist() == expected
    assert component_ratios(rows[::-1]).tolist() == expected


def test_a_linear_world_is_predicted_without_error_and_noise_is_not():
    draws = np.random.default_rng(0)
    x = draws.normal(size=(30, 8))
    linear = x @ np.arange(8.0) + 3
    assert cross_validate(x, linear, repeats=20).error < 1e-12
    noise = cross_validate(x, draws.normal(size=30), repeats=200)
    assert 0.8 < noise.error < 1.6  # at least the E|noise| = .8 of an oracle


def test_the_error_is_that_of_networks_not_seen():
    """With as many unknowns as networks seen, those seen are hit exactly; the others are far off."""
    draws = np.random.default_rng(0)
    result = cross_validate(draws.normal(size=(10, 7)), draws.normal(size=10), repeats=50)
    assert result.error > 0.5
    assert result.spread > 0
    assert result.lowest < 0 < result.highest


def test_the_weights_are_those_of_the_linear_world():
    draws = np.random.default_rng(0)
    x, slopes = draws.normal(size=(400, 3)), np.array([2.0, -1.0, 0.5])
    found = cross_validate(x, x @ slopes + 3, repeats=5)
    np.testing.assert_allclose([*found.weights, found.intercept], [*slopes, 3], atol=1e-12)
    noisy = cross_validate(x, x @ slopes + 3 + draws.normal(size=400), repeats=200)
    np.testing.assert_allclose(noisy.weights, slopes, atol=4 / 20)
    # A fifth is left out, so that the weights of a division are off by sqrt(.25 / n) of those of all.
    np.testing.assert_allclose(noisy.weight_spreads, [(0.25 / 400) ** 0.5] * 3, rtol=0.4)


def test_a_group_is_predicted_as_a_whole():
    """Ten groups that only their names tell apart, each with a value of its own: seen before, it is known."""
    draws = np.random.default_rng(0)
    groups = [f"group {i // 5}" for i in range(50)]
    x, y = np.repeat(np.eye(10), 5, axis=0), np.repeat(draws.normal(size=10), 5)
    assert cross_validate(x, y, repeats=50).error < 0.1
    assert cross_validate(x, y, repeats=50, groups=groups).error > 0.5
    with pytest.raises(ValueError, match="^the number of groups is 49; expected 50, one per network$"):
        cross_validate(x, y, groups=groups[1:])


def test_the_seed_decides_the_divisions():
    draws = np.random.default_rng(0)
    x, y = draws.normal(size=(20, 3)), draws.normal(size=20)
    assert cross_validate(x, y, 10, seed=1) == cross_validate(x, y, 10, seed=1)
    assert cross_validate(x, y, 10, seed=1) != cross_validate(x, y, 10, seed=2)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(4), row(7), row(13)], "^order 25 has no row; there are 4, 7, 13$"),
        ([], "^order 4 has no row; there are none$"),
        ([row(4), row(4), row(7)], r"^orders are \[4, 4, 7\]; expected each once"),
        ([row(4, feature=0), row(7), row(13), row(25)], "^var_feature is 0.0 at order 4; expected a variance > 0$"),
        (
            [row(4, reliable="nan"), row(7), row(13), row(25)],
            "^the ratios of a network have the value nan; expected finite numbers$",
        ),
    ],
)
def test_tables_that_do_not_do(rows, message):
    with pytest.raises(ValueError, match=message):
        component_ratios(rows)


def test_bad_input():
    with pytest.raises(ValueError, match=r"^shapes are \(3, 2\) and \(4,\); expected"):
        cross_validate(np.zeros((3, 2)), np.zeros(4))
    with pytest.raises(ValueError, match="^the number of networks to fit is 8; expected 9 or more"):
        cross_validate(np.zeros((10, 8)), np.zeros(10))
    with pytest.raises(ValueError, match="^accuracies or losses have the value inf"):
        fit_plane(np.zeros((3, 2)), [0, 1, float("inf")])
    with pytest.raises(ValueError, match=r"^others has the shape \(2, 3\); expected \(networks, 2\)$"):
        predict_performance(np.zeros((5, 2)), np.zeros(5), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="^the number of networks to fit is 2; expected 3 or more, one per unknown$"):
        predict_performance(np.zeros((2, 2)), np.zeros(2), np.zeros((1, 2)))


def test_figure_of_the_plane():
    draws = np.random.default_rng(0)
    x, y = draws.normal(size=(6, 4)), draws.normal(size=6)
    figure = regression_plane(fit_plane(x, y), y, ["a", "a", "b", "b", "c", "c"], "accuracy, %")
    (axes,) = figure.axes
    assert axes.get_zlabel() == "accuracy, %"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "c"]
    residuals = [line for line in axes.lines if len(line.get_data_3d()[0]) == 2 and line.get_color() == "0.4"]
    ends = np.array([line.get_data_3d()[2] for line in residuals])
    np.testing.assert_allclose(ends[:, 0], y)
    plane = fit_plane(x, y)
    np.testing.assert_allclose(ends[:, 1], plane.points @ plane.slopes + plane.intercept)

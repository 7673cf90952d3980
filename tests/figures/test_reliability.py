import numpy as np
import pytest
import torch
from matplotlib.colors import same_color

from netprism.components.reliable_variance import Reliability
from netprism.figures.reliability import curves, draw, parts, rounds

ORDERS = (4, 7)


@pytest.fixture
def found():
    return Reliability(
        orders=ORDERS,
        samples=5,
        feature=4.0,
        by_round=((0.9, 0.6, 0.5), (0.8, 0.4, 0.2)),
        unexplained=(0.1, 0.2),
        component=(2.0, 1.0),
        up_to_order=(2.0, 3.0),
        reliable_component=(1.0, 0.4),
        reliable_up_to_order=(1.0, 0.6),
        unreliable_component=(1.2, 0.8),
        unreliable_up_to_order=(1.2, 2.0),
        weights=torch.zeros(2, 1, 3),
        biases=torch.zeros(2, 1),
    )


HISTORY = [
    {"epoch": 0, "reliability/4": 0.1, "reliability/7": 0.2},
    {"epoch": 1, "reliability/4": 0.3, "reliability/7": 0.4},
]


def test_curves_have_a_line_per_order():
    (axes,) = curves(HISTORY, ORDERS).axes
    assert [line.get_label() for line in axes.lines] == ["order 4", "order 7"]
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.1, 0.3], [0.2, 0.4]]
    assert not same_color(axes.lines[0].get_color(), axes.lines[1].get_color())


def test_rounds_and_what_is_new_as_a_fraction_of_the_feature(found):
    left, right = rounds(found).axes
    assert [tuple(line.get_ydata()) for line in left.lines] == list(found.by_round)
    assert [bar.get_height() for bar in right.patches] == [0.25, 0.1, 0.3, 0.2]  # reliable of all orders, then the rest


def test_parts_show_the_channel_that_varies_most_and_add_up():
    feature = torch.stack([torch.zeros(4, 4), torch.arange(16.0).view(4, 4)])[None]
    phi = feature + 1
    reliable = 0.25 * phi
    figure = parts(torch.rand(1, 1, 8, 8), feature, [phi], [reliable], (4,))
    shown = [axes.images[0] for axes in figure.axes]
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["image", "f", "Φ(4)", "reliable", "unreliable"]
    _, f, whole, kept, rest = (np.asarray(picture.get_array()) for picture in shown)
    np.testing.assert_array_equal(f, feature[0, 1].numpy())
    np.testing.assert_allclose(kept + (rest - 7.5), whole)  # the rest is shown about the mean of f
    assert len({picture.get_clim() for picture in shown[1:]}) == 1
    assert shown[1].get_clim() == (0.0, 15.0)


@pytest.mark.parametrize("channels", [1, 3])
def test_draws_three_files_of_maps_and_two_of_vectors(found, tmp_path, channels):
    feature = torch.randn(2, 3, 4, 4)
    images = torch.rand(2, channels, 8, 8)
    drawn = draw(found, HISTORY, images, feature, [feature] * 2, [feature] * 2, tmp_path / "maps")
    assert [path.name for path in drawn] == [f"reliability_{name}.png" for name in ("curves", "rounds", "parts")]
    assert all(path.stat().st_size > 1000 for path in drawn)
    vectors = feature.flatten(1)
    drawn = draw(found, HISTORY, images, vectors, [vectors] * 2, [vectors] * 2, tmp_path / "vectors")
    assert [path.name for path in drawn] == ["reliability_curves.png", "reliability_rounds.png"]

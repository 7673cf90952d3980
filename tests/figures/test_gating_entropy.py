import numpy as np
import pytest

from netprism.figures import gating_entropy as figures
from netprism.figures._common import save

HISTORY = [
    {
        "epoch": -1,
        "entropy": 3.0,
        "saturation": 0.3,
        "entropy/a": 1.0,
        "entropy/b": 2.0,
        "test/entropy": 4.0,
        "test/entropy/a": 1.5,
        "test/entropy/b": 2.5,
    },
    {
        "epoch": 0,
        "entropy": 5.0,
        "saturation": 0.5,
        "entropy/a": 3.0,
        "entropy/b": 0.5,
        "test/entropy": 6.0,
        "test/entropy/a": 3.5,
        "test/entropy/b": 1.0,
    },
]


def rates(**epochs):
    counts = {"a": [1, 0, 3], "b": [2, 2, 0]}
    return {which: {"epoch": epoch, "entropy": 1.0 + epoch, "layers": counts} for which, epoch in epochs.items()}


def test_curves_are_the_history():
    panels = figures.entropy_curves(HISTORY).axes
    assert [axes.get_title() for axes in panels] == ["entropy of all gates H(Σ), bits", "saturation H(Σ) / log₂ n"]
    train, test = panels[0].lines
    assert (train.get_xdata().tolist(), train.get_ydata().tolist()) == ([-1, 0], [3.0, 5.0])
    assert test.get_ydata().tolist() == [4.0, 6.0]
    assert len(panels[1].lines) == 1  # no saturation of test images in this history


def test_heat_map_has_a_row_a_layer_and_a_column_an_epoch():
    figure = figures.layers_by_epochs(HISTORY)
    train, test, _ = figure.axes
    assert train.images[0].get_array().tolist() == [[1.0, 3.0], [2.0, 0.5]]
    assert test.images[0].get_array().tolist() == [[1.5, 3.5], [2.5, 1.0]]
    assert train.images[0].get_clim() == test.images[0].get_clim() == (0, 3.5)
    assert [label.get_text() for label in train.get_yticklabels()] == ["a", "b"]
    assert [label.get_text() for label in train.get_xticklabels()] == ["start", "0"]


def test_without_test_images_there_is_one_heat_map():
    figure = figures.layers_by_epochs([{"epoch": 0, "entropy": 1.0, "entropy/a": 1.0}])
    assert len(figure.axes) == 2  # and the colour bar


def test_histograms_are_shares_and_equal_measurements_come_once():
    figure = figures.activation_rate_histograms(rates(first=-1, lowest=-1, last=4))
    assert len(figure.axes) == 2
    assert figure.axes[0].patches[0].get_data().values.tolist() == [0.25, 0.0, 0.75]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["first and lowest: start, H = 0.00 bits", "last: epoch 4, H = 5.00 bits"]


def test_of_many_layers_evenly_spaced_ones_are_shown():
    many = {f"layer{i}": [1, 1] for i in range(121)}
    measured = {which: {"epoch": 0, "entropy": 1.0, "layers": many} for which in ("first", "lowest", "last")}
    titles = [axes.get_title() for axes in figures.activation_rate_histograms(measured).axes]
    assert len(titles) == 24
    assert (titles[0], titles[-1]) == ("layer0", "layer120")


def test_files_are_whole_or_absent(tmp_path):
    paths = figures.draw(HISTORY, rates(first=-1, lowest=0, last=0), tmp_path / "new", "gates")
    assert [path.name for path in paths] == ["gates_curves.png", "gates_layers.png", "gates_activation_rates.png"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(path.name for path in paths)
    before = paths[0].read_bytes()

    class Broken:
        def savefig(self, path, dpi):
            path.write_bytes(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save(Broken(), paths[0])
    assert paths[0].read_bytes() == before


def test_nothing_measured_draws_nothing(tmp_path):
    assert figures.draw([], {}, tmp_path, "gates") == []
    assert list(tmp_path.iterdir()) == []


def test_pictures_are_not_empty(tmp_path):
    from matplotlib.image import imread

    for path in figures.draw(HISTORY, rates(first=-1, lowest=0, last=0), tmp_path, "gates"):
        assert np.std(imread(path)) > 0.02

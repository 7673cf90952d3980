import pytest

from netprism.figures.complexity_loss import draw, penalty_curves, weight_sweep


def history():
    """Two layers, three epochs, the second of them without a penalised step."""
    row = {"complexity": 3.0, "skipped": 0.0, "train_test_gap": 0.1}
    each = {f"{kind}/{layer}": 1.0 for kind in ("complexity", "energy_gap", "acceptance") for layer in ("a", "b.relu")}
    return [{"epoch": 0, **row, **each}, {"epoch": 1, "train_test_gap": 0.2}, {"epoch": 2, **row, **each}]


def test_a_panel_a_quantity_and_a_line_a_layer():
    panels = penalty_curves(history()).axes
    assert len(panels) == 4
    assert [len(axes.lines) for axes in panels] == [2, 2, 2, 1]
    assert panels[0].lines[0].get_xdata().tolist() == [0, 2]
    assert [text.get_text() for text in panels[0].get_legend().get_texts()] == ["a", "b.relu"]


def test_writes_one_file_or_none(tmp_path):
    assert draw([], tmp_path) == []
    (path,) = draw(history(), tmp_path / "figures")
    assert path.name == "penalty_curves.png"
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_the_sweep_shows_means_and_extremes_of_the_seeds():
    rows = [
        {"weight": weight, "estimator": name, "seed": seed, "H": entropy + seed, "accuracy": 0.9, "gap": 0.1}
        for weight, name, entropy in ((0.0, "none", 5), (1e-3, "energy", 10), (1e-3, "prior", 5))
        for seed in (0, 2)
    ]
    figure = weight_sweep(rows)
    entropy = figure.axes[0]
    full, prior = entropy.lines
    assert full.get_xdata().tolist() == prior.get_xdata().tolist() == [0, 1e-3]
    assert full.get_ydata().tolist() == [6, 11]  # lambda = 0 is the same training for both
    assert prior.get_ydata().tolist() == [6, 6]
    assert entropy.collections[0].get_paths()[0].vertices[:, 1].max() == pytest.approx(12)

"""Metrics draw themselves, as torchmetrics' do; figures come as PDF and SVG where the environment says so."""

import pytest
import torch
from matplotlib import rcParams
from matplotlib.figure import Figure

from netprism.figures._common import FORMATS, save, styled
from netprism.metrics import DiscardingMetric


def test_a_metric_draws_its_quantities_over_the_layers():
    metric = DiscardingMetric(["a", "b"])
    metric.update({"a": torch.full((2, 1, 4, 4), -3.0), "b": torch.full((2, 1, 4, 4), -1.0)})
    figure, (axes,) = metric.plot()
    assert isinstance(figure, Figure)
    assert axes.get_title() == "SID"
    assert list(axes.lines[0].get_ydata()) == [-3, -1]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b"]
    _, (axes,) = metric.plot({"before": metric.compute(), "after": {"SID/a": 1.0, "SID/b": 2.0}})
    assert [line.get_label() for line in axes.lines] == ["before", "after"]
    with pytest.raises(ValueError, match="ax is given"):
        metric.plot(ax=axes)
    with pytest.raises(ValueError, match="no number of a layer"):
        metric.plot({"whole": 1.0})


def test_vector_formats_lie_beside_the_png(tmp_path, monkeypatch):
    before = dict(rcParams)
    figure = styled(lambda: Figure(figsize=(1, 1)))()
    monkeypatch.setenv(FORMATS, "pdf, svg")
    save(figure, tmp_path / "a.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pdf", "a.png", "a.svg"]
    assert dict(rcParams) == before
    monkeypatch.setenv(FORMATS, "eps")
    with pytest.raises(ValueError, match="NETPRISM_FIGURES is 'eps'; expected pdf, svg"):
        save(figure, tmp_path / "b.png")

"""Metrics draw themselves, as torchmetrics' do; figures come as PDF and SVG where the environment says so."""

import pytest
import torch
from matplotlib import rcParams
from matplotlib.figure import Figure
from torch import nn

from netprism import record_gates, strict_information_discarding, transformation_complexity
from netprism.figures._common import FORMATS, save, styled
from netprism.knowledge.points import KnowledgePointCounts
from netprism.metrics import ComponentMetric, DiscardingMetric, ProjectedSamples
from netprism.plots import plot_maps


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


def test_results_draw_themselves_over_layers_over_orders_and_as_maps():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
    x = torch.randn(9, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), record_gates(net) as gates:
        net(x)
    complexity = transformation_complexity(gates.packed, torch.arange(9) % 3)
    _, axes = complexity.plot()
    entropy = next(each for each in axes if each.get_title() == "entropy")
    assert list(entropy.lines[0].get_ydata()) == pytest.approx(list(complexity.entropy.values()))
    found = strict_information_discarding(net, "2", x, num_vjps=2)
    figure, axes = found.plot()
    assert len(axes) == 8
    shown = torch.tensor(axes[1].images[0].get_array().data)
    torch.testing.assert_close(shown, found.entropy_map[1].mean(0))
    assert figure.axes[-1].get_ylabel() == "H of a pixel, nats"
    metric = ComponentMetric([4, 7])
    f = x.flatten(1)
    metric.update(f, [f.roll(1, 1), 0.9 * f])
    for draws in (metric, metric.components()):
        significance = next(each for each in draws.plot()[1] if each.get_title() == "significance")
        assert list(significance.lines[0].get_ydata()) == pytest.approx(metric.components().significance)
        assert [label.get_text() for label in significance.get_xticklabels()] == ["4", "7"]
    with pytest.raises(ValueError, match=r"maps have shape \(9, 64\); expected \(N, C, H, W\)"):
        plot_maps(f, "")


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


def test_knowledge_points_are_drawn_where_they_are():
    mask = torch.tensor([[True, True, False, False], [False, False, False, True]])
    reliable = mask & torch.tensor([True, False, False, True])
    _, axes = KnowledgePointCounts(mask, reliable, mask.long(), mask.float()).plot()
    assert [each.get_title() for each in axes] == ["image 0", "image 1"]
    assert axes[0].images[0].get_array().tolist() == [[2, 1], [0, 0]]
    assert axes[1].images[0].get_array().tolist() == [[0, 0], [0, 2]]


def test_projected_samples_are_drawn_by_category():
    metric = ProjectedSamples()
    metric.update(torch.eye(3)[:2] * 3, torch.full((2, 2), 0.5).log(), torch.tensor([[0.9, 0.1], [0.2, 0.8]]))
    figure, (axes,) = metric.plot(names=["cat", "dog"])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["cat", "dog"]
    assert sorted(torch.tensor(points.get_offsets()).norm().item() for points in axes.collections) == [3, 3]
    with pytest.raises(ValueError, match="ax is given; expected None"):
        metric.plot(ax=axes)

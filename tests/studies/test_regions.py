import json
from collections import OrderedDict

import pytest
import torch
from torch import nn

from netprism.figures.regions import class_planes, region_densities
from netprism.knowledge.epoch_projection import NetworkFeatures
from netprism.knowledge.points import KnowledgePointCounts
from netprism.studies import regions


def network(channels):
    """Its layer ends with a ReLU; logits are a linear map of the mean of its regions."""
    maps = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.ReLU())
    maps[0].weight.data = torch.eye(channels).view(channels, channels, 1, 1)
    fc = nn.Linear(channels, channels, bias=False)
    fc.weight.data = 20 * torch.eye(channels)
    return nn.Sequential(OrderedDict(maps=maps, pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=fc)).eval()


def test_with_two_classes_the_margin_is_linear_and_a_shapley_value_is_the_region_s_own_gain():
    x = torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    seen = NetworkFeatures({"maps": x.relu()}, x.relu().mean(dim=(2, 3)), x[:, :, 0, 0])
    found = regions.shapley_of_regions(network(2), x, labels, "maps", seen, explained=4, permutations=2)
    beyond = (x.relu() - x.relu().mean(dim=0)).flatten(2)  # what a region brings in place of the mean
    sign = torch.where(labels == 0, 1.0, -1.0)
    gain = 20 * sign[:, None] * (beyond[:, 0] - beyond[:, 1]) / 9
    torch.testing.assert_close(found, gain[:4].double(), atol=1e-5, rtol=1e-4)


@pytest.fixture
def planted(monkeypatch):
    """In each image two of the four regions show its class; two show next to nothing."""
    labels = torch.arange(60) % 3
    x = 0.01 * torch.rand(60, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    x[range(60), labels, 0] += 1.0
    monkeypatch.setattr(regions, "tested_network", lambda run: (network(3), x, labels))
    monkeypatch.setattr(regions, "layers_of", lambda run: ["maps.0", "maps"])


def test_importance_of_planted_regions_is_what_they_contribute(planted, tmp_path):
    low, high = regions.importance(tmp_path, images=60, explained=5, permutations=4)
    assert high["shapley"] > 0.8
    assert high["shapley_raw"] > 0.8
    assert low["shapley"] != low["shapley"], "of the last layer alone"
    assert low["raw"] == pytest.approx(high["raw"], abs=1e-3), "a ReLU of positive numbers"


def test_regions_that_decide_are_followed_and_drawn(planted, monkeypatch, tmp_path):
    low, high = regions.followed(tmp_path, images=60)
    assert high["regions"] == 2
    assert high["cosine"] > 0.9
    assert low["cosine"] > high["all"]
    data = {"class_path": "netprism.datamodules.Digits", "init_args": {"image_size": 8}}
    (tmp_path / "config.yaml").write_text(json.dumps({"data": data, "model": {"init_args": {"net": {}}}}))
    figure = regions.densities([], [tmp_path])["densities"]
    assert [axes.get_title() for axes in figure.axes] == ["maps.0", "maps"]


def test_the_vertical_axis_is_the_direction_of_the_class_with_the_most_reliable_points():
    def counted(reliable):
        return {"a": ((2, 2), KnowledgePointCounts(reliable, reliable, reliable.long(), reliable.float()))}

    directions = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0.6, 0.8]])
    labels = torch.tensor([0, 1, 2])
    h = {"a": torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(0))}
    reliable = torch.tensor([[False] * 4, [True, True, False, False], [True, False, False, False]])
    (plane,) = class_planes(h, counted(reliable), directions, labels, "xyz")
    assert plane.names == ("y", "z")
    torch.testing.assert_close(plane.followed, h["a"][1, :2][:, [2, 1]])  # across is what z has beyond y
    torch.testing.assert_close(plane.arrows, torch.tensor([[0, 1], [0.8, 0.6]]))
    assert class_planes(h, counted(reliable & False), directions, labels, "xyz") == []
    figure = region_densities({"net": [plane, plane], "other": [plane]})
    assert [axes.get_title() for axes in figure.axes] == ["a", "a", "a", ""]


def test_a_run_without_knowledge_points_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text(json.dumps({"trainer": {"callbacks": None}}))
    with pytest.raises(ValueError, match="has no KnowledgePoints with layers; expected a run with that callback"):
        regions.layers_of(tmp_path)

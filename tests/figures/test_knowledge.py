import pytest
import torch

from netprism.figures.knowledge import along_layers, boundary, draw, ellipsoid, frame
from netprism.knowledge.points import KnowledgePointCounts, knowledge_points


def test_an_ellipsoid_is_one_standard_deviation_away():
    covariance = torch.tensor([[4.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]], dtype=torch.float64)
    mean = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    offsets = (ellipsoid(mean, covariance) - mean).flatten(0, 1)
    distances = (offsets @ torch.linalg.inv(covariance) * offsets).sum(dim=1)
    assert torch.allclose(distances, torch.ones_like(distances))


def test_a_flat_class_has_a_flat_ellipsoid():
    surface = ellipsoid(torch.zeros(3), torch.diag(torch.tensor([1.0, 1.0, 0.0])))
    assert surface[..., 2].abs().max() < 1e-6


def test_the_boundary_of_two_regions_side_by_side_leaves_out_the_edge_between_them():
    edges = boundary(torch.tensor([[True, True, False]]))
    assert len(edges) == 6
    assert [(1, 0), (1, 1)] not in edges
    assert [(2, 0), (2, 1)] in edges


def test_a_frame_has_the_moments_of_each_class():
    h = torch.randn(20, 4, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(20) % 2
    made = frame(3, {"conv": h}, labels, torch.eye(3)[:2], ["cat", "dog"])
    parts = made["layers"]["conv"]
    own = h[labels == 1].flatten(0, 1).double()
    assert torch.allclose(parts["means"][1], own.mean(dim=0))
    assert torch.allclose(parts["covariances"][1], (own - own.mean(0)).T @ (own - own.mean(0)) / len(own))
    assert made["names"] == ["cat", "dog"]


def test_a_class_without_images_has_moments_of_0():
    made = frame(0, {"conv": torch.rand(4, 2, 3)}, torch.zeros(4, dtype=torch.int64), torch.eye(3)[:2], ["0", "1"])
    assert (made["layers"]["conv"]["means"][1] == 0).all()
    assert (made["layers"]["conv"]["covariances"][1] == 0).all()


@pytest.mark.parametrize(("channels", "dimensions"), [(1, 3), (3, 2)])
def test_everything_is_drawn_also_in_two_dimensions(tmp_path, channels, dimensions):
    draws = torch.Generator().manual_seed(0)
    h = torch.randn(9, 6, dimensions, generator=draws)
    directions, labels = torch.eye(dimensions)[:2], torch.arange(9) % 2
    found = knowledge_points(h, directions, torch.tensor([0.5, 0.5]), labels, tau=0.6)
    frames = [frame(epoch, {"layer1.0": h}, labels, directions, ["0", "1"]) for epoch in (-1, 0)]
    history = [{"epoch": e, "points/layer1.0": 2.0, "reliable/layer1.0": 1.0, "ratio/layer1.0": 0.5} for e in (-1, 0)]
    images = torch.randn(8, channels, 12, 12, generator=draws)
    paths = draw(history, frames, images, {"layer1.0": ((2, 3), found)}, tmp_path)
    assert [path.name for path in paths] == [
        "knowledge_points.png", "knowledge_regions.png", "knowledge_ellipsoids.png",
        "knowledge_film_layer1.0.gif", "knowledge_film_layer1.0.html",
    ]  # fmt: skip
    assert all(path.stat().st_size > 1000 for path in paths)


def test_reliable_regions_are_followed_from_finer_layers_on():
    fine = torch.zeros(2, 16, 3)  # two images of 4 x 4 regions; in the last layer 2 x 2
    fine[0, [0, 1, 4, 5], 0] = torch.tensor([1.0, 1.0, 1.0, 5.0])
    fine[0, [2, 3, 6, 7], 1] = 3.0
    coarse = torch.tensor([[[4.0, 0, 0], [0, 4.0, 0], [0, 0, 1], [1, 1, 0]]]).repeat(2, 1, 1)
    labels = torch.tensor([0, 1])
    made = frame(0, {"fine": fine, "coarse": coarse}, labels, torch.eye(3)[:2], ["cat", "dog"])
    reliable = torch.tensor([[True, True, False, False], [False, True, False, False]])
    counts = KnowledgePointCounts(reliable, reliable, reliable.long(), reliable.float())
    towards, strengths = along_layers(made, {"fine": ((4, 4), counts), "coarse": ((2, 2), counts)})
    torch.testing.assert_close(towards, torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 1.0]]))
    torch.testing.assert_close(strengths, torch.tensor([[2.0, 3.0, 0.0], [4.0, 4.0, 4.0]]))

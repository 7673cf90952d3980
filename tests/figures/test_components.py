import json

import pytest
import torch

from netprism.components.measures import quantities
from netprism.figures.components import channel_maps, draw, tabulate
from netprism.metrics import ComponentMetric

ORDERS = (4, 7)


def found(labels=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    feature = torch.randn(9, 3, 4, 4, generator=generator)
    metric = ComponentMetric(ORDERS)
    head = (lambda f: f.mean((2, 3))) if labels else None
    metric.update(feature, [feature / 3, feature / 2], head, torch.arange(9) % 3 if labels else None)
    return metric.components()


def maps(positions=(4, 4)):
    shape = (2, 3, *positions)
    feature = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    images = torch.rand(2, 1, 8, 8)
    return {"images": images, "feature": feature, "approximations": torch.stack([feature / 3, feature])}


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("both", [True, False])
def test_draws_what_there_is(tmp_path, labels, both):
    components = {"train": found(labels)} | ({"test": found(labels, seed=1)} if both else {})
    row = quantities(components)
    history = [{"epoch": epoch, **row} for epoch in (-1, 0, 3)]
    paths = draw(history, components, maps(), 2, tmp_path, "mine")
    assert sorted(path.name for path in paths) == ["mine_bars.png", "mine_curves.png", "mine_maps.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_one_measurement_has_no_curves_and_a_vector_no_maps(tmp_path):
    components = {"train": found()}
    paths = draw([{"epoch": 0, **quantities(components)}], components, maps(positions=()), 2, tmp_path, "mine")
    assert [path.name for path in paths] == ["mine_bars.png"]


def test_maps_have_a_tile_for_each_picture():
    shown = maps()
    picture = channel_maps(shown["images"], shown["feature"], shown["approximations"], ORDERS, [2, 0]).axes[0]
    assert [label.get_text() for label in picture.get_xticklabels()] == ["image", "f", "l = 4", "l = 7"]
    assert [label.get_text() for label in picture.get_yticklabels()][:3] == ["channel 2: Φ", "c", "channel 0: Φ"]
    pixels = torch.as_tensor(picture.images[0].get_array())
    side = pixels.shape[1] // 4
    tiles = [pixels[:side, i * side : (i + 1) * side] for i in range(4)]
    assert torch.equal(tiles[1], tiles[3]), "Phi^(7) is f"
    assert not torch.equal(tiles[1], tiles[2])
    below = pixels[side : 2 * side, 2 * side : 3 * side]
    assert torch.equal(below, tiles[2]), "c^(4) is Phi^(4)"


def test_the_largest_channels_are_shown():
    shown = maps()
    shown["feature"][:, 1] *= 10
    picture = channel_maps(shown["images"], shown["feature"], shown["approximations"], ORDERS, 1).axes[0]
    assert picture.get_yticklabels()[0].get_text() == "channel 1: Φ"


def test_tables_hold_every_number(tmp_path):
    components = {"train": found(), "test": found(seed=1)}
    as_json, as_csv = tabulate(components, tmp_path, "mine")
    document = json.loads(as_json.read_text())
    assert document["test"]["significance"] == list(components["test"].significance)
    assert document["train"]["effectiveness"] == list(components["train"].effectiveness)
    assert len(document["train"]["overfitting"]) == 2
    assert b"\r" not in as_csv.read_bytes()
    lines = as_csv.read_text().splitlines()
    assert lines[0].startswith("split,order,significance,unexplained,variance")
    assert [line.split(",")[:2] for line in lines[1:]] == [
        [split, order] for split in ("train", "test") for order in ("4", "7", "all")
    ]

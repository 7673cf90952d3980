import numpy as np
import torch
from PIL import Image

from netprism.figures import discarding


def read(path):
    assert path.stat().st_size < 200_000
    return np.asarray(Image.open(path).convert("RGB"))


def test_maps_have_one_colour_scale_for_all_layers(tmp_path):
    flat = {"low": torch.full((2, 1, 4, 4), -5.0), "high": torch.full((2, 1, 4, 4), 1.0)}
    pixels = read(discarding.maps(torch.randn(2, 1, 4, 4), flat, tmp_path / "maps" / "a.png"))
    colours = {tuple(colour) for colour in pixels.reshape(-1, 3)}
    assert (68, 1, 84) in colours  # both ends of viridis
    assert (253, 231, 36) in colours or (253, 231, 37) in colours
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["a.png"]


def test_maps_of_colour_images_of_any_shape(tmp_path):
    maps = {"layer": torch.randn(3, 3, 6, 9)}
    one = read(discarding.maps(torch.randn(3, 3, 6, 9), maps, tmp_path / "a.png", rows=1))
    three = read(discarding.maps(torch.randn(3, 3, 6, 9), maps, tmp_path / "b.png"))
    assert three.shape[0] > one.shape[0]
    discarding.maps(torch.zeros(1, 2, 300, 300), {"layer": torch.zeros(1, 2, 300, 300)}, tmp_path / "c.png")


def test_nothing_to_show_in_a_map_is_no_error(tmp_path):
    read(discarding.maps(torch.zeros(1, 1, 4, 4), {"RU": torch.full((1, 1, 4, 4), torch.nan)}, tmp_path / "a.png"))


def test_curves_of_what_was_measured(tmp_path):
    history = [{"epoch": e, "SID/conv1": -3 + e, "SID/fc": -2, "concentration/fc": e / 10} for e in (-1, 0, 1)]
    both = read(discarding.curves(history, tmp_path / "a.png"))
    only = [{key: value for key, value in row.items() if "conc" not in key} for row in history]
    assert read(discarding.curves(only, tmp_path / "b.png")).shape[1] < both.shape[1]
    assert discarding.curves(history[:1], tmp_path / "c.png") is None
    assert not (tmp_path / "c.png").exists()

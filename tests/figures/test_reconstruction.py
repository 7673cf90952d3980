import pytest
import torch
from matplotlib.image import imread

from netprism.figures import reconstruction


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_draws_originals_and_a_row_for_each_layer(tmp_path, channels):
    images = torch.randn(3, channels, 6, 6, generator=torch.Generator().manual_seed(0))
    rebuilt = {"layer1": images + 0.1, "layer2.0": torch.zeros_like(images)}
    path = reconstruction.draw(images, rebuilt, tmp_path / "figures" / "reconstruction.png")
    picture = imread(path)
    assert [file.name for file in path.parent.iterdir()] == ["reconstruction.png"]
    assert picture.std() > 0.1


def test_equal_values_look_equal(tmp_path):
    """White in the original is white in what is rebuilt, also where that has another range."""
    images = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    exact = imread(reconstruction.draw(images, {"a": images}, tmp_path / "exact.png"))
    too_bright = imread(reconstruction.draw(images, {"a": images * 3}, tmp_path / "bright.png"))
    assert abs(exact[60:].mean() - too_bright[60:].mean()) < 0.05


def test_constant_images_are_no_error(tmp_path):
    assert reconstruction.draw(torch.ones(1, 1, 2, 2), {}, tmp_path / "flat.png").exists()

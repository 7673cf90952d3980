import pytest
import torch

from netprism.datamodules import Photos
from netprism.datamodules import photos as module
from netprism.datamodules.photos import PHOTOGRAPHS, TEN, cut, half_of, photograph

SMALL = {"train_images": 60, "test_images": 30}


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_every_photograph_is_shipped_and_both_halves_hold_a_large_patch(name, no_network):
    image = photograph(name, side=256, grayscale=True)
    assert image.dtype == torch.uint8
    assert min(image.shape[1:]) == 256
    assert image.float().std() > 10
    assert all(min(half_of(image, split).shape[1:]) >= 128 for split in ("train", "test"))


@pytest.mark.parametrize(("channels", "grayscale"), [(1, True), (3, False)])
@pytest.mark.parametrize("size", [32, 64])
def test_patches_are_normalised_and_of_the_declared_shape(channels, grayscale, size):
    data = Photos(image_size=size, grayscale=grayscale, train_images=400, test_images=30)
    images = torch.stack([image for image, _ in data.monitor_dataset("train")])
    assert images.shape == (400, channels, size, size) == (400, *data.shape)
    assert images.mean((0, 2, 3)).abs().max() < 0.1
    assert (images.std((0, 2, 3)) - 1).abs().max() < 0.1
    assert len(data.monitor_dataset("test")) == 30


def test_halves_have_no_pixel_in_common_and_lose_none():
    for shape in ((1, 4, 7), (1, 7, 4), (1, 5, 5)):
        image = torch.arange(shape[1] * shape[2]).reshape(shape)
        parts = [half_of(image, split).flatten().tolist() for split in ("train", "test")]
        assert sorted(parts[0] + parts[1]) == image.flatten().tolist()


def test_a_patch_is_a_square_of_its_own_half():
    data = Photos(**SMALL, image_size=16)
    for split in ("train", "test"):
        source = data.read(split)
        for patch, label in list(source)[:10]:
            half = half_of(photograph(TEN[label], 256, grayscale=True), split)
            windows = half.unfold(1, 16, 1).unfold(2, 16, 1)
            assert (windows == patch[:, None, None]).all((0, 3, 4)).any()


def test_places_are_all_possible_ones():
    image = torch.arange(12).reshape(1, 3, 4)
    corners = cut(image, 500, 2, torch.Generator().manual_seed(0))[:, 0, 0, 0]
    assert corners.unique().tolist() == [0, 1, 2, 4, 5, 6]
    assert cut(image, 1, 2, torch.Generator().manual_seed(0))[0, 0].diff(dim=0).tolist() == [[4, 4]]


def test_classes_are_balanced_and_seeded():
    first = Photos(**SMALL).read("train")
    assert first.targets.bincount().tolist() == [6] * 10
    torch.manual_seed(1)
    assert torch.equal(Photos(**SMALL).read("train").images, first.images)
    assert not torch.equal(Photos(**SMALL, seed=1).read("train").images, first.images)


def test_photographs_are_chosen_by_name():
    data = Photos(**SMALL, photographs=["ihc", "grass"], grayscale=False)
    source = data.read("test")
    assert (data.num_classes, data.classes) == (2, ("ihc", "grass"))
    red, green, blue = source.images[source.targets == 1].unbind(1)
    assert torch.equal(red, green)
    assert torch.equal(green, blue)
    assert not torch.equal(*source.images[source.targets == 0].unbind(1)[:2])


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"photographs": ["grass", "lena"]}, r"^photographs has 'lena'; expected names of astronaut, brick, .*rocket$"),
        ({"photographs": ["grass"]}, r"^photographs is \['grass'\]; expected two or more different names$"),
        ({"photographs": ["grass", "grass"]}, "expected two or more different names$"),
        ({"image_size": 0}, "^image_size is 0; expected 1 to 128, half of side=256$"),
        ({"image_size": 129}, "^image_size is 129; expected 1 to 128"),
        ({"train_images": 9}, "^train_images is 9; expected at least 10, one per photograph$"),
        ({"test_images": 9}, "^test_images is 9; expected at least 10, one per photograph$"),
    ],
)
def test_impossible_options_are_named(options, line):
    with pytest.raises(ValueError, match=line):
        Photos(**options)


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"^Photos needs scikit-image for 'astronaut': pip install scikit-im"):
        Photos(**SMALL).read("train")
    monkeypatch.undo()
    monkeypatch.setitem(PHOTOGRAPHS, "brick", (("skimage", "data"), "gone.png", ""))
    with pytest.raises(FileNotFoundError, match=r"gone\.png is missing; install a scikit-image that ships it"):
        Photos(**SMALL).read("train")

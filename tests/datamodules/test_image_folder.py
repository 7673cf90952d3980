import csv

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from netprism.cli.errors import users_error
from netprism.datamodules import ImageFolder
from netprism.datamodules.image_files import Geometry, ImageFiles, ImageTable, SegmentFile, UnreadableImageError

KEPT = 8  # pixels


def write(path, size=(KEPT, KEPT), colour=(255, 0, 0), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path):
    """Ten pictures of each of two classes, red and blue, in one folder."""
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        for number in range(10):
            write(tmp_path / "images" / name / f"{number}.png", colour=colour)
    return tmp_path / "images"


def data(root, **options):
    return ImageFolder(root=str(root), **({"image_size": KEPT, "num_workers": 0} | options))


def plain(module, split="train"):
    """Images in [0, 255]."""
    mean, std = (torch.tensor(each)[:, None, None] for each in (module.mean, module.std))
    return [((item[0] * std + mean) * 255).round() for item in module.monitor_dataset(split)]


def test_one_folder_is_divided_by_class_and_seed(folder):
    found = data(folder, val_fraction=0.3)
    assert (found.classes, found.num_classes, found.shape) == (("blue", "red"), 2, (3, 8, 8))
    paths = {split: set(found.read(split).table.paths) for split in ("train", "test")}
    assert not paths["train"] & paths["test"]
    assert len(paths["train"] | paths["test"]) == 20
    assert found.monitor_dataset("test").targets.bincount().tolist() == [3, 3]
    assert set(data(folder, val_fraction=0.3).read("test").table.paths) == paths["test"]
    assert set(data(folder, val_fraction=0.3, seed=1).read("test").table.paths) != paths["test"]
    blue = torch.tensor([0.0, 0.0, 255.0])[:, None, None].expand(3, 8, 8)
    assert torch.equal(plain(found)[0], blue)


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_two_folders_are_the_splits(tmp_path, held_out):
    for split, count in (("train", 3), (held_out, 2)):
        for name in ("b", "a"):
            for number in range(count):
                write(tmp_path / split / name / "inner" / f"{number}.jpg")
    write(tmp_path / "train" / "a" / ".hidden.jpg").write_bytes(b"")
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    found = data(tmp_path)
    assert found.classes == ("a", "b")
    assert [found.monitor_dataset(split).targets.tolist() for split in ("train", "test")] == [
        [0] * 3 + [1] * 3,
        [0, 0, 1, 1],
    ]


def test_classes_and_samples_are_chosen(tmp_path):
    names = ["ä", "b", "c", "d"]
    for name in names:
        for number in range(3 if name == "b" else 10):
            write(tmp_path / name / f"{number}.png")
    assert data(tmp_path, classes=2).classes == ("b", "c")
    drawn = {data(tmp_path, classes=2, class_seed=seed).classes for seed in range(6)}
    assert len(drawn) > 1
    two = data(tmp_path, classes=["a\u0308", "d"])  # as some file systems write an ä
    assert two.classes == ("ä", "d")
    assert two.monitor_dataset("train").targets.bincount().tolist() == [8, 8]
    few = data(tmp_path, train_samples=10)
    assert sorted(few.monitor_dataset("train").targets.bincount().tolist()) == [2, 2, 3, 3]
    larger = data(tmp_path, train_samples=14)
    assert larger.monitor_dataset("train").targets.bincount().tolist() == [2, 4, 4, 4]  # two of b are all there are
    assert set(few.monitor_dataset("train").indices.tolist()) < set(larger.monitor_dataset("train").indices.tolist())


def gradient(width, height):
    """A picture whose red is the column and whose green the row."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))


def one(path, geometry, **options):
    known = {key: options.pop(key) for key in ("boxes", "segments") if key in options}
    return ImageFiles(ImageTable([path], torch.zeros(1, dtype=torch.long), **known), geometry, **options)


def test_the_middle_is_cut_out_or_all_is_stretched(tmp_path):
    gradient(40, 20).save(tmp_path / "wide.png")
    columns = one(tmp_path / "wide.png", Geometry((20, 20)))[0][0][0, 0]
    assert columns.tolist() == list(range(10, 30))
    columns = one(tmp_path / "wide.png", Geometry((20, 20), fit="stretch"))[0][0][0, 0]
    assert columns.float().diff().mean() == pytest.approx(2, abs=0.1)


def test_boxes_and_segments_go_through_the_geometry_of_the_image(tmp_path):
    """Whatever is cut out, the mask is where the image shows the object."""
    pixels = np.zeros((60, 90, 3), np.uint8)
    pixels[10:30, 40:80] = 255
    Image.fromarray(pixels).save(tmp_path / "object.png")
    write(tmp_path / "mask.png", (90, 60), (0, 0, 0))
    Image.fromarray(pixels[..., 0]).save(tmp_path / "mask.png")
    box = torch.tensor([[40.0, 10.0, 80.0, 30.0]])
    for geometry in (
        Geometry((30, 45)),
        Geometry((24, 24)),
        Geometry((24, 24), fit="stretch"),
        Geometry((24, 24), crop="box", margin=1.5, fit="stretch"),
        Geometry((25, 25), crop="box", margin=4, fit="crop"),  # cut off at the left, the top and the right
    ):
        for known in ({"boxes": box}, {"boxes": box, "segments": [SegmentFile(tmp_path / "mask.png")]}):
            files = one(tmp_path / "object.png", geometry, **known)
            shown, mask = files[0][0][0] > 127, files.mask(0)
            assert 0 < mask.float().mean() < 1
            assert (shown != mask).float().mean() < 0.05, (geometry, known)
    assert one(tmp_path / "object.png", Geometry((20, 20), crop="box", fit="stretch"), boxes=box)[0][0].min() > 127


def test_a_jpeg_is_decoded_smaller_where_that_suffices(tmp_path):
    x, y = np.meshgrid(np.linspace(0, 6, 997), np.linspace(0, 9, 803))
    waves = (127 + 100 * np.stack([np.sin(x), np.cos(y), np.sin(x * y / 9)], -1)).astype(np.uint8)
    Image.fromarray(waves).save(tmp_path / "large.jpg", quality=95)
    Image.fromarray(waves).save(tmp_path / "large.png")
    for geometry in (Geometry((32, 32)), Geometry((32, 48), crop="box", margin=1.2, fit="stretch")):
        box = torch.tensor([[300.0, 250.0, 700.0, 650.0]])
        small, whole = (one(tmp_path / f"large.{kind}", geometry, boxes=box)[0][0].int() for kind in ("jpg", "png"))
        assert (small - whole).abs().float().mean() < 1.5


def test_kinds_of_files_are_read_rightly(tmp_path):
    levels = (np.arange(64).reshape(8, 8) * 1000).astype(np.uint16)
    Image.fromarray(levels).save(tmp_path / "16.png")
    grey = torch.from_numpy((levels >> 8).astype(np.uint8))
    assert torch.equal(one(tmp_path / "16.png", Geometry((8, 8)))[0][0], grey.expand(3, 8, 8))
    assert one(tmp_path / "16.png", Geometry((8, 8)), grayscale=True)[0][0].shape == (1, 8, 8)
    for name, mode, options in (
        ("cmyk.jpg", "CMYK", {}),
        ("grey.jpg", "L", {}),
        ("palette.png", "P", {}),
        ("la.png", "LA", {}),
    ):
        path = write(tmp_path / name, colour=(204, 204, 204), mode=mode, **options)
        assert (one(path, Geometry((8, 8)))[0][0].int() - 204).abs().max() <= 3, name
    turned = gradient(20, 10)
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned to the right
    turned.save(tmp_path / "turned.png", exif=exif)
    shown = one(tmp_path / "turned.png", Geometry((20, 10)), as_displayed=True)[0][0]
    assert (shown[0, :, 0].tolist(), shown[1, 0].tolist()) == (list(range(20)), list(range(10))[::-1])


def test_masks_and_boxes_reach_the_monitors(folder):
    for name in ("red", "blue"):
        for number in range(9):
            mask = np.zeros((KEPT, KEPT), np.uint8)
            mask[:4] = 1
            path = folder / "masks" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(path)
    found = data(folder, masks="masks")
    assert found.classes == ("blue", "red")
    _, _, masks = next(iter(DataLoader(found.monitor_dataset("train"), batch_size=16)))
    assert (masks.shape, masks.dtype) == ((16, KEPT, KEPT), torch.bool)
    assert {int(mask.sum()) for mask in masks} <= {32, 0}  # nothing where it is not known
    with (folder / "boxes.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "left", "top", "right", "bottom"], ["red/3.png", 2, 0, 6, 4]])
    boxes = data(folder, boxes="boxes.csv", val_fraction=0.1)
    paths = [path.parts[-2:] for path in boxes.read("train").table.paths]
    masks = [mask for *_, mask in boxes.monitor_dataset("train")]
    if ("red", "3.png") in paths:
        assert masks[paths.index(("red", "3.png"))].nonzero().tolist() == [
            [y, x] for y in range(4) for x in range(2, 6)
        ]
    assert sum(bool(mask.any()) for mask in masks) <= 1


def test_monitors_images_are_decoded_once(folder, monkeypatch):
    found = data(folder, num_workers=2)
    dataset = found.monitor_dataset("train")
    first = dataset.__getitems__([0, 5, 9])
    monkeypatch.setattr(ImageFiles, "__getitem__", lambda self, index: pytest.fail("decoded again"))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, [dataset[i] for i in (0, 5, 9)], strict=True))
    assert found.monitor_dataset("train")[5][1] == first[1][1]
    none = data(folder, cache_mib=0).monitor_dataset("train")
    monkeypatch.undo()
    assert torch.equal(none[5][0], none[5][0])


def test_augmentation_depends_on_seed_epoch_and_image_alone(tmp_path):
    for name in ("a", "b"):
        for number in range(6):
            (tmp_path / name).mkdir(exist_ok=True)
            gradient(40 + number, 30).save(tmp_path / name / f"{number}.png")

    def images(workers=0, epoch=0):
        loader = data(tmp_path, augment=True, rand_augment=True, num_workers=workers, batch_size=5).train_dataloader()
        loader.sampler.set_epoch(epoch)
        return torch.cat([batch for batch, _ in loader])

    torch.manual_seed(1)
    before, first = torch.get_rng_state(), images()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(first, images(workers=1))
    assert not torch.equal(first, images(epoch=1))
    assert not any(image[0].allclose(other) for image in first for other in plain(data(tmp_path)))


def put(path, content=b""):
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("break_it", "options", "line"),
    [
        (lambda f: None, {"root": "nowhere"}, "root nowhere is missing; expected a folder with a folder of images per"),
        (
            lambda f: [write(f / "train" / name / "0.png") for name in "ab"],
            {},
            "val is missing, though there is a folder for train; expected both or none",
        ),
        (lambda f: (f / "val").mkdir(), {}, "train is missing, though there is a folder for val"),
        (lambda f: (f / "empty").mkdir(), {}, "empty holds no images; expected files of .bmp"),
        (lambda f: [p.unlink() for p in (f / "red").glob("[1-9].png")], {}, "red has 1 images; expected some to train"),
        (lambda f: None, {"classes": ["red", "green"]}, r"^classes has 'green'; expected names of blue, red$"),
        (lambda f: None, {"classes": 3}, "^classes is 3; expected at most 2, the number of classes$"),
        (lambda f: None, {"masks": "masks"}, "masks is missing; expected a folder of PNGs"),
        (lambda f: None, {"boxes": "boxes.csv"}, "no table of boxes"),
        (
            lambda f: (f / "masks").mkdir(),
            {"masks": "masks"},
            "masks has no mask of any image; expected .*png for",
        ),
        (
            lambda f: put(f / "b.csv", b"image,left,top,right,bottom\nx.png,1,1,2,2\n"),
            {"boxes": "b.csv"},
            "b.csv names x.png, but .*x.png is missing",
        ),
        (
            lambda f: put(f / "b.csv", b"image,left,top,right,bottom\nred/1.png,3,1,2,2\n"),
            {"boxes": "b.csv"},
            "box of red/1.png is 3, 1, 2, 2; expected left < right and top < bottom",
        ),
    ],
)
def test_what_is_missing_is_one_line(folder, break_it, options, line):
    break_it(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=line) as caught:
        data(**({"root": folder} | options)).setup("fit")
    assert "\n" not in str(caught.value)


def test_a_class_that_only_the_held_out_images_have_or_lack(tmp_path):
    for place in ("train/a", "train/b", "val/a", "val/c"):
        write(tmp_path / place / "0.png")
    with pytest.raises(ValueError, match="c is no class of .*train, which has a, b"):
        data(tmp_path).setup("fit")
    (tmp_path / "val" / "c").rename(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match=r"val has 1 folders"):
        data(tmp_path).setup("fit")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_file_is_one_line_also_from_a_worker(folder, workers):
    path = folder / "red" / "4.jpg"
    write(path, (64, 64), quality=95)
    path.write_bytes(path.read_bytes()[:400])
    module = data(folder, num_workers=workers, val_fraction=0.05)
    with pytest.raises(UnreadableImageError) as caught:
        for split in ("train", "test"):
            for _ in DataLoader(module._dataset(split), num_workers=workers):
                pass
    assert str(caught.value).startswith(f"{path} cannot be read as an image (")
    assert "\n" not in str(caught.value)
    assert users_error(caught.value) is caught.value


def test_all_broken_files_are_named_before_the_training(folder):
    put(folder / "red" / "1.png")
    put(folder / "blue" / "2.png", b"no image")
    with pytest.raises(UnreadableImageError, match=r"^2 of 20 files are broken: .*2\.png .*1\.png"):
        data(folder, check_files=True).prepare_data()


def test_a_mask_of_another_size_and_a_box_outside_are_named(tmp_path):
    path = write(tmp_path / "image.png", (20, 10))
    mask = write(tmp_path / "mask.png", (10, 20))
    with pytest.raises(UnreadableImageError, match="mask.png is 10 x 20 pixels; expected 20 x 10"):
        one(path, Geometry((8, 8)), segments=[SegmentFile(mask)]).mask(0)
    outside = one(path, Geometry((8, 8), crop="box"), boxes=torch.tensor([[30.0, 2.0, 40.0, 8.0]]))
    with pytest.raises(
        UnreadableImageError, match="image.png: box is 30, 2, 40, 8; expected one with an area in 20 x 10"
    ):
        outside[0]
    over = one(path, Geometry((8, 8), crop="box", fit="stretch"), boxes=torch.tensor([[-5.0, 2.0, 40.0, 80.0]]))
    assert over[0][0].shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"crop": "boxes"}, "crop is 'boxes'; expected 'image' or 'box'"),
        ({"fit": "pad"}, "fit is 'pad'; expected 'crop' or 'stretch'"),
        ({"margin": 0}, "margin is 0; expected a number > 0"),
        ({"min_area": 2}, "min_area is 2; expected more than 0, at most 1"),
        ({"mean": [0.5]}, r"mean is \[0.5\]; expected 3 numbers"),
        ({"val_fraction": 1}, "val_fraction is 1; expected more than 0, less than 1"),
        ({"classes": 1}, "classes is 1; expected a number >= 2, names, or nothing"),
        ({"image_size": 0}, "image_size is 0; expected a number >= 1"),
    ],
)
def test_impossible_options_are_named(options, line):
    with pytest.raises(ValueError, match=line):
        data("anywhere", **options)

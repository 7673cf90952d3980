import argparse
import csv
import math

import numpy as np
import pytest
import torch
from PIL import Image

from netprism.cli.image_folder import ImageFolder, find_images
from netprism.cli.sid import sid
from netprism.datamodules.image_files import read_boxes
from netprism.discarding.layer_view import LayerView
from netprism.discarding.sensitivity import feature_scale
from netprism.discarding.sid import strict_information_discarding
from netprism.nets import ResNet

LAYERS = ["relu", "layer1", "layer2", "layer3"]


@pytest.fixture
def network(tmp_path):
    torch.manual_seed(0)
    net = ResNet(8, in_channels=1).eval()
    torch.save(net.state_dict(), tmp_path / "net.pt")
    return net


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(generator.integers(0, 256, (40, 20, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def run(tmp_path, folder, *options):
    out = sid(
        ["--checkpoint", str(tmp_path / "net.pt"), "--experiment", "classify/digits_resnet8", "--images", str(folder),
         "--out", str(tmp_path / "out"), "--num_vjps", "4", "--batch_size", "2", *options]
    )  # fmt: skip
    assert out == tmp_path / "out"
    return list(csv.DictReader((out / "sid.csv").read_text().splitlines()))


def test_the_table_has_the_numbers_of_the_function(tmp_path, network, folder):
    rows = run(tmp_path, folder)
    assert [(row["image"], row["layer"]) for row in rows] == [(f"{n}.png", layer) for n in range(3) for layer in LAYERS]
    (_, first, _), (_, second, _) = ImageFolder(find_images(folder), (32, 32), [0.305], [0.324]).batches(2)
    assert first.shape == (2, 1, 32, 32)
    scale = feature_scale(LayerView(network, LAYERS), [first, second], num_vjps=22)
    for number, x in ((0, first), (1, second)):
        expected = strict_information_discarding(network, LAYERS, x, num_vjps=4, scale=scale, seed=1000 * number)
        for i in range(len(x)):
            for layer in LAYERS:
                (row,) = [r for r in rows if r["image"] == f"{2 * number + i}.png" and r["layer"] == layer]
                assert float(row["SID"]) == pytest.approx(expected[layer].mean[i].item(), rel=1e-4)
                assert float(row["ratio"]) == pytest.approx(expected[layer].ratio[i].item(), rel=1e-4)
                assert row["concentration"] == ""


def test_it_draws_layers_and_maps(tmp_path, network, folder):
    run(tmp_path, folder, "--layers", "layer3", "--maps", "1")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "layers.png",
        "maps_000.png",
        "sid.csv",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (tmp_path / "out").glob("*.png"))


def test_masks_and_boxes_give_a_concentration(tmp_path, network, folder):
    masks = tmp_path / "masks"
    masks.mkdir()
    object_ = np.zeros((40, 20), dtype=np.uint8)
    object_[:20, 10:] = 255
    Image.fromarray(object_).save(masks / "0.png")
    (tmp_path / "boxes.csv").write_text("image,left,top,right,bottom\n0.png,10,0,20,20\n2.png,0,0,20,40\n")
    by_mask = run(tmp_path, folder, "--masks", str(masks))
    by_box = run(tmp_path, folder, "--boxes", str(tmp_path / "boxes.csv"))
    for mask, box in zip(by_mask, by_box, strict=True):
        assert mask["concentration"] == box["concentration"]  # the third box is all of the image: no number
        assert bool(mask["concentration"]) == (mask["image"] == "0.png")
    assert all(math.isfinite(float(row["concentration"])) for row in by_mask if row["concentration"])


def test_another_size_and_normalisation(tmp_path, network, folder):
    rows = run(
        tmp_path,
        folder,
        "--size",
        "16",
        "24",
        "--mean",
        ".5",
        "--std",
        ".5",
        "--method",
        "optimized",
        "--layers",
        "layer2",
    )
    assert all(abs(float(row["ratio"]) - 1) < 0.1 and row["error"] == "" for row in rows)


def test_images_are_normalised_and_stretched(tmp_path):
    Image.fromarray(np.full((8, 4, 3), [255, 0, 51], dtype=np.uint8)).save(tmp_path / "a.png")
    ((names, x, masks),) = ImageFolder(find_images(tmp_path), (6, 5), [0.5, 0.5, 0.0], [0.5, 0.25, 1.0]).batches(4)
    assert names == ["a.png"]
    assert masks is None
    torch.testing.assert_close(x, torch.tensor([1.0, -2.0, 0.2]).view(1, 3, 1, 1).expand(1, 3, 6, 5))


def test_mistakes_are_named(tmp_path, network, folder):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="holds no images; expected a folder with .bmp, .jpeg"):
        run(tmp_path, empty)
    with pytest.raises(ValueError, match="ResNet has no layer 'layer9', did you mean 'layer"):
        run(tmp_path, folder, "--layers", "layer9")
    with pytest.raises(ValueError, match="mean has 1 numbers and std 3"):
        run(tmp_path, folder, "--size", "8", "8", "--mean", "0", "--std", "1", "1", "1")
    with pytest.raises(ValueError, match="batch_size is 0"):
        run(tmp_path, folder, "--batch_size", "0")
    with pytest.raises(ValueError, match="expected --size, --mean and --std"):
        sid(["--checkpoint", "untrained", "--net", "resnet18", "--images", str(folder), "--layers", "layer1"])
    with pytest.raises(argparse.ArgumentError, match="invalid choice: 'exact'"):
        run(tmp_path, folder, "--method", "exact")
    (folder / "3.png").write_bytes(b"torn")
    with pytest.raises(OSError, match=r"3.png cannot be read as an image"):
        run(tmp_path, folder)
    (tmp_path / "boxes.csv").write_text("image,x,y\n0.png,1,2\n")
    with pytest.raises(ValueError, match="is no table of boxes .* expected columns image, left"):
        read_boxes(tmp_path / "boxes.csv")
    with pytest.raises(FileNotFoundError, match="no table of boxes"):
        read_boxes(tmp_path / "none.csv")

import argparse
import csv
import math

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1

import netprism
from netprism import InformationDiscarding, record_gates, transformation_complexity
from netprism.analysis.image_folder import FolderImages, folder_splits
from netprism.cli.analyze import analyze_command
from netprism.datamodules import ImageFolder
from netprism.datamodules.image_files import read_boxes
from netprism.discarding.layer_view import LayerView
from netprism.discarding.sensitivity import jacobian_norms
from netprism.discarding.sid import strict_information_discarding
from netprism.lightning_modules import InputDecoder
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


def run(tmp_path, folder, *options, monitors=("discarding",)):
    page = analyze_command(
        ["--checkpoint", str(tmp_path / "net.pt"), "--experiment", "classify/digits_resnet8", "--data", str(folder),
         "--out", str(tmp_path / "out"), "--num_vjps", "4", "--batch_size", "2", "--monitors", *monitors, *options]
    )  # fmt: skip
    assert page == tmp_path / "out" / "report.html"
    return list(csv.DictReader((page.parent / "per_image.csv").read_text().splitlines()))


def test_the_table_has_the_numbers_of_the_function(tmp_path, network, folder, capsys):
    rows = run(tmp_path, folder)
    assert [(row["image"], row["layer"]) for row in rows] == [(f"{n}.png", layer) for n in range(3) for layer in LAYERS]
    images = FolderImages(folder, (32, 32), [0.305], [0.324])
    order = torch.randperm(3, generator=torch.Generator().manual_seed(0)).tolist()  # the monitor's own
    batches = [torch.stack([images[i]["image"] for i in part]) for part in (order[:2], order[2:])]
    assert batches[0].shape == (2, 1, 32, 32)
    view = LayerView(network, LAYERS)
    norms = [jacobian_norms(view, x, seed=1000 * number) for number, x in enumerate(batches)]
    scale = {layer: float(torch.cat([norm[layer] for norm in norms]).mean()) for layer in LAYERS}
    for number, x in enumerate(batches):
        expected = strict_information_discarding(network, LAYERS, x, num_vjps=4, scale=scale, seed=1000 * number)
        for i in range(len(x)):
            for layer in LAYERS:
                name = f"{order[2 * number + i]}.png"
                (row,) = [r for r in rows if r["image"] == name and r["layer"] == layer]
                assert float(row["SID"]) == pytest.approx(expected[layer].mean[i].item(), rel=1e-4)
                assert float(row["ratio"]) == pytest.approx(expected[layer].ratio[i].item(), rel=1e-4)
    table = list(csv.DictReader((tmp_path / "out" / "analysis.csv").read_text().splitlines()))
    mean = np.mean([float(row["SID"]) for row in rows if row["layer"] == "layer1"])
    (found,) = [row for row in table if (row["quantity"], row["layer"]) == ("discarding/SID", "layer1")]
    assert float(found["value"]) == pytest.approx(mean, rel=1e-4)
    assert "discarding/SID/layer1" in capsys.readouterr().out
    written = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    pictures = ["figures/layers.png", "maps/discarding_SID_000.png"]
    assert written == ["analysis.csv", *pictures, "per_image.csv", "report.html"]


def test_masks_and_boxes_give_a_concentration(tmp_path, network, folder):
    masks = tmp_path / "masks"
    masks.mkdir()
    object_ = np.zeros((40, 20), dtype=np.uint8)
    object_[:20, 10:] = 255
    Image.fromarray(object_).save(masks / "0.png")
    (tmp_path / "boxes.csv").write_text("image,left,top,right,bottom\n0.png,10,0,20,20\n2.png,0,0,20,40\n")
    few = "--layers", "layer2"
    by_mask = run(tmp_path, folder, "--masks", str(masks), *few)
    by_box = run(tmp_path, folder, "--boxes", str(tmp_path / "boxes.csv"), *few)
    for mask, box in zip(by_mask, by_box, strict=True):
        assert mask["concentration"] == box["concentration"]  # the third box is all of the image: no number
        assert bool(mask["concentration"].replace("nan", "")) == (mask["image"] == "0.png")
    assert all(math.isfinite(float(row["concentration"])) for row in by_mask if row["concentration"])


def test_classes_are_the_subfolders_and_networks_stand_side_by_side(tmp_path, network, capsys):
    generator = np.random.default_rng(0)
    for number in range(8):
        path = tmp_path / "tree" / ("cat" if number % 2 else "dog") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    torch.save(ResNet(8, in_channels=1).state_dict(), tmp_path / "other.pt")
    analyze_command(
        ["--checkpoint", str(tmp_path / "net.pt"), str(tmp_path / "other.pt"),
         "--experiment", "classify/digits_resnet8",
         "--data", str(tmp_path / "tree"), "--size", "8", "8", "--out", str(tmp_path / "out"), "--num_vjps", "1",
         "--monitors", "gates", "discarding", "--layers", "layer1"]
    )  # fmt: skip
    table = list(csv.DictReader((tmp_path / "out" / "analysis.csv").read_text().splitlines()))
    information = [row for row in table if row["quantity"] == "gates/class_information" and not row["layer"]]
    assert [row["network"] for row in information] == ["net", "other"]
    assert all(0 < float(row["value"]) <= 1.001 for row in information)  # two classes
    assert (tmp_path / "out" / "maps" / "all_SID.png").is_file()
    assert "gates/entropy" in (tmp_path / "out" / "report.html").read_text()


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
    with pytest.raises(ValueError, match="no integer label"):
        run(tmp_path, folder, monitors=["knowledge"])
    with pytest.raises(ValueError, match="expected --size, --mean and --std"):
        analyze_command(["--checkpoint", "untrained", "--net", "squeezenet1_1", "--data", str(folder)])
    with pytest.raises(ValueError, match="--data is missing; expected a folder"):
        analyze_command(["--checkpoint", "untrained", "--net", "squeezenet1_1"])
    with pytest.raises(argparse.ArgumentError, match="invalid choice: 'exact'"):
        run(tmp_path, folder, "--method", "exact")
    with pytest.raises(ValueError, match="device is 'cuda:99'; expected one of this machine"):
        run(tmp_path, folder, "--device", "cuda:99")
    (folder / "3.png").write_bytes(b"torn")
    with pytest.raises(OSError, match=r"3.png cannot be read as an image"):
        run(tmp_path, folder)
    (tmp_path / "boxes.csv").write_text("image,x,y\n0.png,1,2\n")
    with pytest.raises(ValueError, match="is no table of boxes .* expected columns image, left"):
        read_boxes(tmp_path / "boxes.csv")
    with pytest.raises(FileNotFoundError, match="no table of boxes"):
        read_boxes(tmp_path / "none.csv")


def write_tree(root, *classes, number=4):
    generator = np.random.default_rng(0)
    for i in range(number * len(classes)):
        path = root / classes[i % len(classes)] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (9, 8, 3), dtype=np.uint8)).save(path)


def test_the_trees_of_a_training_are_read_as_the_training_reads_them(tmp_path, network):
    write_tree(tmp_path / "tree" / "train", "cat", "dog")
    write_tree(tmp_path / "tree" / "val", "cat", "dog", number=1)
    write_tree(tmp_path / "masks" / "val", "cat", number=1)
    options = "--size", "9", "9", "--layers", "layer1", "--masks", str(tmp_path / "masks")
    rows = run(tmp_path, tmp_path / "tree", *options, monitors=["gates", "discarding"])
    assert {row["image"] for row in rows} == {"val/cat/0.png", "val/dog/1.png"}
    table = list(csv.DictReader((tmp_path / "out" / "analysis.csv").read_text().splitlines()))
    assert {"gates/class_information", "gates/test/class_information"} <= {row["quantity"] for row in table}
    module = ImageFolder(str(tmp_path / "tree"), image_size=9, mean=[0.5] * 3, std=[0.25] * 3, fit="stretch")
    module.setup("fit")
    splits = folder_splits(tmp_path / "tree", (9, 9), [0.5] * 3, [0.25] * 3)
    for split, images in splits.items():
        theirs = module.monitor_dataset(split)
        assert len(images) == len(theirs)
        for ours, (image, label) in zip((images[i] for i in range(len(images))), theirs, strict=True):
            torch.testing.assert_close(ours["image"], image)
            assert ours["label"] == label
    write_tree(tmp_path / "tree" / "val", "bird", number=1)
    with pytest.raises(ValueError, match=r"val/bird is no class; expected one of cat, dog"):
        folder_splits(tmp_path / "tree", (9, 9), [0.5] * 3, [0.25] * 3)
    assert FolderImages(tmp_path / "tree" / "val", (4, 4), [0.0] * 3, [1.0] * 3).classes == ["bird", "cat", "dog"]
    with pytest.raises(ValueError, match=r"has no mask of any image; expected .*/cat/0.png, for example"):
        folder_splits(tmp_path / "tree" / "train", (4, 4), [0.0] * 3, [1.0] * 3, masks=tmp_path)


def test_decoders_of_a_checkpoint_give_the_uncertainty_of_the_reconstruction(tmp_path, network, folder):
    module = InputDecoder(network, ["layer1", "layer3"], input_shape=(1, 8, 8), width=2, blocks=1)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_epochs=1, default_root_dir=tmp_path, enable_checkpointing=False, **quiet)
    trainer.fit(module, DataLoader(torch.randn(4, 1, 8, 8), 2), DataLoader(torch.randn(4, 1, 8, 8), 2))
    trainer.save_checkpoint(tmp_path / "decoders.ckpt")
    options = "--size", "8", "8", "--layers", "layer1", "layer3"
    rows = run(tmp_path, folder, "--decoders", str(tmp_path / "decoders.ckpt"), *options)
    decoders = {layer: module.decoder(layer) for layer in ("layer1", "layer3")}
    looking = InformationDiscarding(["layer1", "layer3"], 64, decoders, num_scale_images=64, num_vjps=4, batch_size=2)
    images = FolderImages(folder, (8, 8), [0.305], [0.324])
    expected = netprism.analyze(network, images, [looking], names=images.names).per_image()
    found = {(row["image"], row["layer"]): float(row["RU"]) for row in rows}
    assert found == {(row["image"], row["layer"]): pytest.approx(row["RU"], rel=1e-4) for row in expected}


def test_weights_of_the_library_come_with_their_normalisation(tmp_path, folder, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # where a download would have put them
    weights = squeezenet1_1(num_classes=1000).state_dict()
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    name = SqueezeNet1_1_Weights.DEFAULT.url.rpartition("/")[2]
    torch.save(weights, tmp_path / "hub" / "checkpoints" / name)
    given = ["--net", "torchvision.models.squeezenet1_1", "--weights", "DEFAULT", "--data", str(folder)]
    analyze_command([*given, "--size", "40", "40", "--monitors", "gates", "--out", str(tmp_path / "out")])
    table = list(csv.DictReader((tmp_path / "out" / "analysis.csv").read_text().splitlines()))
    found = {row["layer"]: float(row["value"]) for row in table if row["quantity"] == "gates/entropy"}
    net = squeezenet1_1().eval()
    net.load_state_dict(weights)
    prepare = SqueezeNet1_1_Weights.DEFAULT.transforms()
    images = FolderImages(folder, (40, 40), prepare.mean, prepare.std)
    with torch.no_grad(), record_gates(net) as gates:
        net(torch.stack([images[i]["image"] for i in range(3)]))
    expected = transformation_complexity(gates.packed)
    assert found[""] == pytest.approx(expected.joint_entropy, rel=1e-4)
    assert "downloading" not in capsys.readouterr().err.lower()


def test_images_are_normalised_and_stretched(tmp_path):
    Image.fromarray(np.full((8, 4, 3), [255, 0, 51], dtype=np.uint8)).save(tmp_path / "a.png")
    images = FolderImages(tmp_path, (6, 5), [0.5, 0.5, 0.0], [0.5, 0.25, 1.0])
    assert images.names == ["a.png"]
    assert list(images[0]) == ["image"]
    torch.testing.assert_close(images[0]["image"], torch.tensor([1.0, -2.0, 0.2]).view(3, 1, 1).expand(3, 6, 5))

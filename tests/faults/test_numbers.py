"""Numbers that are none, and data that are not all there, as the user of the command meets them."""

import re

import pytest
import torch
import yaml
from PIL import Image
from small_runs import UNMONITORED, arguments, environment_of_a_desk, rows, said

from netprism.lightning_modules import Classifier

SILENT = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
SMALL_DATA = ["--data.image_size=32", "--data.batch_size=8", "--trainer.logger=false", UNMONITORED]


@pytest.fixture(autouse=True)
def at_a_desk(tmp_path, monkeypatch):
    environment_of_a_desk(monkeypatch, tmp_path)


def break_weights(module):
    """In place of `on_train_epoch_start`."""
    if module.current_epoch == 1:
        torch.nn.init.constant_(next(module.parameters()), float("nan"))


def test_a_loss_that_is_nan_ends_in_one_line_and_keeps_the_epochs_before(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Classifier, "on_train_epoch_start", break_weights)
    line = said(capsys, "fit", *arguments(epochs=3))
    assert line.startswith("train/loss is nan in epoch 1, step 1: try a smaller learning rate")
    (folder,) = tmp_path.glob("runs/gates/digits_mlp/*")
    assert list(rows(folder)) == [0]
    content = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["epoch"] == 0
    assert all(value.isfinite().all() for value in content["state_dict"].values())


def test_an_image_that_is_changed_during_the_training_is_named(tmp_path, capsys, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(6):
            Image.new("L", (8, 8), 40 * number).save(tmp_path / "images" / name / f"{number}.png")

    def cut(module):
        if module.current_epoch == 1:
            for file in (tmp_path / "images" / "a").iterdir():
                file.write_bytes(file.read_bytes()[:20])

    monkeypatch.setattr(Classifier, "on_train_epoch_start", cut)
    data = {"root": str(tmp_path / "images"), "image_size": 8, "num_workers": 0}
    net = {"class_path": "netprism.nets.ResNet", "init_args": {"depth": 8}}
    config = tmp_path / "own.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "model": {"class_path": "netprism.lightning_modules.Classifier", "init_args": {"net": net}},
                "data": {"class_path": "netprism.datamodules.ImageFolder", "init_args": data},
                "trainer": {"max_epochs": 3},
            }
        )
    )
    line = said(capsys, "fit", f"--config={config}", *SILENT)
    assert re.search(r"images/a/\d\.png", line)
    (folder,) = tmp_path.glob("runs/own/*")
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 0


def test_a_data_set_of_which_a_part_is_missing_is_one_line(make_mnist, capsys, monkeypatch, no_network):
    root = make_mnist()
    file = root / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:1000])
    remedy = f"delete it and set download=True, or copy the files of MNIST to {file.parent}"
    line = said(capsys, "fit", "--config=gates/mnist_lenet", f"--data.root={root}", *SMALL_DATA)
    assert line == f"MNIST: {file} is broken; {remedy}"
    file.unlink()
    line = said(capsys, "fit", "--config=gates/mnist_lenet", f"--data.root={root}", *SMALL_DATA)
    assert line.startswith(f"MNIST: {file} is missing and no download succeeded")


def test_an_archive_that_was_cut_short_is_one_line(make_cifar10, capsys, no_network):
    root = make_cifar10(packed=True)
    archive = root / "cifar-10-python.tar.gz"
    archive.write_bytes(archive.read_bytes()[:1000])
    line = said(capsys, "fit", "--config=classify/cifar10_resnet20", f"--data.root={root}", "--data.batch_size=8")
    assert line.startswith(f"CIFAR10: {root}/cifar-10-batches-py/data_batch_1 is missing and no download succeeded")

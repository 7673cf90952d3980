"""The same seed gives the same training, and an interrupted one that goes on is the uninterrupted one, to the bit."""

import csv
import functools
import random

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from PIL import Image
from pytorch_lightning.callbacks import Checkpoint
from third_party_modules import Net, Stranger, loaders
from torch.multiprocessing import ProcessRaisedException

from netprism.callbacks import ComplexityPenalty, ExactResume, GatingEntropy, InformationDiscarding, KnowledgePoints
from netprism.callbacks.training.exact_resume import random_state
from netprism.datamodules import Digits, ImageFolder
from netprism.lightning_modules import (
    Classifier,
    Disentangler,
    Distillation,
    InputDecoder,
    RegionProjection,
    ReliableDisentangler,
    SampleProjection,
)
from netprism.loggers import ResumableCSVLogger
from netprism.nets import MLP, ResNet

pytestmark = pytest.mark.usefixtures("short_annealing")

DATA = functools.partial(Digits, image_size=8, train_samples=24, batch_size=8, augment=True)
ADAM = functools.partial(torch.optim.Adam, lr=1e-2)


class Interrupted(Exception):
    pass


class Interrupt(Checkpoint):  # which Lightning calls after all other callbacks
    """Saves a checkpoint and breaks off, after a batch or at the end of an epoch."""

    def __init__(self, path=None, epoch=None, batch=None):
        self.path, self.epoch, self.batch = path, epoch, batch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (self.epoch, self.batch):
            self.stop(trainer)

    def on_train_epoch_end(self, trainer, pl_module):
        if self.batch is None and trainer.current_epoch == self.epoch:
            self.stop(trainer)

    def stop(self, trainer):
        trainer.save_checkpoint(self.path)
        raise Interrupted


class Draws(pl.LightningModule):
    """A training that draws from every source of random numbers, and logs in several ways."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.Dropout(), torch.nn.Linear(8, 10)
        )

    def training_step(self, batch):
        x, y = batch
        scale = 1 + random.random() + np.random.rand()
        loss = F.cross_entropy(self.net(x * scale), y)
        self.log("loss", loss, on_step=True, on_epoch=True, sync_dist=True)
        self.log("most", loss, reduce_fx="max", on_step=False, on_epoch=True, sync_dist=True)
        self.log("scale", scale, reduce_fx="sum", on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch):
        self.log("val/loss", F.cross_entropy(self.net(batch[0]), batch[1]), sync_dist=True)

    def configure_optimizers(self):
        return ADAM(self.parameters())


def tiny_net():
    return ResNet(8, in_channels=1, width=2)


def trained_net():
    torch.manual_seed(1)
    return tiny_net()


def monitors():
    return [
        GatingEntropy(num_images=16, measure_untrained=False),
        InformationDiscarding(["layer3"], num_images=2, num_vjps=2, num_scale_images=2, measure_untrained=False),
        KnowledgePoints(["layer3"], images_per_class=1, classes=3, steps=2, num_compared=3, measure_untrained=False),
    ]


ANALYSES = {
    "draws": lambda: (Draws(), []),
    "classifier": lambda: (Classifier(tiny_net(), optimizer=ADAM), monitors()),
    "complexity loss": lambda: (
        Classifier(MLP((64, 12, 10)), optimizer=ADAM),
        [ComplexityPenalty(layers=-1, estimator="energy")],
    ),
    "disentangler": lambda: (Disentangler(trained_net(), "layer2", orders=(4, 7), width=1 / 64), []),
    "distillation": lambda: (
        Distillation(trained_net(), tiny_net(), ["layer2", "output"], optimizer=ADAM), []
    ),
    "decoder": lambda: (InputDecoder(trained_net(), ["layer2"], width=4, blocks=1), []),
    "sample projection": lambda: (SampleProjection(trained_net(), input_shape=(1, 8, 8), optimizer=ADAM), []),
    "sample projection by L-BFGS": lambda: (SampleProjection(trained_net(), input_shape=(1, 8, 8)), []),
    "region projection": lambda: (
        RegionProjection(trained_net(), ["layer2", "layer3"], (1, 8, 8), steps=3, num_compared=5), []
    ),
    "reliability": lambda: (
        ReliableDisentangler([trained_net(), tiny_net()], "layer2", orders=(4, 7), width=1 / 64, rounds=1), []
    ),
}  # fmt: skip


def fit(analysis, folder, interrupt=None, data=None, ckpt_path=None, seed=0, **options):
    pl.seed_everything(seed, workers=True)
    module, callbacks = ANALYSES[analysis]()
    settings = {
        "max_epochs": 2, "limit_val_batches": 1, "accelerator": "cpu", "devices": 1,
        "logger": ResumableCSVLogger(folder), "log_every_n_steps": 1, "enable_progress_bar": False,
        "enable_model_summary": False, "num_sanity_val_steps": 0,
    }  # fmt: skip
    trainer = pl.Trainer(callbacks=[ExactResume(), *callbacks, interrupt or Interrupt()], **(settings | options))
    data = (data or DATA)()
    try:
        trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    except (Interrupted, ProcessRaisedException) as error:
        if "Interrupted" not in repr(error):
            raise
        return None
    return {
        "weights": module.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "callbacks": [callback.state_dict() for callback in callbacks],
        "random": random_state(torch.device("cpu")),
        "curves": list(csv.DictReader((folder / "metrics.csv").read_text().splitlines())),
    }


def assert_same(a, b, where=""):
    """Equal to the bit, however nested."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{where}/{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a.nan_to_num(9e9), b.nan_to_num(9e9)), where
    else:
        assert a == b or a != a, where


@pytest.mark.parametrize("analysis", ANALYSES)
def test_goes_on_to_the_bit(analysis, tmp_path):
    expected = fit(analysis, tmp_path / "whole")
    for name, epoch, batch in (("at the end of an epoch", 0, None), ("within an epoch", 1, 1)):
        folder, checkpoint = tmp_path / name, tmp_path / f"{name}.ckpt"
        assert fit(analysis, folder, Interrupt(checkpoint, epoch, batch)) is None
        assert_same(fit(analysis, folder, ckpt_path=checkpoint), expected, name)


@pytest.mark.parametrize(
    ("epoch", "batch", "options"),
    [
        (1, 1, {"data": functools.partial(DATA, num_workers=2)}),
        (0, 0, {"devices": 2, "strategy": "ddp_fork", "max_epochs": 1}),
        (1, 0, {"limit_train_batches": 2}),
        (1, 1, {"max_steps": 6, "max_epochs": -1}),
        (1, 1, {"accumulate_grad_batches": 2}),
        (1, 0, {"val_check_interval": 2}),
    ],
    ids=["workers", "processes", "limit", "max_steps", "accumulate", "validation"],
)
def test_goes_on_within_an_epoch_whatever_the_trainer(epoch, batch, options, tmp_path):
    expected = fit("draws", tmp_path / "whole", **options)
    assert fit("draws", tmp_path / "half", Interrupt(tmp_path / "half.ckpt", epoch, batch), **options) is None
    assert_same(fit("draws", tmp_path / "half", ckpt_path=tmp_path / "half.ckpt", **options), expected)


@pytest.fixture
def files(tmp_path):
    """A data module of 24 training and 8 test files of noise, in two classes, varied at random and read by a worker."""
    noise = np.random.default_rng(0)
    for number in range(32):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (12, 12), np.uint8)).save(path)
    options = {"image_size": 8, "grayscale": True, "val_fraction": 0.25, "augment": True, "num_workers": 1}
    return functools.partial(ImageFolder, str(tmp_path / "images"), **options)


def test_files_go_on_within_an_epoch(tmp_path, files):
    files = functools.partial(files, batch_size=8)
    expected = fit("draws", tmp_path / "whole", data=files)
    assert fit("draws", tmp_path / "half", Interrupt(tmp_path / "half.ckpt", 1, 0), files) is None
    assert_same(fit("draws", tmp_path / "half", data=files, ckpt_path=tmp_path / "half.ckpt"), expected)


def test_two_processes_train_on_files_as_one(tmp_path, files):
    found = []
    for processes in ({"devices": 1}, {"devices": 2, "strategy": "ddp_fork"}):
        torch.manual_seed(0)
        module = Classifier(MLP((64, 12, 2)), optimizer=functools.partial(torch.optim.SGD, lr=0.1))
        quiet = {
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "default_root_dir": tmp_path,
        }
        trainer = pl.Trainer(max_epochs=2, accelerator="cpu", callbacks=[GatingEntropy()], **quiet, **processes)
        trainer.fit(module, files(batch_size=8 // processes["devices"]))
        found.append({**trainer.callback_metrics, **module.state_dict()})
    one, two = found
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-5, atol=1e-6, msg=key)


def test_without_it_lightning_does_not(tmp_path, monkeypatch):
    expected = fit("draws", tmp_path / "whole")
    monkeypatch.setattr(ExactResume, "on_save_checkpoint", pl.Callback.on_save_checkpoint)
    assert fit("draws", tmp_path / "half", Interrupt(tmp_path / "half.ckpt", 1, 1)) is None
    found = fit("draws", tmp_path / "half", ckpt_path=tmp_path / "half.ckpt")
    for key in ("weights", "random", "curves"):
        with pytest.raises(AssertionError):
            assert_same(found[key], expected[key])


def test_a_strangers_shuffled_loader_goes_on_at_the_end_of_an_epoch(tmp_path):
    def run(interrupt=None, ckpt_path=None):
        pl.seed_everything(0)
        module = Stranger(Net(dropout=0.5))
        trainer = pl.Trainer(
            max_epochs=3, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[ExactResume(), interrupt or Interrupt()],
        )  # fmt: skip
        trainer.fit(module, *loaders(), ckpt_path=ckpt_path, weights_only=True)
        return module.state_dict()

    expected = run()
    with pytest.raises(Interrupted):
        run(Interrupt(tmp_path / "half.ckpt", 0))
    assert_same(run(ckpt_path=tmp_path / "half.ckpt"), expected)


def test_other_processes_or_batches_are_told(tmp_path, caplog):
    assert fit("draws", tmp_path, Interrupt(tmp_path / "half.ckpt", 0, 0)) is None
    with pytest.raises(ValueError, match="middle of an epoch of 1 processes with batches of 8, here it is 1 .* of 4"):
        fit("draws", tmp_path, data=functools.partial(DATA, batch_size=4), ckpt_path=tmp_path / "half.ckpt")
    checkpoint = torch.load(tmp_path / "half.ckpt", weights_only=True)
    checkpoint[ExactResume.KEY] *= 2
    torch.save(checkpoint, tmp_path / "two.ckpt")
    assert fit("draws", tmp_path, ckpt_path=tmp_path / "two.ckpt") is not None
    assert "the checkpoint is of 2 processes, here there are 1: the random state is not restored" in caplog.text


def test_the_same_seed_gives_the_same_curves(tmp_path):
    first = fit("draws", tmp_path / "first")
    assert_same(fit("draws", tmp_path / "again", data=functools.partial(DATA, num_workers=2)), first)
    with pytest.raises(AssertionError):
        assert_same(fit("draws", tmp_path / "other", seed=1)["curves"], first["curves"])

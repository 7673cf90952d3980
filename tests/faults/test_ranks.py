"""Ranks that die, hang or have other data than the rest: the training ends in time and says why."""

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta

import pytest
import pytorch_lightning as pl
from deadline import deadline
from pytorch_lightning.strategies import DDPStrategy
from small_monitors import MONITORS, Module, shorten
from third_party_modules import Stranger, fit, images
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException
from torch.utils.data import DataLoader, IterableDataset, Subset

from netprism.callbacks import CheckEqualBatches
from netprism.datamodules import ImageDataModule
from netprism.datamodules.base import ImageTensors

BATCH = 8


class Dying(pl.Callback):
    """Ends the last rank in some way in its second step, and writes down that it has."""

    def __init__(self, folder, how):
        self.folder, self.how = folder, how

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1 and trainer.global_rank == trainer.world_size - 1:
            (self.folder / "dying").touch()
            self.how()


def error():
    raise KeyError("mine")


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    time.sleep(600)


def fit_two(folder, *callbacks, module=None, **options):
    with deadline(60):
        return fit(module or Stranger(), *callbacks, folder=folder, **{"devices": 2, "strategy": "ddp_fork"} | options)


# -- a rank that is gone


def test_a_rank_that_raises_ends_the_others_with_its_traceback(tmp_path):
    with pytest.raises(ProcessRaisedException, match=r"(?s)Process 1 .*in error\n.*KeyError: 'mine'"):
        fit_two(tmp_path, Dying(tmp_path, error))


def test_a_rank_that_is_killed_ends_the_others_and_is_named(tmp_path):
    with pytest.raises(ProcessExitedException, match="process 1 terminated with signal SIGKILL"):
        fit_two(tmp_path, Dying(tmp_path, kill))


def test_a_rank_that_hangs_is_given_up_after_the_time_of_the_process_group(tmp_path):
    patient = DDPStrategy(start_method="fork", timeout=timedelta(seconds=2))
    begin = time.monotonic()
    with pytest.raises(ProcessRaisedException, match=r"(?s)Process 0 .*Timed out waiting 2000ms"):
        fit_two(tmp_path, Dying(tmp_path, hang), strategy=patient)
    assert (tmp_path / "dying").exists()
    assert time.monotonic() - begin < 20


# -- ranks with other numbers of batches


class Uneven(Stranger):
    """Of the training images the first rank has a batch more than the others."""

    def train_dataloader(self):
        size = (3 if self.trainer.global_rank == 0 else 2) * BATCH
        return DataLoader(Subset(images(), range(size)), BATCH)


def train(folder, module, *callbacks, **options):
    """Without the loaders of the other tests."""
    settings = {
        "max_epochs": 1, "accelerator": "cpu", "devices": 2, "strategy": "ddp_fork", "logger": False,
        "use_distributed_sampler": False, "num_sanity_val_steps": 0, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder,
    }  # fmt: skip
    data = {key: options.pop(key) for key in ("train_dataloaders", "val_dataloaders", "datamodule") if key in options}
    trainer = pl.Trainer(callbacks=list(callbacks), **settings | options)
    with deadline(60):
        trainer.fit(module, **data)
    return trainer


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`", "ignore:.*does not have many workers")
def test_ranks_with_different_numbers_of_training_batches_are_refused(tmp_path):
    line = "ValueError: ranks 0 to 1 have 3, 2 training batches and would get out of step"
    with pytest.raises(ProcessRaisedException, match=line):
        train(tmp_path, Uneven(), CheckEqualBatches())


class Endless(IterableDataset):
    def __iter__(self):
        return iter(images(3 * BATCH))


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.parametrize("devices", [1, 2])
def test_loaders_without_a_length_are_not_compared(tmp_path, devices):
    strategy = "ddp_fork" if devices == 2 else "auto"
    loader = DataLoader(Endless(), BATCH)
    assert train(
        tmp_path, Stranger(), CheckEqualBatches(), train_dataloaders=loader, devices=devices, strategy=strategy
    )


class Images(ImageDataModule):
    """Noise on a pattern of the class; of five test images the first two of three ranks have two."""

    num_classes, shape, mean, std = 3, (1, 8, 8), (0.0,), (1.0,)

    def read(self, split):
        found = images(25 if split == "train" else 5)
        return ImageTensors(*found.tensors)


class Counts(pl.Callback):
    """Writes down how many batches a rank has had."""

    def __init__(self, folder):
        self.folder, self.training, self.validation = folder, 0, 0

    def on_train_batch_end(self, *args):
        self.training += 1

    def on_validation_batch_end(self, *args):
        self.validation += 1

    def on_train_end(self, trainer, pl_module):
        (self.folder / f"counts{trainer.global_rank}").write_text(f"{self.training} {self.validation}")


@pytest.mark.filterwarnings("ignore:knowledge. layer 'fc1' has one region")
def test_validation_may_be_uneven_and_our_training_data_never_are(tmp_path, monkeypatch):
    """Three ranks, of which the last has no second batch to validate and one image less to train on."""
    shorten(monkeypatch)
    monitors, data = [monitor() for monitor in MONITORS.values()], Images(batch_size=1)
    trainer = train(tmp_path, Module(), CheckEqualBatches(), *monitors, Counts(tmp_path), datamodule=data, devices=3)
    counts = [(tmp_path / f"counts{rank}").read_text() for rank in range(3)]
    assert counts == ["9 2", "9 2", "9 1"]
    for name in MONITORS:
        assert any(key.startswith(f"{name}/") for key in trainer.callback_metrics)


# -- under torchrun

DYING = """
import pytorch_lightning as pl

class Dying(pl.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1 and trainer.global_rank == 1:
            raise KeyError("mine")
"""


def test_torchrun_ends_all_ranks_and_names_the_one_that_died(tmp_path):
    (tmp_path / "dying.py").write_text(DYING)
    args = (
        "--config=gates/digits_mlp", "--trainer.callbacks=dying.Dying", "--trainer.max_epochs=1",
        "--trainer.enable_progress_bar=false", "--data.init_args.train_samples=64", "--data.init_args.batch_size=8",
    )  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("NETPRISM", "SLURM"))}
    environment |= {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", "PYTHONPATH": str(tmp_path)}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "netprism", "fit", *args]
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert "KeyError: 'mine'" in ended.stderr  # of the rank itself
    root_cause = ended.stderr.partition("Root Cause (first observed failure):")[2]
    assert "rank      : 1 (local_rank: 1)" in root_cause

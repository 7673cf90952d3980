import os
import signal

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from third_party_modules import Stranger, images, loaders
from torch.multiprocessing import ProcessExitedException

from netprism.callbacks import ExactResume, Requeue
from netprism.callbacks.training.requeue import requeued_job
from netprism.datamodules import EpochSampler, ResumableLoader


class Send(pl.Callback):
    """Sends this process a signal in a training batch, in a validation, or at the end of an epoch."""

    def __init__(self, number, where="batch", epoch=1, batch=0, rank=0):
        self.number, self.where, self.epoch, self.batch, self.rank = number, where, epoch, batch, rank

    def send(self, trainer, where, batch=None):
        if (where, trainer.current_epoch, trainer.global_rank) == (self.where, self.epoch, self.rank):
            if batch in (None, self.batch) and not trainer.sanity_checking:
                os.kill(os.getpid(), self.number)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.send(trainer, "batch", batch_idx)

    def on_validation_start(self, trainer, pl_module):
        self.send(trainer, "validation")

    def on_train_epoch_end(self, trainer, pl_module):
        self.send(trainer, "epoch")


def fit(folder, *callbacks, batch_size=16, ckpt_path=None, **options):
    pl.seed_everything(0)
    module, data = Stranger(), images()
    settings = {
        "max_epochs": 3, "accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "default_root_dir": folder, "num_sanity_val_steps": 0,
    }  # fmt: skip
    callbacks = [ExactResume(), *callbacks, ModelCheckpoint(folder, filename="best", every_n_epochs=100), Requeue()]
    trainer = pl.Trainer(callbacks=callbacks, **(settings | options))
    train = ResumableLoader(data, EpochSampler(data, seed=0), batch_size)
    trainer.fit(module, train, loaders()[1], ckpt_path=ckpt_path, weights_only=True)
    return module.state_dict()


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists")
@pytest.mark.parametrize(
    ("where", "number", "step", "options"),
    [
        ("batch", signal.SIGUSR1, 4, {}),
        ("batch", signal.SIGTERM, 4, {}),
        ("batch", signal.SIGUSR1, 4, {"accumulate_grad_batches": 2, "batch_size": 8}),
        ("batch", signal.SIGUSR1, 2, {"batch_size": 45}),
        ("validation", signal.SIGUSR1, 6, {}),
        ("epoch", signal.SIGUSR1, 6, {}),
    ],
    ids=["batch", "SIGTERM", "accumulated", "one batch", "validation", "end of an epoch"],
)
def test_saves_ends_and_goes_on_to_the_bit(where, number, step, options, tmp_path, caplog):
    handlers = [signal.getsignal(n) for n in (signal.SIGUSR1, signal.SIGTERM)]
    expected = fit(tmp_path / "whole", **options)
    with pytest.raises(SystemExit) as stopped:
        fit(tmp_path, Send(number, where), **options)
    assert stopped.value.code == 128 + number
    assert f"{number.name}: saved" in caplog.text
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == step
    found = fit(tmp_path, ckpt_path=tmp_path / "last.ckpt", **options)
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert [signal.getsignal(n) for n in (signal.SIGUSR1, signal.SIGTERM)] == handlers


@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_that_is_asked_stops_all(rank, tmp_path):
    with pytest.raises(ProcessExitedException, match=f"exit code {128 + signal.SIGUSR1}"):
        fit(tmp_path, Send(signal.SIGUSR1, rank=rank), devices=2, strategy="ddp_fork")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4


def test_a_signal_on_the_last_batch_of_all_changes_nothing(tmp_path):
    fit(tmp_path, Send(signal.SIGUSR1, "batch", epoch=2, batch=2))
    assert not (tmp_path / "last.ckpt").exists()


def test_a_module_of_ones_own_saves_where_it_is_told(tmp_path):
    with pytest.raises(ValueError, match="every_n_batches is 0; expected a number >= 1"):
        Requeue(every_n_batches=0)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, callbacks=[Send(signal.SIGTERM, epoch=0), Requeue(str(tmp_path / "here.ckpt"), 2)],
    )  # fmt: skip
    with pytest.raises(SystemExit):
        trainer.fit(Stranger(), *loaders())
    assert torch.load(tmp_path / "here.ckpt", weights_only=True)["global_step"] == 2


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """The commands of a Slurm in which job 7 runs; what they were asked for is written down."""
    for name in ("squeue", "scontrol"):
        script = tmp_path / name
        answer = "echo $STATE" if name == "squeue" else '[ -z "$REFUSE" ] || { echo "$REFUSE" >&2; exit 1; }'
        script.write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/asked\n{answer}\n')
        script.chmod(0o755)
    for name, value in {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "1"}.items():
        monkeypatch.setenv(name, value)
    return tmp_path / "asked"


@pytest.mark.parametrize(("state", "job"), [("RUNNING", "7"), ("COMPLETING", None), ("CANCELLED", None)])
def test_only_a_running_job_goes_back_into_the_queue(slurm, state, job, monkeypatch):
    monkeypatch.setenv("STATE", state)
    assert requeued_job() == job
    assert ("scontrol requeue 7" in slurm.read_text()) == (job is not None)


def test_a_requeue_that_fails_is_said(slurm, monkeypatch):
    monkeypatch.setenv("STATE", "RUNNING")
    monkeypatch.setenv("REFUSE", "Access denied")
    with pytest.warns(UserWarning, match="job 7 is not back in the queue: Access denied"):
        assert requeued_job() is None
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.warns(UserWarning, match="job 7 is not back in the queue: .*squeue"):
        assert requeued_job() is None


def test_without_slurm_there_is_no_queue(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert requeued_job() is None

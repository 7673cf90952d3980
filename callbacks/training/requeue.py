"""A training that a scheduler interrupts saves itself and goes back into the queue."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn

from netprism.runs.folder import display_path

SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP)


class Requeue(pl.Callback):
    """On SIGUSR1, SIGTERM or SIGHUP: saves a checkpoint, puts a Slurm job back into the queue, and ends the process.

        trainer = Trainer(callbacks=[ExactResume(), ModelCheckpoint("runs/mine", save_last=True), Requeue()])
        trainer.fit(model, ckpt_path="last", weights_only=True)

    Slurm sends SIGUSR1 some time before a job's end (`--signal=SIGUSR1@90`), and SIGTERM to a job that has to make room
    for another one or that is cancelled; a cancelled job stays so. Without Slurm both save and stop, on the desk as
    under torchrun. SIGHUP, of a terminal that is closed, does so too, unless `nohup` has switched it off.

    The handler only sets a flag: Lightning's own saves within it, where the collectives of a save meet those of a
    backward pass (6 of 12 tries with two processes hung). After a batch all processes agree whether any was asked, save
    `last.ckpt`, and end with status 128 + the number of the signal, as shells know it. They wait with it until the
    optimiser has stepped and no validation is due, at the latest for the next epoch's beginning: a signal within a
    validation or a monitor is obeyed after it, so give long ones time (`make slurm ... SIGNAL=600`).

    Lightning's own requeue saves within the signal handler, which hangs with several ranks:
    https://github.com/Lightning-AI/pytorch-lightning/issues/21406. The pull request
    https://github.com/Lightning-AI/pytorch-lightning/pull/21407 does what this callback does, which can be
    removed once that is released.

    Args:
        path: Path of the checkpoint; None: `last.ckpt` in the folder of the trainer's first ModelCheckpoint.
        every_n_batches: The ranks agree after every n-th batch, which sums one number over them and, on a GPU, waits
            for it; None: after every batch on a CPU, every tenth elsewhere.
    """

    def __init__(self, path: str | None = None, every_n_batches: int | None = None) -> None:
        if every_n_batches is not None and every_n_batches < 1:
            raise ValueError(f"every_n_batches is {every_n_batches}; expected a number >= 1")
        self.path, self.every_n_batches = path, every_n_batches
        self._asked = 0  # the signal
        self._before: dict[int | signal.Signals, Any] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Switches Lightning's requeue off, and catches the signal that would kill a loader's worker."""
        environment: Any = trainer._accelerator_connector.cluster_environment
        # By name: `lightning.pytorch` has a class of its own.
        if any(kind.__name__ == "SLURMEnvironment" for kind in type(environment).__mro__):
            environment.auto_requeue = False
        if stage == "fit":
            self._asked = 0
            self._catch(signal.SIGUSR1)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Replaces Lightning's signal handlers, which are installed by now."""
        # Lightning restores the handlers that it found; for SIGUSR1 that was the one of `setup`.
        trainer._signal_connector._original_handlers.update(self._before)
        for number in SIGNALS:
            self._catch(number)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Saves and ends, if any rank was asked to and the training can resume from here."""
        every = self.every_n_batches or (1 if pl_module.device.type == "cpu" else 10)
        if (batch_idx + 1) % every == 0 and _can_go_on_from_here(trainer):
            self._obey(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves and ends between two epochs."""
        # From a checkpoint of an epoch that has begun without a batch, Lightning (2.6) continues with the one after it.
        progress = trainer.fit_loop.epoch_progress
        progress.total.ready, progress.current.ready = progress.total.ready - 1, progress.current.ready - 1
        self._obey(trainer)
        progress.increment_ready()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Restores the handler that `setup` replaced, where Lightning has installed none yet."""
        if signal.SIGUSR1 in self._before and not trainer._signal_connector._original_handlers:
            signal.signal(signal.SIGUSR1, self._before[signal.SIGUSR1])

    def _obey(self, trainer: pl.Trainer) -> None:
        own = torch.tensor(self._asked, device=trainer.strategy.root_device)
        asked = int(trainer.strategy.reduce(own, reduce_op="max"))
        if not asked:
            return
        path = self.path or _last_checkpoint(trainer)
        trainer.save_checkpoint(path)
        for logger in trainer.loggers:
            logger.finalize("failed")  # now: Slurm kills the job's processes while it is put back
        job = requeued_job() if trainer.is_global_zero else None
        then = f"job {job} is back in the queue" if job else "continue with --ckpt_path last"
        # If the disk is full, SafeCheckpointIO has warned, and the older checkpoint is there.
        saved = (
            "could not save"
            if display_path(path) in getattr(trainer.strategy.checkpoint_io, "unsaved", ())
            else "saved"
        )
        rank_zero_info(
            f"{signal.Signals(asked).name}: {saved} {display_path(path)} at step {trainer.global_step}; {then}"
        )
        # A process that ends with an error lets srun and torchrun end the others: wait for the one that talks to Slurm.
        trainer.strategy.barrier()
        raise SystemExit(128 + asked)

    def _catch(self, number: signal.Signals) -> None:
        # Python's condition; and what `nohup` ignores stays so.
        if threading.current_thread() is threading.main_thread() and signal.getsignal(number) != signal.SIG_IGN:
            self._before[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = max(self._asked, number)


def requeued_job() -> str | None:
    """Requeues the Slurm job of this process; returns its id, or None where there is no running job."""
    job = os.environ.get("SLURM_JOB_ID") if SLURMEnvironment.detect() else None
    if job is None:
        return None
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):  # the number of its last task is that of the whole array
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        # A cancelled job gets SIGTERM as well, and is not requeued.
        if _slurm("squeue", "--noheader", "--jobs", job, "--format", "%T") != "RUNNING":
            return None
        _slurm("scontrol", "requeue", job)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip()
        rank_zero_warn(f"job {job} is not back in the queue: {said}")
        return None
    return job


def _slurm(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()


def _last_checkpoint(trainer: pl.Trainer) -> Path:
    folder = getattr(trainer.checkpoint_callback, "dirpath", None)
    return Path(folder or trainer.default_root_dir, "last.ckpt")


def _can_go_on_from_here(trainer: pl.Trainer) -> bool:
    """Whether a resume after this batch gives the uninterrupted training.

    Lightning (2.6) forgets gradients that are not applied yet, and skips a validation after the batch and an epoch's
    end.
    """
    loop = trainer.fit_loop.epoch_loop
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return not (loop._should_accumulate() or loop._num_ready_batches_reached() or loop._should_check_val_fx(fetcher))

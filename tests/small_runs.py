"""Whole runs of the command line in a third of a second, in this process or in one that may be killed."""

import csv
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from netprism.cli.main import main, run

EXPERIMENT = "gates/digits_mlp"
SMALL = [
    "--trainer.limit_train_batches=1",
    "--trainer.limit_val_batches=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
MONITORED, UNMONITORED = "--trainer.callbacks.num_images=20", "--trainer.callbacks=null"


def arguments(*args, epochs=2, monitor=UNMONITORED):
    return [f"--config={EXPERIMENT}", f"--trainer.max_epochs={epochs}", *SMALL, monitor, *args]


def train(*args, **options):
    """A training of the smallest experiment; returns its run folder."""
    return Path(run("fit", arguments(*args, **options)).trainer.log_dir)


def rows(folder):
    """{epoch: row} of metrics.csv, where each epoch may have one row only."""
    with (folder / "metrics.csv").open() as file:
        found = list(csv.DictReader(file))
    table = {int(row["epoch"]): row for row in found}
    assert len(table) == len(found), "an epoch has two rows"
    return table


def said(capsys, *args):
    """The one line in which a command ends whose user gave it something wrong."""
    with pytest.raises(SystemExit) as caught:
        main(list(args))
    assert caught.value.code == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("netprism: "))
    return line.removeprefix("netprism: error: ")


def in_child(work: Callable[[], object], timeout: float = 60) -> int:
    """Does `work` in a forked process; returns its status, which is minus the signal that killed it."""
    process = multiprocessing.get_context("fork").Process(target=work, daemon=True)
    process.start()
    process.join(timeout)
    assert process.exitcode is not None, process.kill() or f"still running after {timeout} s"
    return process.exitcode


def environment_of_a_desk(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """An empty current folder, no scheduler, no W&B."""
    monkeypatch.chdir(folder)
    for name in [name for name in os.environ if name.startswith(("NETPRISM", "SLURM", "TORCHELASTIC", "WANDB"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "disabled")

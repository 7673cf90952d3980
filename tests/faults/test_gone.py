"""What goes in the middle of a training: a process that loads its data, the folder that it writes into, the time."""

import multiprocessing
import os
import shutil
import signal
import time

import pytest
import torch
from small_runs import arguments, environment_of_a_desk, rows, said, train

from netprism.lightning_modules import Classifier
from netprism.runs.folder import FINISHED, RUN


@pytest.fixture(autouse=True)
def at_a_desk(tmp_path, monkeypatch):
    environment_of_a_desk(monkeypatch, tmp_path)


def in_epoch_1(monkeypatch, work):
    monkeypatch.setattr(Classifier, "on_train_epoch_start", lambda self: self.current_epoch == 1 and work())


def test_a_loader_worker_that_is_killed_is_one_line_and_costs_an_epoch(tmp_path, capsys, monkeypatch):
    def kill():
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGKILL)

    in_epoch_1(monkeypatch, kill)
    line = said(capsys, "fit", *arguments("--data.num_workers=1", epochs=3))
    assert line.startswith("DataLoader worker ")
    assert "data.num_workers=0" in line
    (folder,) = tmp_path.glob("runs/gates/digits_mlp/*")
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 0
    assert not (folder / FINISHED).exists()


def test_a_clock_that_is_set_back_changes_nothing(monkeypatch):
    table, now = rows(train(epochs=3)), time.time
    in_epoch_1(monkeypatch, lambda: monkeypatch.setattr(time, "time", lambda: now() - 86_400))
    folder = train(epochs=3)
    assert time.time() < now() - 80_000
    assert rows(folder) == table
    assert (folder / FINISHED).exists()


def test_a_run_folder_that_is_removed_costs_its_config_and_no_curve(monkeypatch):
    in_epoch_1(monkeypatch, lambda: shutil.rmtree(os.environ[RUN]))
    folder = train(epochs=3)
    assert list(rows(folder)) == [0, 1, 2]
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 2
    assert not (folder / "config.yaml").exists()

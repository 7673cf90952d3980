"""A disk that is full, or may not be written, and two trainings in one folder."""

import functools
import multiprocessing
import subprocess
from pathlib import Path

import pytest
import torch
from small_runs import UNMONITORED, arguments, environment_of_a_desk, in_child, rows, said, train

from netprism.lightning_modules import Classifier
from netprism.loggers import OfflineFallbackWandbLogger
from netprism.runs.folder import FINISHED, RUN, RUNS

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* not empty"),  # of the run that goes on
]
MEBIBYTE = 2**20


@pytest.fixture(autouse=True)
def at_a_desk(tmp_path, monkeypatch):
    environment_of_a_desk(monkeypatch, tmp_path)


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """A disk of 16 MiB, four times a checkpoint, for the runs."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a small disk can only be mounted by root")
    monkeypatch.setenv(RUNS, str(folder))
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk):
    """Writes until nothing goes in any more."""
    with pytest.raises(OSError, match="No space left"), (disk / "filling").open("ab", buffering=0) as file:
        while True:
            file.write(bytes(MEBIBYTE if file.tell() < 8 * MEBIBYTE else 4096))


@pytest.fixture
def full_in(disk, monkeypatch):
    """full_in(1, 2): the disk is full in those epochs."""

    def plan(*epochs):
        def hook(module):
            if module.current_epoch in epochs:
                fill(disk)
            else:
                (disk / "filling").unlink(missing_ok=True)

        monkeypatch.setattr(Classifier, "on_train_epoch_start", hook)

    return plan


def epoch_of(folder, name):
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)["epoch"]


def test_a_disk_that_is_full_for_a_while_costs_no_training(full_in, caplog):
    full_in(1, 2)
    folder = train(epochs=4)
    told = [record.getMessage() for record in caplog.records if "was not written" in record.getMessage()]
    last = "last.ckpt was not written (No space left on device), the older one is kept; the training continues"
    assert len([line for line in told if line.endswith(last)]) == 2
    assert len([line for line in told if "metrics.csv was not written" in line]) == 1
    assert list(rows(folder)) == [0, 1, 2, 3]
    assert epoch_of(folder, "last") == 3
    assert (folder / FINISHED).is_file()


def test_a_disk_that_stays_full_is_an_error_at_the_end_and_the_older_files_are_whole(full_in, disk, capsys):
    full_in(1, 2)
    line = said(capsys, "fit", *arguments(epochs=3))
    (folder,) = disk.glob("gates/digits_mlp/*")
    assert line.startswith("not written: ")
    assert "last.ckpt (No space left on device)" in line
    assert epoch_of(folder, "last") == epoch_of(folder, "best") == 0
    assert list(rows(folder)) == [0]
    assert not list(folder.rglob("*.part*"))
    assert not (folder / FINISHED).exists()

    (disk / "filling").unlink()
    full_in()
    assert train("--ckpt_path=last", epochs=3) == folder
    assert list(rows(folder)) == [0, 1, 2]


def test_a_checkpoint_is_not_removed_for_one_that_was_not_written(full_in, disk, capsys):
    names = ["--last_checkpoint.filename={epoch}", "--best_checkpoint.save_top_k=0"]
    full_in(2)
    assert "epoch=2.ckpt (No space left on device)" in said(capsys, "fit", *arguments(*names, epochs=3))
    (folder,) = disk.glob("gates/digits_mlp/*/checkpoints")
    assert [path.name for path in folder.iterdir()] == ["epoch=1.ckpt"]


def test_a_disk_that_is_full_before_the_training_is_one_line(disk, capsys):
    fill(disk)
    line = said(capsys, "fit", *arguments())
    assert "No space left on device" in line
    assert "config.yaml" in line


def test_a_read_only_run_folder_is_one_line_before_the_training(disk, capsys, monkeypatch):
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    monkeypatch.setattr(Classifier, "training_step", None)
    line = said(capsys, "fit", *arguments())
    assert line.startswith("run folder disk/gates/digits_mlp/")
    assert line.endswith(f": Read-only file system; ${RUNS} can name a place for all runs")


def test_a_disk_that_is_full_at_the_end_costs_the_report_alone(disk, monkeypatch, caplog):
    monkeypatch.setattr(Classifier, "on_train_end", lambda module: fill(disk))  # figures and report come after it
    with pytest.raises(OSError, match="No space left"):  # nor can it be noted that the run is finished
        train(epochs=1)
    (folder,) = disk.glob("gates/digits_mlp/*")
    assert any("no report" in record.getMessage() for record in caplog.records)
    assert not list(folder.rglob("*.part*"))
    assert epoch_of(folder, "last") == 0
    (disk / "filling").unlink()
    monkeypatch.undo()


def test_wandb_on_a_full_disk_stops_no_training(disk, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert in_child(functools.partial(log_to_wandb, disk)) == 0


def log_to_wandb(disk):
    logger = OfflineFallbackWandbLogger(disk / "run", finish_timeout=5)
    logger.log_metrics({"epoch": 0, "loss": 1.0}, step=0)
    fill(disk)
    for epoch in range(1, 300):
        logger.log_metrics({"epoch": epoch, "loss": 1.0, **{f"layer{i}": 1.0 for i in range(50)}}, step=epoch)
    logger.finalize("success")
    late = OfflineFallbackWandbLogger(disk / "another")
    late.log_metrics({"epoch": 0, "loss": 1.0}, step=0)
    late.finalize("success")


def wait_in_step(started, go_on, step, module, batch):
    """In place of `Classifier.training_step`."""
    started.set()
    assert go_on.wait(60)
    return step(module, batch)


def train_when_told(started, go_on):
    step = functools.partial(wait_in_step, started, go_on, Classifier.training_step)
    Classifier.training_step = functools.partialmethod(step)
    train(epochs=1)


def test_of_two_trainings_in_one_folder_the_second_is_refused_and_destroys_nothing(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "runs" / "one"
    monkeypatch.setenv(RUN, str(folder))
    forked = multiprocessing.get_context("fork")
    started, go_on = forked.Event(), forked.Event()
    first = forked.Process(target=train_when_told, args=(started, go_on), daemon=True)
    first.start()
    assert started.wait(60)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert "runs/one: another training is at work there" in said(capsys, "fit", *arguments())
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    go_on.set()
    first.join(60)
    assert first.exitcode == 0
    assert list(rows(folder)) == [0]
    assert Path(train("--ckpt_path=last", epochs=2, monitor=UNMONITORED)) == folder

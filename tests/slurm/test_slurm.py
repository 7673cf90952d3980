"""Trainings as jobs of a real Slurm: `make test-slurm`. A start of Lightning takes 8 s of a core for each process."""

import csv
import sys
from pathlib import Path

import pytest
import torch

from netprism.cli.main import run

pytestmark = pytest.mark.slurm

TINY = """\
# An MLP on a few digits.
model:
  class_path: netprism.lightning_modules.Classifier
  init_args:
    net:
      class_path: netprism.nets.MLP
      init_args:
        widths: [64, 16, 10]
data:
  class_path: netprism.datamodules.Digits
  init_args:
    image_size: 8
    train_samples: 96
    batch_size: 8
trainer:
  max_epochs: 2
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: netprism.callbacks.GatingEntropy
      init_args:
        num_images: 41
"""
EPOCHS = 150  # some five seconds
LONG = (f"--trainer.max_epochs={EPOCHS}", "--trainer.callbacks=null", "--trainer.limit_val_batches=1")
TWO_TASKS = ("--nodes=2", "--gpus=0", "--time=10")
TIMEOUT = 120  # seconds; a study starts three processes one after the other
ONE_TASK = ("--nodes=1", "--gpus=0", "--time=10")


@pytest.fixture
def desk(slurm, monkeypatch):
    """The cluster, in a folder with tiny.yaml; one process here and the jobs have no W&B."""
    (slurm.folder / "tiny.yaml").write_text(TINY)
    monkeypatch.chdir(slurm.folder)
    here = {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    for name, value in here.items():
        monkeypatch.setenv(name, value)
    # Without it Lightning takes the name of a node for its address, and there is no machine of that name.
    slurm.environment = {**slurm.environment, **here}
    return slurm


def say(slurm, *options, config="tiny.yaml"):
    """What `netprism slurm` says."""
    return slurm(sys.executable, "-m", "netprism", "slurm", "--config", config, *options)


def submit(slurm, *options, config="tiny.yaml"):
    """Submits a training; returns the number of its job."""
    return jobs_in(say(slurm, *options, config=config))[-1]


def jobs_in(said):
    return [line.split()[1] for line in said.splitlines() if line.startswith("job ")]


def folder_of(slurm, job, experiment="tiny"):
    return slurm.folder / "runs" / experiment / job


def rows(folder):
    path = folder / "metrics.csv"
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def epochs(folder):
    return [int(row["epoch"]) for row in rows(folder) if row.get("val/accuracy")]


def started(slurm, job):
    """Waits until a training is in its epochs."""
    slurm.wait_for(lambda: len(epochs(folder_of(slurm, job))) > 2, "third epoch")


def test_two_nodes_train_as_one_process_does(desk):
    job = submit(desk, *TWO_TASKS)
    assert desk.wait_for_end(job)["JobState"] == "COMPLETED", desk.logs()
    together = rows(folder_of(desk, job))
    alone = rows(Path(run("fit", ["--config=tiny.yaml", "--data.init_args.batch_size=16"]).trainer.log_dir))
    assert [row["epoch"] for row in together] == [row["epoch"] for row in alone]
    for here, there in zip(together, alone, strict=True):
        for key in here:
            if key.startswith(("gates/", "train/", "val/")) and (here[key] or there[key]):
                assert float(here[key]) == pytest.approx(float(there[key]), rel=1e-6), (here["epoch"], key)


def test_a_job_that_is_told_its_end_goes_on_to_the_bit(desk):
    job = submit(desk, *TWO_TASKS, *LONG)
    started(desk, job)
    desk("scancel", "--signal=USR1", job)
    desk.wait_for(lambda: desk.job(job)["Restarts"] == "1", "restart", 20)
    assert not (folder_of(desk, job) / "finished.txt").exists()
    assert desk.wait_for_end(job)["JobState"] == "COMPLETED", desk.logs()
    assert_whole(desk, job, TWO_TASKS)


def test_a_job_that_makes_room_comes_back(desk):
    job = submit(desk, *ONE_TASK, *LONG)
    started(desk, job)
    urgent = desk("sbatch", "--parsable", "--partition=high", "--nodes=2", "--exclusive", "--wrap=sleep 1").strip()
    assert desk.wait_for_end(urgent)["JobState"] == "COMPLETED"
    assert desk.wait_for_end(job)["JobState"] == "COMPLETED", desk.logs()
    assert desk.job(job)["Restarts"] == "1"
    assert "SIG" in log_of(desk, job)
    assert_whole(desk, job, ONE_TASK)


def test_a_cancelled_job_does_not_come_back(desk):
    job = submit(desk, *ONE_TASK, *LONG)
    started(desk, job)
    desk("scancel", job)
    assert desk.wait_for_end(job)["JobState"] == "CANCELLED"
    assert desk.job(job)["Restarts"] == "0"
    assert (folder_of(desk, job) / "checkpoints" / "last.ckpt").exists()


def test_a_failed_job_is_seen_and_its_log_found(desk):
    said = say(desk, *ONE_TASK, "--data.batch_size=0")
    (job,) = jobs_in(said)
    assert desk.wait_for_end(job)["JobState"] == "FAILED"
    log = next(word for word in said.split() if word.endswith(".out"))
    assert (desk.folder / log).read_text().count("netprism: error:") == 1
    assert "batch_size is 0" in (desk.folder / log).read_text()


def test_a_missing_teacher_is_trained_by_a_job_before(desk):
    config = "discarding/decoder_digits"
    small = ("--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--trainer.callbacks=null")
    teacher, job = jobs_in(say(desk, *TWO_TASKS, *small, config=config))
    desk.wait_for_end(job)
    assert desk.job(teacher)["JobState"] == desk.job(job)["JobState"] == "COMPLETED", desk.logs()
    best = desk.folder / "runs" / "classify" / "digits_resnet8" / teacher / "checkpoints" / "best.ckpt"
    assert best.exists()
    assert f"{teacher}/checkpoints/best.ckpt" in (folder_of(desk, job, config) / "config.yaml").read_text()


STUDY = """\
# Three rates, one of which no optimiser takes
experiment: tiny.yaml
grid: {model.optimizer.init_args.lr: [0.001, -1.0, 0.01]}
read: {accuracy: val/accuracy}
figure: [{x: model.optimizer.init_args.lr, y: accuracy}]
"""
ADAM = """\
    optimizer:
      class_path: torch.optim.Adam
data:
"""


def test_a_study_is_an_array_whose_failed_task_stops_no_other_and_is_named(desk):
    (desk.folder / "tiny.yaml").write_text(TINY.replace("data:\n", ADAM))
    (desk.folder / "mine.yaml").write_text(STUDY)
    said = desk(sys.executable, "-m", "netprism", "slurm", "--study", "mine.yaml", "--gpus=0", "--time=10")
    array, table = jobs_in(said)
    assert desk.wait_for_end(table, 2 * TIMEOUT)["JobState"] == "FAILED", desk.logs()
    states = [desk.job(f"{array}_{number}")["JobState"] for number in range(3)]
    assert states == ["COMPLETED", "FAILED", "COMPLETED"]
    assert "failed   model.optimizer.init_args.lr=-1 seed=0: Invalid learning rate: -1.0" in log_of(desk, table)
    assert "1 of 3 runs failed" in log_of(desk, table)
    page = (desk.folder / "studies" / "mine" / "study.md").read_text()
    assert "2 of 3 runs" in page
    assert len((desk.folder / "studies" / "mine" / "table.csv").read_text().splitlines()) == 3
    assert all((folder / "log.txt").stat().st_size for folder in (desk.folder / "runs" / "tiny").iterdir())
    again = desk(sys.executable, "-m", "netprism", "slurm", "--study", "mine.yaml", "--gpus=0", "--dry-run")
    assert "sbatch" not in again, "nothing is left to do"


def test_a_task_of_an_array_goes_back_alone(desk):
    (desk.folder / "long.yaml").write_text(
        STUDY.replace("-1.0, ", "").replace("figure", "overrides: {OVERRIDES}\nfigure")
    )
    options = "trainer.max_epochs: 150, trainer.callbacks: null, trainer.limit_val_batches: 1"
    (desk.folder / "long.yaml").write_text((desk.folder / "long.yaml").read_text().replace("OVERRIDES", options))
    (desk.folder / "tiny.yaml").write_text(TINY.replace("data:\n", ADAM))
    said = desk(sys.executable, "-m", "netprism", "slurm", "--study", "long.yaml", "--gpus=0", "--time=10")
    array, table = jobs_in(said)
    desk.wait_for(lambda: list(desk.folder.glob("runs/tiny/*/checkpoints/last.ckpt")), "checkpoint")
    last = f"{array}_1"  # its number is that of the whole array
    desk.wait_for(lambda: desk.job(last)["JobState"] == "RUNNING", "second task")
    desk.wait_for(lambda: len(list(desk.folder.glob("runs/tiny/*/checkpoints/last.ckpt"))) == 2, "second checkpoint")
    desk("scancel", "--signal=USR1", last)
    assert desk.wait_for_end(table, 2 * TIMEOUT)["JobState"] == "COMPLETED", desk.logs()
    assert [desk.job(f"{array}_{number}")["Restarts"] for number in (0, 1)] == ["0", "1"]


def test_what_is_shown_is_what_is_submitted(desk):
    options = (*TWO_TASKS, "--trainer.max_epochs=1", "--data.init_args.train_samples=9; touch evil $(touch worse)")
    shown = say(desk, *options, "--dry-run")
    assert not desk("squeue", "--noheader").strip()
    job = submit(desk, *options)
    desk("scancel", job)
    script = desk("scontrol", "write", "batch_script", job, "-")
    assert script.strip() in shown
    assert "# sbatch" in shown


def log_of(slurm, job):
    return (slurm.folder / "runs" / "slurm" / f"{job}.out").read_text()


def assert_whole(slurm, job, tasks):
    """The curves and the weights of a run that nothing interrupted."""
    folder = folder_of(slurm, job)
    assert (folder / "finished.txt").exists()
    assert epochs(folder) == list(range(EPOCHS))
    whole = uninterrupted(slurm, tasks)
    assert (folder / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    ours, theirs = (torch.load(f / "checkpoints" / "last.ckpt", weights_only=True) for f in (folder, whole))
    for key, value in theirs["state_dict"].items():
        assert torch.equal(ours["state_dict"][key], value), key


def uninterrupted(slurm, tasks):
    """The folder of the same training without an interruption: in this process, or as a job of two tasks."""
    if tasks == ONE_TASK:
        return Path(run("fit", ["--config=tiny.yaml", *LONG]).trainer.log_dir)
    job = submit(slurm, *tasks, *LONG)
    assert slurm.wait_for_end(job)["JobState"] == "COMPLETED", slurm.logs()
    return folder_of(slurm, job)

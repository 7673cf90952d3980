"""Trainings that are killed at random moments, once, twice or three times, and resumed: equal to the bit.

`make test-kill`, or `NETPRISM_KILLS=8 NETPRISM_KILL_SEED=1 pytest tests/kill -m kill` for others.
"""

import os
import random
import signal
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from small_runs import environment_of_a_desk, rows

from netprism.cli.main import run
from netprism.runs.folder import FINISHED, RUN

pytestmark = [
    pytest.mark.kill,
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* not empty"),  # of the run that is resumed
]
KILLS, SEED = int(os.environ.get("NETPRISM_KILLS", "30")), int(os.environ.get("NETPRISM_KILL_SEED", "0"))
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
FEW = ["--trainer.limit_train_batches=4", "--trainer.limit_val_batches=1", "--data.batch_size=16"]
TRAININGS = {
    "gates/digits_mlp": ["--trainer.max_epochs=4", "--trainer.callbacks.num_images=20", *FEW],
    "complexity_loss/digits_mlp": ["--trainer.max_epochs=4", *FEW],
    "classify/digits_resnet8": ["--trainer.max_epochs=4", "--data.image_size=8", "--data.num_workers=1", *FEW],
    "discarding/digits_resnet8": [
        "--trainer.max_epochs=4",
        "--data.image_size=8",
        "--trainer.callbacks.num_vjps=1",
        *FEW,
    ],
}
PLAN = [(list(TRAININGS)[trial % len(TRAININGS)], trial) for trial in range(KILLS)]


def training(name, folder):
    """The training, from its last checkpoint where there is one, in a process group of its own."""

    def work():
        os.setpgid(0, 0)
        os.environ[RUN] = str(folder)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        config = f"--config={folder / 'config.yaml' if (folder / 'config.yaml').exists() else name}"
        run("fit", [config, "--ckpt_path=last", *QUIET, *TRAININGS[name]])

    process = get_context("fork").Process(target=work)
    process.start()
    return process


def finish(process):
    process.join(300)
    assert process.exitcode == 0, process.kill()


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """{name: (folder, seconds)} of trainings that nothing disturbs, made when they are first asked for."""
    return {}


@pytest.fixture(autouse=True)
def at_a_desk(tmp_path, monkeypatch):
    environment_of_a_desk(monkeypatch, tmp_path)


def reference(references, name, tmp_path_factory):
    if name not in references:
        folder, begin = tmp_path_factory.mktemp("reference") / "run", time.monotonic()
        folder.mkdir()
        finish(training(name, folder))
        references[name] = folder, time.monotonic() - begin
    return references[name]


def differences(one, other, path=""):
    """Where two checkpoints differ, but for the folders that they name.

    `current_score` of a ModelCheckpoint is left out: Lightning writes the last score that it saved, and never reads it.
    """
    if path.endswith(".current_score"):
        return []
    if isinstance(one, dict) and isinstance(other, dict):
        one, other = ({Path(k).name if "/" in str(k) else k: v for k, v in each.items()} for each in (one, other))
        if one.keys() != other.keys():
            return [path]
        return [place for key in one for place in differences(one[key], other[key], f"{path}.{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return [
            place for i, (a, b) in enumerate(zip(one, other, strict=True)) for place in differences(a, b, f"{path}.{i}")
        ]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if torch.equal(one, other) or (one.isnan() & other.isnan()).all() else [path]
    if isinstance(one, str) and isinstance(other, str) and "/" in one:
        return [] if Path(one).name == Path(other).name else [path]
    return [] if repr(one) == repr(other) else [path]


def pictures(folder):
    return {path.relative_to(folder) for path in folder.rglob("*") if path.suffix in (".png", ".csv", ".json", ".html")}


@pytest.mark.parametrize(("name", "trial"), PLAN, ids=[f"{trial}-{name}" for name, trial in PLAN])
def test_a_killed_training_ends_as_one_that_was_not(name, trial, tmp_path, tmp_path_factory, references):
    undisturbed, seconds = reference(references, name, tmp_path_factory)
    chance, folder = random.Random(1000 * SEED + trial), tmp_path / "run"
    folder.mkdir()
    for _ in range(chance.choice([1, 1, 2, 3])):
        process = training(name, folder)
        process.join(chance.uniform(0.1, 1.0) * seconds)
        if process.exitcode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
    if not (folder / FINISHED).exists():
        finish(training(name, folder))
    for checkpoint in ("last", "best"):
        found, expected = (
            torch.load(where / "checkpoints" / f"{checkpoint}.ckpt", weights_only=True)
            for where in (folder, undisturbed)
        )
        assert differences(found, expected) == []
    assert {k: str(v) for k, v in rows(folder).items()} == {k: str(v) for k, v in rows(undisturbed).items()}
    assert pictures(folder) == pictures(undisturbed)
    assert not list(folder.rglob("*.part*"))

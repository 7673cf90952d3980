"""A training that is killed: nothing is half written, and it goes on to the curves that it would have had."""

import functools
import os
import signal
from pathlib import Path

import pytest
import torch
from small_runs import MONITORED, UNMONITORED, environment_of_a_desk, in_child, rows, train

from netprism.callbacks import GatingEntropy
from netprism.lightning_modules import Classifier

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* not empty"),  # of the run that goes on
]
FILES = ["checkpoints/last.ckpt", "metrics.csv", "config.yaml"]


@pytest.fixture(autouse=True)
def at_a_desk(tmp_path, monkeypatch):
    environment_of_a_desk(monkeypatch, tmp_path)
    monkeypatch.setattr("netprism.figures.gating_entropy.draw", lambda *_: [])  # figures take seconds


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def half(path):
    os.truncate(path, path.stat().st_size // 2)


def kill_in_step(step, module, batch):
    """In place of `Classifier.training_step`."""
    return die() if module.current_epoch == 2 else step(module, batch)


def killed_half_way(rename, name, part, target):
    """In place of `Path.replace`: the disk has half of the new file when the process dies."""
    if Path(target).name == name:
        half(part)
        die()
    return rename(part, target)


POINTS = {  # what is replaced in the process that is to die: where, what, by what
    "a training step": (Classifier, "training_step", functools.partial(kill_in_step, Classifier.training_step)),
    "a monitor": (GatingEntropy, "measure", die),
    **{name: (Path, "replace", functools.partial(killed_half_way, Path.replace, Path(name).name)) for name in FILES},
}


def go_on_and_be_killed(point, monitor):
    owner, name, deadly = POINTS[point]
    setattr(owner, name, functools.partialmethod(deadly))
    train("--ckpt_path=last", epochs=3, monitor=monitor)


@functools.cache
def uninterrupted(monitor):
    return rows(train(epochs=3, monitor=monitor))


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_training_goes_on_from_whole_files(point):
    monitor = MONITORED if point == "a monitor" else UNMONITORED
    folder = train(epochs=1, monitor=monitor)
    before = {name: (folder / name).read_bytes() for name in FILES}
    assert in_child(functools.partial(go_on_and_be_killed, point, monitor)) == -signal.SIGKILL

    assert len(list(folder.rglob("*.part*"))) == (point in FILES), "the kill was not where it was meant to be"
    if point in FILES:
        assert (folder / point).read_bytes() == before[point]
    for name in ("last", "best"):
        torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
    assert 0 in rows(folder)

    assert train("--ckpt_path=last", epochs=3, monitor=monitor) == folder
    assert not list(folder.rglob("*.part*")), "what was left half written piles up"
    assert rows(folder) == uninterrupted(monitor), "not the curves of an uninterrupted training"

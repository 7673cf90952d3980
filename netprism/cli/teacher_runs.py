"""Trained networks that an experiment analyses and that are not trained yet."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from jsonargparse import Namespace
from pytorch_lightning.utilities import rank_zero_info

from netprism.cli.config_teachers import teachers_in
from netprism.runs.folder import RUN, display_path, finished_runs, runs_root
from netprism.runs.teachers import UNTRAINED, checkpoint_of


def resolve_teachers(config: Namespace, may_train: bool) -> None:
    """Writes the checkpoint of each trained network into a config, so that the run records which one it was.

    A missing one is trained first, in a process and a run of its own. A dry run takes the network untrained.

    Args:
        config: Config of `fit` or another command; changed in place.
        may_train: Whether to train what is missing, or to raise.

    Raises:
        FileNotFoundError: One is missing and not to be trained here.
        ValueError: Its training failed.
    """
    for options in teachers_in(config):
        experiment = options["experiment"]
        if not finished_runs(experiment) and config["trainer"]["fast_dev_run"]:
            rank_zero_info(f"{experiment} is not trained yet: this dry run uses it untrained")
            options["checkpoint"] = UNTRAINED
            continue
        if may_train and not _is_one_of_many():
            train_once(experiment, config)
        options["checkpoint"] = display_path(checkpoint_of(experiment))


def train_once(experiment: str, config: Namespace) -> None:
    """Trains a missing teacher; of several runs that miss the same one, the first trains it and the others wait.

    Args:
        experiment: Name of the teacher's experiment.
        config: Config of the run that needs it, whose data folder it shares.
    """
    if not finished_runs(experiment):
        with _only_one_trains(experiment):
            if not finished_runs(experiment):
                _train(experiment, config)


@contextmanager
def _only_one_trains(experiment: str) -> Iterator[None]:
    """Holds the lock of an experiment."""
    folder = runs_root() / experiment
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".training.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            rank_zero_info(f"{experiment} is being trained by another run: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass  # a network file system without locks
        yield


def _is_one_of_many() -> bool:
    """Whether a launcher started several of this process: they would all train."""
    return any(int(os.environ.get(name, "1")) > 1 for name in ("WORLD_SIZE", "SLURM_NTASKS"))


def _train(experiment: str, config: Namespace) -> None:
    root = config.get("data.init_args.root")
    command = [sys.executable, "-m", "netprism", "fit", "--config", experiment]
    rank_zero_info(f"{experiment} is not trained yet: that comes first, once")
    environment = {name: value for name, value in os.environ.items() if name != RUN}
    failed = subprocess.run(command + ([f"--data.root={root}"] if root else []), env=environment).returncode
    if failed:
        raise ValueError(f"training {experiment} failed with status {failed}; the lines above say why")

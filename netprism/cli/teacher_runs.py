"""Trained networks that an experiment analyses and that are not trained yet."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from jsonargparse import Namespace
from pytorch_lightning.utilities import rank_zero_info

from netprism.cli.config_teachers import teachers_in
from netprism.cli.keys import network_key, read_config
from netprism.files import alone
from netprism.runs.folder import RUN, command_of, display_path, finished_runs, runs_root, with_seed
from netprism.runs.teachers import UNTRAINED, checkpoint_in

KeyOf = Callable[[str, int | None], str]  # the `network_key` of an experiment with a seed, or with its own


def resolve_teachers(config: Namespace, may_train: bool, key_of: KeyOf) -> None:
    """Writes the checkpoint of each trained network into a config, so that the run records which one it was.

    It is that of the newest finished run of the experiment as it stands: a run with another width, seed or number of
    epochs, of a study for instance, is not taken. A missing one is trained first, in a process and a run of its own.
    A dry run takes the network untrained.

    Args:
        config: Config of `fit` or another command; changed in place.
        may_train: Whether to train what is missing, or to raise.
        key_of: Returns the `network_key` of an experiment with a seed, None for its own.

    Raises:
        FileNotFoundError: One is missing and not to be trained here.
        ValueError: Its training failed.
    """
    for options in teachers_in(config):
        experiment, seed = options["experiment"], options.get("seed")
        if (found := own_network(experiment, key_of, seed)) is None:
            if config["trainer"]["fast_dev_run"]:
                rank_zero_info(f"{experiment} is not trained yet: this dry run uses it untrained")
                options["checkpoint"] = UNTRAINED
                continue
            if may_train and not _is_one_of_many():
                train_once(experiment, config, key_of, seed)
                found = own_network(experiment, key_of, seed)
        if found is None:
            raise FileNotFoundError(
                f"no finished run of {with_seed(experiment, seed)} as it stands in "
                f"{display_path(runs_root() / experiment)}{_others(experiment)}; "
                f"{command_of(experiment, seed)} makes one"
            )
        options["checkpoint"] = display_path(found)
        rank_zero_info(f"the network of {experiment} is {options['checkpoint']}")


def own_network(experiment: str, key_of: KeyOf, seed: int | None = None) -> Path | None:
    """Returns the checkpoint of the newest finished run that trained an experiment as it stands, or with that seed."""
    key: str | None = None
    for folder in finished_runs(experiment):
        config = folder / "config.yaml"
        if (path := checkpoint_in(folder)) is not None and config.is_file():
            key = key or key_of(experiment, seed)
            if network_key(read_config(config)) == key:
                return path
    return None


def _others(experiment: str) -> str:
    """Names the newest run that was not taken, for who meant that one."""
    others = finished_runs(experiment)
    return f" ({display_path(others[0])} had other options: give its checkpoint if it is meant)" if others else ""


def train_once(experiment: str, config: Namespace, key_of: KeyOf, seed: int | None = None) -> None:
    """Trains a missing teacher; of several runs that miss the same one, the first trains it and the others wait.

    Args:
        experiment: Name of the teacher's experiment.
        config: Config of the run that needs it, whose data folder it shares.
        key_of: Returns the `network_key` of an experiment with a seed, None for its own.
        seed: Seed of its training, None for that of the experiment.
    """
    with _only_one_trains(experiment):
        if own_network(experiment, key_of, seed) is None:
            _train(experiment, config, seed)


@contextmanager
def _only_one_trains(experiment: str) -> Iterator[None]:
    """Holds the lock of an experiment."""
    lock = runs_root() / experiment / ".training.lock"
    with alone(lock, partial(rank_zero_info, f"{experiment} is being trained by another run: waiting for it")):
        yield


def _is_one_of_many() -> bool:
    """Whether a launcher started several of this process: they would all train."""
    return any(int(os.environ.get(name, "1")) > 1 for name in ("WORLD_SIZE", "SLURM_NTASKS"))


def _train(experiment: str, config: Namespace, seed: int | None) -> None:
    root = config.get("data.init_args.root")
    command = [sys.executable, "-m", "netprism", "fit", "--config", experiment]
    if seed is not None:
        command.append(f"--seed_everything={seed}")
    rank_zero_info(f"{with_seed(experiment, seed)} is not trained yet{_others(experiment)}: that comes first, once")
    environment = {name: value for name, value in os.environ.items() if name != RUN}
    failed = subprocess.run(command + ([f"--data.root={root}"] if root else []), env=environment).returncode
    if failed:
        raise ValueError(f"training {experiment} failed with status {failed}; the lines above say why")

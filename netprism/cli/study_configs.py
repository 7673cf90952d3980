"""The resolved configs of a study's runs: parsed and checked all at once, before the first of them trains."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from netprism.cli.config_teachers import teachers_in
from netprism.cli.keys import config_key, digest, finished_by_key
from netprism.cli.lightning_cli import ConfigReader
from netprism.runs.folder import display_path, runs_root
from netprism.studies.grid import Setting, text
from netprism.studies.points import Point
from netprism.studies.study import Study

# Before options of the training of analysed networks. `teacher.0.`: of the first one alone; `teacher.0.teacher.`: of
# the networks that its training begins with.
TEACHER = "teacher."
ARGUMENT = "measure."  # before arguments of the measuring function
NOT_OPTIONS = ("experiment", "label", "seed")
Training = tuple[str, str, Path, tuple[Path, ...]]


class Planner:
    """Turns the settings of a study into runs.

    Args:
        experiments: Files of all experiments by name.
        args: Options of `netprism fit` for all runs.
    """

    def __init__(self, experiments: Mapping[str, Path], args: list[str]) -> None:
        self.experiments, self.args = experiments, args
        self.reader = ConfigReader()
        self._finished: dict[str, dict[str, Path]] = {}
        self._networks: dict[str, Training] = {}

    def plan(self, study: Study) -> list[Point]:
        """Returns the runs of a study: first the networks that others look into, then one per setting in its order.

        Raises:
            argparse.ArgumentError: An option is wrong; names the run.
        """
        points: list[Point] = []
        networks: dict[Path, Point] = {}
        self._networks = {}
        for setting in tqdm(study.settings(), f"{study.name}: configs", leave=False, disable=None):
            points.append(self._point(study, setting, networks))
        return [*networks.values(), *points]

    def _point(self, study: Study, setting: Setting, networks: dict[Path, Point]) -> Point:
        experiment = setting.get("experiment", study.experiment)
        options = {**study.overrides, **{key: value for key, value in setting.items() if key not in NOT_OPTIONS}}
        seeded = {key: setting["seed"] for key in study.seed_options}
        arguments = {**study.arguments, **_below(ARGUMENT, {**options, **seeded})}
        folder: Path | None = None
        config, key = None, ""
        needs: tuple[Path, ...] = ()
        if experiment:
            own = {"seed_everything": setting["seed"], **options, **seeded}
            of_teacher = {"seed_everything": setting["seed"], **_below(TEACHER, own)}
            fit = {name: value for name, value in own.items() if not name.startswith((TEACHER, ARGUMENT))}
            try:
                config, key, folder, needs = self._training(experiment, fit, of_teacher, networks)
            except argparse.ArgumentError as error:
                raise argparse.ArgumentError(None, f"{study.name}, {text(setting)}: {error.message}") from error
        else:
            arguments = {"seed": setting["seed"], **arguments}
        if study.measure:
            key = digest([key, study.measure, arguments])
            folder = folder or runs_root() / "measured" / study.measure.rpartition(".")[2] / key
        assert folder is not None
        return Point(setting, key, folder, experiment, config, study.measure, arguments, needs)

    def _training(
        self, experiment: str, options: Mapping[str, Any], of_teacher: Mapping[str, Any], networks: dict[Path, Point]
    ) -> Training:
        """Returns the text of the config, its key, the folder of the run, and those of the runs before it."""
        path = self.experiments.get(experiment, Path(experiment))
        if not path.is_file():
            raise argparse.ArgumentError(None, f"no file and no experiment {experiment!r}")
        config = self.reader.resolved(path, [*_arguments(options), *self.args])
        needs = []
        of_all = {name: value for name, value in of_teacher.items() if not name.partition(".")[0].isdigit()}
        for number, analysed in enumerate(teachers_in(config)):
            name = analysed["experiment"]
            given = {**of_all, **_seed_of(analysed), **_below(f"{number}.", of_teacher)}
            own = {name: value for name, value in given.items() if not name.startswith(TEACHER)}
            of_both = {name: value for name, value in of_all.items() if not name.startswith(TEACHER)}
            below = {**of_both, **_below(TEACHER, given)}
            asked = json.dumps([name, own, below], sort_keys=True)  # many runs look into the same network
            if asked not in self._networks:
                self._networks[asked] = self._training(name, own, below, networks)
            text_of, key, folder, before = self._networks[asked]
            setting = {"experiment": name, **own, "seed": own["seed_everything"]}
            networks.setdefault(folder, Point(setting, key, folder, name, text_of, needs=before))
            analysed["checkpoint"] = display_path(folder / "checkpoints" / "best.ckpt")
            needs.append(folder)
        config["trainer"]["enable_progress_bar"] = False  # a bar fills log.txt; the study says what is done
        content = self.reader.dump(config)
        # A network that is not trained yet has no config.yaml to take the key of its run from.
        keyed = yaml.safe_load(content)
        key = config_key(_with_keys(keyed, networks))
        name = experiment if experiment in self.experiments else path.stem
        if name not in self._finished:
            self._finished[name] = finished_by_key(name)
        return content, key, self._finished[name].get(key, runs_root() / name / key), tuple(needs)


def _with_keys(config: Any, networks: Mapping[Path, Point]) -> Any:  # noqa: ANN401 - a resolved config
    known = {display_path(folder / "checkpoints" / "best.ckpt"): point.key for folder, point in networks.items()}

    def replaced(node: Any) -> Any:  # noqa: ANN401
        if isinstance(node, dict):
            return {key: replaced(part) for key, part in node.items()}
        if isinstance(node, list):
            return [replaced(part) for part in node]
        return f"key:{known[node]}/best.ckpt" if isinstance(node, str) and node in known else node

    return replaced(config)


def _seed_of(analysed: Any) -> dict[str, Any]:  # noqa: ANN401 - a part of a config
    """The seed that a config gives one of its networks, which is that of the study otherwise."""
    seed = analysed.get("seed")
    return {} if seed is None else {"seed_everything": seed}


def _below(prefix: str, options: Mapping[str, Any]) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in options.items() if key.startswith(prefix)}


def _arguments(options: Mapping[str, Any]) -> list[str]:
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in options.items()]

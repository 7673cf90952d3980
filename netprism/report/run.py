"""What a run folder holds, also one of a run that died half way; nothing is trained or loaded into torch."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from netprism.runs.folder import FINISHED, display_path, runs_root

Series = dict[int, float]  # epoch -> value; -1 is before training
_NO_CURVES = ("epoch", "step")


@dataclass(frozen=True)
class Run:
    """A run folder, read when it is asked for.

    Args:
        folder: The folder, with at least a `metrics.csv`.
    """

    folder: Path

    @property
    def name(self) -> str:
        """What the run is called: its folder, below the folder of all runs where it is there."""
        full, root = self.folder.resolve(), runs_root().resolve()
        return full.relative_to(root).as_posix() if full.is_relative_to(root) else display_path(self.folder)

    @property
    def path(self) -> str:
        """The folder as a command takes it."""
        return display_path(self.folder)

    @property
    def is_finished(self) -> bool:
        """Whether the training came to its end."""
        return (self.folder / FINISHED).is_file()

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved config; empty where there is none, or half of one."""
        try:
            loaded = yaml.safe_load(self.config_text)
        except yaml.YAMLError:
            return {}
        return loaded if isinstance(loaded, dict) else {}

    @cached_property
    def config_text(self) -> str:
        """`config.yaml` as it is; empty where there is none."""
        return _text(self.folder / "config.yaml")

    @cached_property
    def provenance(self) -> str:
        """`git.txt`: versions and the commit."""
        return _text(self.folder / "git.txt").strip()

    @cached_property
    def seconds(self) -> dict[str, float]:
        """Seconds that each monitor took, by its name; empty where they were not recorded."""
        try:
            found = json.loads(_text(self.folder / "seconds.json") or "{}")
        except json.JSONDecodeError:
            return {}
        return {str(name): float(value) for name, value in found.items()} if isinstance(found, dict) else {}

    @cached_property
    def curves(self) -> dict[str, Series]:
        """{key: {epoch: value}} in the order of the columns; a cell that is no number is left out, NaN is kept."""
        found: dict[str, Series] = {}
        path = self.folder / "metrics.csv"
        if not path.is_file():
            return found
        with path.open(encoding="utf-8", newline="", errors="replace") as file:
            for row in csv.DictReader(file):
                epoch = _number(row.get("epoch"))
                if epoch is None or not math.isfinite(epoch):
                    continue
                for key, cell in row.items():
                    value = None if key is None or key in _NO_CURVES or key.endswith("_step") else _number(cell)
                    if value is not None:
                        found.setdefault(key, {})[int(epoch)] = value
        return {key: dict(sorted(series.items())) for key, series in found.items()}

    @property
    def epochs(self) -> list[int]:
        """All epochs with a number, rising."""
        return sorted({epoch for series in self.curves.values() for epoch in series})

    @property
    def settings(self) -> dict[str, Any]:
        """The config as {dotted name: value}; without class_path, init_args and where files are."""
        return flat(self.config)


def flat(config: Any, path: str = "") -> dict[str, Any]:  # noqa: ANN401 - YAML
    """Returns a nested config as {dotted name: leaf}.

    Example:
        >>> flat({"model": {"class_path": "a.Net", "init_args": {"depth": 8}}, "seed": 0})
        {'model': 'a.Net', 'model.depth': 8, 'seed': 0}
    """
    if isinstance(config, list) and any(isinstance(item, dict) for item in config):
        config = {_short(item): item for item in config}
    if not isinstance(config, dict):
        return {path: config}
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = path if key in ("class_path", "init_args") else f"{path}.{key}" if path else str(key)
        found |= flat(value, name)
    return found


def find_runs(given: list[str]) -> list[Run]:
    """Returns runs by folder, by a glob of folders, or by an experiment, all of whose runs are meant.

    Raises:
        FileNotFoundError: One of them is neither.
    """
    found: dict[Path, Run] = {}
    for text in given:
        folders = [Path(text), runs_root() / text]
        folders += sorted(Path().glob(text)) if not Path(text).is_absolute() else sorted(Path("/").glob(text[1:]))
        own = [folder for folder in folders if (folder / "metrics.csv").is_file()]
        own = own or sorted(file.parent for file in (runs_root() / text).glob("*/metrics.csv"))
        if not own:
            raise FileNotFoundError(f"run is {text!r}; expected a folder with metrics.csv, a glob, or an experiment")
        found |= {folder.resolve(): Run(folder) for folder in own}
    return list(found.values())


def _short(item: Any) -> str:  # noqa: ANN401 - YAML
    return str(item.get("class_path", "")).rpartition(".")[2] if isinstance(item, dict) else str(item)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _number(cell: object) -> float | None:
    try:
        return float(str(cell)) if cell not in (None, "") else None
    except ValueError:
        return None

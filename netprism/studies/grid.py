"""The settings of a study: every combination of a grid, of zipped lists, of single runs and of seeds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

Setting = dict[str, Any]  # {option: value} of one run, with its `seed`


def expand(
    grid: Mapping[str, Sequence[Any]],
    zipped: Mapping[str, Sequence[Any]],
    runs: Sequence[Mapping[str, Any]],
    seeds: int | Sequence[int],
) -> list[Setting]:
    """Returns the settings: runs x zipped x grid x seeds, the seeds fastest.

    Args:
        grid: {option: values}; every combination.
        zipped: {option: values}, of one length; position by position.
        runs: Settings listed one by one; none is one without options.
        seeds: Number of seeds from 0 up, or a list of them.

    Raises:
        ValueError: A list is empty, has another length or holds a value twice, or an option is given twice.

    >>> expand({"a": [1, 2]}, {}, [], 2)
    [{'a': 1, 'seed': 0}, {'a': 1, 'seed': 1}, {'a': 2, 'seed': 0}, {'a': 2, 'seed': 1}]
    """
    for key, values in (*grid.items(), *zipped.items()):
        if not isinstance(values, list) or not values:
            raise ValueError(f"{key} of the grid is {values!r}; expected a list of values")
    if len(lengths := {len(values) for values in zipped.values()}) > 1:
        raise ValueError(f"zip has lists of {sorted(lengths)} values; expected one length")
    chosen = list(range(seeds)) if isinstance(seeds, int) else seeds
    if not chosen or isinstance(seeds, bool | str) or not all(isinstance(seed, int) for seed in chosen):
        raise ValueError(f"seeds is {seeds!r}; expected a number >= 1 or a list")
    pairs = [dict(zip(zipped, values, strict=True)) for values in zip(*zipped.values(), strict=True)] or [{}]
    product = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    found: list[Setting] = []
    for listed, pair, combination, seed in itertools.product(runs or [{}], pairs, product, chosen):
        keys = [*listed, *pair, *combination, "seed"]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"{twice} is given twice; expected it in one of runs, zip, grid and seeds")
        found.append({**listed, **pair, **combination, "seed": seed})
    for number, setting in enumerate(found):
        if setting in found[:number]:
            raise ValueError(f"the setting {text(setting)} is given twice; expected different runs")
    return found


def text(setting: Mapping[str, Any]) -> str:
    """Returns a setting in one line."""
    return " ".join(f"{key}={short(value)}" for key, value in setting.items())


def short(value: object) -> str:
    """Returns a value as people write it: 0.001 and 1e-05, the last part of a class path."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict) and "class_path" in value:
        return str(value["class_path"]).rpartition(".")[2]
    if isinstance(value, list):
        return ",".join(map(short, value))
    return str(value)

"""Several runs over one another."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from netprism.files import write_text
from netprism.report.charts import overlaid
from netprism.report.page import render
from netprism.report.run import Run
from netprism.report.words import headlines, split_key

MOST_KEYS = 60
_PLACES = ("dirpath", "default_root_dir", "save_dir", "ckpt_path")
_SEEDS = ("seed_everything", "data.seed")


def write_comparison(runs: Sequence[Run], path: Path) -> Path:
    """Writes a page with the curves of several runs over one another and a table of what differs between them.

    Runs that differ in their seed alone are drawn in one colour, with their mean and one standard deviation.

    Args:
        runs: Two runs or more.
        path: Path of the page.

    Raises:
        ValueError: There are fewer than two runs, or they have no key in common.
    """
    if len(runs) < 2:
        raise ValueError(f"number of runs is {len(runs)}; expected 2 or more")
    labelled = _labels(runs)
    differences = differing(labelled)
    groups = _groups(labelled, differences)
    counts: dict[str, int] = {}
    for run in runs:
        for key in run.curves:
            counts[key] = counts.get(key, 0) + 1
    common = [key for key, count in counts.items() if count > 1]
    if not common:
        raise ValueError("the runs have no key in common; expected runs of one experiment or of related ones")
    first = headlines(common)
    rest = [key for key in common if key not in first and not split_key(key)[1]]
    layers = [key for key in common if key not in first and split_key(key)[1]]
    charts = {"headline": overlaid(labelled, first, groups), "more": overlaid(labelled, rest, groups)}
    charts["layers"] = overlaid(labelled, layers[: max(0, MOST_KEYS - len(first) - len(rest))], groups)
    write_text(
        path,
        render(
            "compare.html",
            title=f"{len(runs)} runs",
            runs=labelled,
            differences=differences,
            groups=groups,
            headline={key: {label: _ends(run, key) for label, run in labelled.items()} for key in first},
            left_out=len(common) - sum(map(len, charts.values())),
            charts={name: group for name, group in charts.items() if group},
        ),
    )
    return path


def differing(runs: dict[str, Run]) -> dict[str, dict[str, Any]]:
    """Returns {setting: {label: value}} of the settings that are not the same in all runs."""
    names = dict.fromkeys(name for run in runs.values() for name in run.settings)
    table = {name: {label: run.settings.get(name, "–") for label, run in runs.items()} for name in names}
    return {
        name: values
        for name, values in table.items()
        if len({str(value) for value in values.values()}) > 1 and name.rpartition(".")[2] not in _PLACES
    }


def _labels(runs: Sequence[Run]) -> dict[str, Run]:
    """The names without what all have in common; numbered where two are equal."""
    names = [run.name for run in runs]
    shared = os.path.commonpath(names) if len(set(names)) > 1 and len({n.startswith("/") for n in names}) == 1 else ""
    short = [name.removeprefix(f"{shared}/") if shared else name for name in names]
    return {name if short.count(name) == 1 else f"{name} ({i})": runs[i] for i, name in enumerate(short)}


def _groups(runs: dict[str, Run], differences: dict[str, dict[str, Any]]) -> dict[str, str]:
    """A group of each run: all settings that differ, without the seeds."""
    kept = {name: values for name, values in differences.items() if name not in _SEEDS}
    found = {}
    for label, run in runs.items():
        said = ", ".join(f"{name.rpartition('.')[2]} {values[label]}" for name, values in kept.items())
        found[label] = (said or "all seeds") if run.config else label
    return found


def _ends(run: Run, key: str) -> float | None:
    return list(run.curves[key].values())[-1] if key in run.curves else None

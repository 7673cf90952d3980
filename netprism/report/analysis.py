"""The page of networks that were looked at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from netprism.files import write_text
from netprism.report.advice import faults
from netprism.report.charts import Chart, profile
from netprism.report.page import render, turnable_figures
from netprism.report.pictures import pictures_of
from netprism.report.words import meaning, split_key

Values = Mapping[str, Mapping[str, float]]


def write_analysis(folder: Path, values: Values, title: str, about: Mapping[str, Any], notes: list[str]) -> Path:
    """Writes `report.html` of an analysis, whole or not at all: one file that needs no network.

    Args:
        folder: Folder with its `figures` and `maps`, if there are any.
        values: {network: {key: value}}.
        title: Title of the page.
        about: What is said first.
        notes: What was left out, and why.
    """
    keys = list(dict.fromkeys(key for own in values.values() for key in own))
    whole = [key for key in keys if not split_key(key)[1]]
    charts = _charts(values, keys)
    if turned := turnable_figures(folder / "figures"):
        charts["in three dimensions"] = turned
    said = {name: faults({key: {0: value} for key, value in own.items()}, {}) for name, own in values.items()}
    warnings = [line if len(values) == 1 else f"{name}: {line}" for name, lines in said.items() for line in lines]
    path = folder / "report.html"
    write_text(
        path,
        render(
            "analysis.html",
            title=title,
            about=about,
            networks=list(values),
            rows=[(key, meaning(key), [own.get(key) for own in values.values()]) for key in whole],
            warnings=[*notes, *warnings],
            charts=charts,
            pictures=pictures_of(folder),
        ),
    )
    return path


def _charts(values: Values, keys: list[str]) -> dict[str, list[Chart]]:
    sections: dict[str, list[Chart]] = {}
    quantities = dict.fromkeys(split_key(key)[0] for key in keys if split_key(key)[1])
    for quantity in quantities:
        networks: dict[str, dict[str, float]] = {}
        for name, own in values.items():
            for key, value in own.items():
                if split_key(key)[0] == quantity and split_key(key)[1]:
                    networks.setdefault(name, {})[split_key(key)[1]] = value
        sections.setdefault(quantity.partition("/")[0], []).append(profile(networks, quantity))
    return sections

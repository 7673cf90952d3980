"""Mean and spread over the seeds, as CSV to compute with and as Markdown to read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from netprism.studies.grid import short

Rows = list[dict[str, Any]]


def grouped(records: Sequence[Mapping[str, Any]], by: Sequence[str]) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    """Returns {values of the columns `by`: records}, in the order of their appearance."""
    found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for record in records:
        found.setdefault(tuple(_hashable(record.get(key)) for key in by), []).append(record)
    return found


def _hashable(value: object) -> object:
    return short(value) if isinstance(value, dict | list) else value


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and the standard deviation (n - 1) of a sample; NaN where there is none, or one value alone."""
    if not values or any(math.isnan(value) for value in values):
        return math.nan, math.nan
    return fmean(values), stdev(values) if len(values) > 1 else math.nan


def summarise(records: Sequence[Mapping[str, Any]], by: Sequence[str], quantities: Sequence[str]) -> Rows:
    """Returns a row per group: its columns, `n`, and each quantity with its standard deviation, `<quantity> sd`."""
    rows: Rows = []
    for place, members in grouped(records, by).items():
        row: dict[str, Any] = {**dict(zip(by, place, strict=True)), "n": len(members)}
        for name in quantities:
            row[name], row[f"{name} sd"] = mean_and_spread([float(record[name]) for record in members])
        rows.append(row)
    return rows


def markdown(rows: Rows, by: Sequence[str], quantities: Sequence[str], label: Callable[[str], str]) -> str:
    """Returns the rows as a Markdown table, mean ± standard deviation."""
    heads = [*map(label, by), "runs", *map(label, quantities)]
    lines = [f"| {' | '.join(heads)} |", "| " + " | ".join("---" for _ in heads) + " |"]
    for row in rows:
        cells = [*(short(row[key]) for key in by), str(row["n"])]
        cells += [plus_minus(row[name], row[f"{name} sd"]) for name in quantities]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def with_spreads(rows: Rows) -> str:
    """Returns rows as a Markdown table; a column `NAME sd` is the spread of the column `NAME`, and joins it.

    >>> print(with_spreads([{"from": "a", "error": 0.51234, "error sd": 0.02}]), end="")
    | from | error |
    | --- | --- |
    | a | 0.512 ± 0.020 |
    """
    names = [name for name in rows[0] if not name.endswith(" sd")]
    lines = [f"| {' | '.join(names)} |", "| " + " | ".join("---" for _ in names) + " |"]
    for row in rows:
        cells = [
            plus_minus(row[name], row[f"{name} sd"]) if f"{name} sd" in row else short(row[name]) for name in names
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plus_minus(mean: float, spread: float) -> str:
    """Returns both with the digits that the spread allows.

    >>> plus_minus(0.98765, 0.0123), plus_minus(7.5, math.nan), plus_minus(1234.5, 0.0)
    ('0.988 ± 0.012', '7.5', '1234 ± 0')
    """
    if math.isnan(spread):
        return "none" if math.isnan(mean) else f"{mean:.4g}"
    if not spread or not math.isfinite(spread):
        return f"{mean:.4g} ± {spread:.2g}"
    digits = max(0, 1 - math.floor(math.log10(spread)))
    return f"{mean:.{digits}f} ± {spread:.{digits}f}"

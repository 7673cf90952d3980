"""The numbers of a run: columns of its `metrics.csv` and of the rows that a study measured.

A quantity of a study file is the name of a column, or a mapping with

    column: val/accuracy     discarding/SID/* has a row per layer; measure.NAME is a column of the measured rows
    take: last               or first, max, min, mean, over the epochs
    at: 3                    the value of one epoch instead
    minus: train/loss        a column that is subtracted, epoch by epoch
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

Record = dict[str, Any]
Values = list[tuple[dict[str, Any], float]]  # (what a value is of, the value)
Curves = dict[int, dict[str, float]]  # {epoch: {column: value}}
TAKES: dict[str, Callable[[list[float]], float]] = {
    "last": lambda values: values[-1],
    "first": lambda values: values[0],
    "max": max,
    "min": min,
    "mean": fmean,
}
MEASURED = "measure."


def curves(run: Path) -> Curves:
    """Reads `metrics.csv`: the values of each epoch, -1 before the training; of several the last one."""
    found: Curves = {}
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["epoch"]:
                values = {key: float(cell) for key, cell in row.items() if cell and key not in ("epoch", "step")}
                found.setdefault(int(row["epoch"]), {}).update(values)
    return dict(sorted(found.items()))


def records(run: Path, measured: Path | None, read: Mapping[str, Any], per: Sequence[str]) -> list[Record]:
    """Returns the records of one run: one, or one per epoch, layer or whatever `per` names.

    A quantity that is of the whole run, or of a layer alone, is repeated in each record that it belongs to.

    Args:
        run: Folder of the run.
        measured: Table of the measured rows; None: there is none.
        read: {quantity: column or mapping}.
        per: What a record is of.

    Raises:
        ValueError: A column is not there, or the values of a quantity are of something that `per` does not name.
    """
    logged = curves(run) if any(not _column(spec).startswith(MEASURED) for spec in read.values()) else {}
    rows = _rows(measured)
    found = {name: _values(name, spec, logged, rows, per) for name, spec in read.items()}
    dimensions = [name for name in per if any(name in of for values in found.values() for of, _ in values)]
    if missing := [name for name in per if name not in dimensions]:
        raise ValueError(f"per is {missing[0]}, but no quantity has it; expected epoch, layer (of a column with *) "
                         "or a column of the measured rows")  # fmt: skip
    lookup = {name: {tuple(of.items()): value for of, value in values} for name, values in found.items()}
    # The quantities that are of everything say which records there are.
    whole = [values for values in found.values() if values and set(values[0][0]) == set(dimensions)]
    places = dict.fromkeys(tuple(of.items()) for values in whole for of, _ in values)
    result = []
    for place in places:
        record = dict(place)
        for name, values in lookup.items():
            names = {key for of in values for key, _ in of}
            record[name] = values.get(tuple(item for item in place if item[0] in names), math.nan)
        result.append(record)
    return result


def _column(spec: object) -> str:
    return str(spec["column"]) if isinstance(spec, Mapping) else str(spec)


def _rows(measured: Path | None) -> list[dict[str, str]]:
    if measured is None:
        return []
    with measured.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _values(name: str, spec: object, logged: Curves, rows: list[dict[str, str]], per: Sequence[str]) -> Values:
    options = dict(spec) if isinstance(spec, Mapping) else {"column": spec}
    if unknown := options.keys() - {"column", "take", "at", "minus"}:
        raise ValueError(f"{name}: key is {min(unknown)!r}; expected column, take, at, minus")
    column = str(options["column"])
    if column.startswith(MEASURED):
        return _of_rows(name, column.removeprefix(MEASURED), rows, per)
    take = options.get("take", "last")
    if take not in TAKES:
        raise ValueError(f"{name}: take is {take!r}; expected one of {', '.join(TAKES)}")
    pattern = re.compile(re.escape(column).replace(r"\*", "([^/]+)"))
    columns = {key: match for row in logged.values() for key in row if (match := pattern.fullmatch(key))}
    found: Values = []
    for key, match in columns.items():
        of = {"layer": match[1]} if match.groups() else {}
        curve = {epoch: row[key] for epoch, row in logged.items() if key in row}
        if "minus" in options:
            other = options["minus"]
            curve = {epoch: value - logged[epoch][other] for epoch, value in curve.items() if other in logged[epoch]}
        if "at" in options:
            curve = {epoch: value for epoch, value in curve.items() if epoch == options["at"]}
        if "epoch" in per and "take" not in options and "at" not in options:
            found += [(_ordered({"epoch": epoch, **of}, per), value) for epoch, value in curve.items()]
        elif curve:
            found.append((of, TAKES[take](list(curve.values()))))
    if not found:
        known = ", ".join(dict.fromkeys(key for row in logged.values() for key in row if not key.endswith("_step")))
        raise ValueError(f"{name} is read from {column!r}, which was not logged; expected one of {known}")
    return found


def _of_rows(name: str, column: str, rows: list[dict[str, str]], per: Sequence[str]) -> Values:
    if not rows or column not in rows[0]:
        known = ", ".join(rows[0]) if rows else "nothing"
        raise ValueError(f"{name} is read from {MEASURED}{column}, which was not measured; expected one of {known}")
    return [
        ({key: number(row[key]) for key in per if key in row}, float(row[column])) for row in rows if row[column] != ""
    ]


def _ordered(of: dict[str, Any], per: Sequence[str]) -> dict[str, Any]:
    return {key: of[key] for key in per if key in of}


def number(cell: str) -> Any:  # noqa: ANN401 - what a cell holds
    """Returns an int, a float or the text of a cell."""
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            pass
    return cell

"""The figure of a study: quantities against an option, one line per group, mean and standard deviation over seeds.

A panel of a study file is a mapping with

    x: model.weight          option, epoch or layer; text becomes a category
    y: H                     quantity
    by: model.prior_only     one line per value, optional
    where: {epoch: 9}        which records, optional
    scale: log               of the x axis: linear, log or symlog; optional
    title: VGG-11            optional

or, for a quantity of pairs, such as a correlation,

    matrix: levels           quantity, between -1 and 1, in cells
    x: second                of the columns
    y: first                 of the rows
    where: {weight: 0}       which records, optional
    title: no loss           optional
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from netprism.figures._common import panels, styled

# Okabe and Ito's colours, which colour-blind readers tell apart, without the yellow that white paper swallows; the
# markers tell them apart in grey.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "os^Dv<>"
Records = Sequence[Mapping[str, Any]]


@styled
def study_figure(records: Records, specs: Sequence[Mapping[str, Any]], label: Callable[[str], str]) -> Figure:
    """Returns the panels of a study, at most three side by side.

    Args:
        records: One per run and whatever a record is of, with `seed`.
        specs: The panels, as above.
        label: Words for an option or a quantity.

    Raises:
        ValueError: A panel names a column that the records do not have.
    """
    columns = 2 if len(specs) == 4 else min(3, len(specs))
    rows = math.ceil(len(specs) / columns)
    lines = max((_lines_above(records, spec) for spec in specs), default=0)
    figure = Figure(figsize=(3.6 * columns, (3.0 + 0.2 * lines) * rows), layout="constrained")
    for axes, spec in zip(panels(figure, rows, columns, len(specs)), specs, strict=True):
        (_matrix if "matrix" in spec else _panel)(axes, records, spec, label)
    return figure


def _matrix(axes: Axes, records: Records, spec: Mapping[str, Any], label: Callable[[str], str]) -> None:
    """Mean and standard deviation in cells; blue falls, red rises, which the colour-blind tell apart."""
    x, y, quantity = str(spec["x"]), str(spec["y"]), str(spec["matrix"])
    _check_columns(records, {"x": x, "y": y, "matrix": quantity})
    chosen = _chosen(records, spec)
    down, across = (list(dict.fromkeys(record[role] for record in chosen)) for role in (y, x))
    cells = np.full((len(down), len(across)), np.nan)
    for place in np.ndindex(cells.shape):
        pair = down[place[0]], across[place[1]]
        values = [float(record[quantity]) for record in chosen if (record[y], record[x]) == pair]
        if not values:
            continue
        cells[place] = np.mean(values)
        text = f"{cells[place]:.2f}" + (f"\n± {np.std(values, ddof=1):.2f}" if len(values) > 1 else "")
        # White on the dark ends of the colours.
        color = "white" if abs(cells[place]) > 0.7 else "black"
        axes.text(place[1], place[0], text, ha="center", va="center", fontsize="x-small", color=color)
    axes.imshow(cells, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    axes.set_xticks(range(len(across)), [label(str(name)) for name in across], rotation=30, ha="right")
    axes.set_yticks(range(len(down)), [label(str(name)) for name in down])
    axes.set_title(spec.get("title", label(quantity)))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _chosen(records: Records, spec: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    where = spec.get("where", {}).items()
    return [
        record
        for record in records
        if all(record.get(key) in (value if isinstance(value, list) else [value]) for key, value in where)
    ]


def _check_columns(records: Records, roles: Mapping[str, Any]) -> None:
    known = {key for record in records for key in record}
    for role, column in roles.items():
        if column is not None and column not in known:
            raise ValueError(f"{role} of a panel is {column!r}; expected one of {', '.join(sorted(known))}")


def _panel(axes: Axes, records: Records, spec: Mapping[str, Any], label: Callable[[str], str]) -> None:
    _check_columns(records, {role: spec.get(role) for role in ("x", "y", "by")})
    x, y, by = str(spec["x"]), str(spec["y"]), spec.get("by")
    chosen = _chosen(records, spec)
    places = list(dict.fromkeys(_plain(record[x]) for record in chosen))
    is_number = all(isinstance(place, int | float) and not isinstance(place, bool) for place in places)
    if is_number:
        places.sort()
    groups = list(dict.fromkeys(_plain(record[by]) for record in chosen)) if by else [None]
    # A group keeps its colour in panels that show some of the groups only.
    of_all = list(dict.fromkeys(_plain(record[by]) for record in records if by in record)) if by else [None]
    many = len(places) > 12
    for number, group in enumerate(groups):
        means, spreads, at = [], [], []
        for position, place in enumerate(places):
            values = [
                float(record[y])
                for record in chosen
                if _plain(record[x]) == place and (by is None or _plain(record[by]) == group)
            ]
            values = [value for value in values if math.isfinite(value)]
            if values:
                offset = 0.0 if is_number or len(groups) == 1 else 0.12 * (number - (len(groups) - 1) / 2)
                at.append(float(place) if is_number else position + offset)
                means.append(float(np.mean(values)))
                spreads.append(float(np.std(values, ddof=1)) if len(values) > 1 else 0.0)
        style = of_all.index(group)
        color, marker = COLORS[style % len(COLORS)], MARKERS[style % len(MARKERS)]
        name = None if group is None else str(label(str(group)))
        line = "-" if is_number or spec.get("join", False) else "none"
        if many and is_number:
            axes.plot(at, means, color=color, marker=marker, markevery=max(1, len(at) // 10), markersize=3, label=name)
            low, high = np.subtract(means, spreads), np.add(means, spreads)
            axes.fill_between(at, low, high, color=color, alpha=0.2, linewidth=0)
        else:
            axes.errorbar(
                at, means, spreads, color=color, marker=marker, linestyle=line, markersize=4, capsize=2, label=name
            )
    if is_number:
        if spec.get("scale") == "symlog":  # a logarithm that has room for 0
            least = min((abs(float(place)) for place in places if place), default=1.0)
            axes.set_xscale("symlog", linthresh=least, linscale=0.5)
        elif spec.get("scale") == "log":
            axes.set_xscale("log")
            if len(places) <= 6:  # the values themselves, where matplotlib writes 4 x 10^0
                axes.set_xticks(places, [f"{place:g}" for place in places], minor=False)
                axes.minorticks_off()
        elif all(isinstance(place, int) for place in places):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        axes.set_xticks(range(len(places)), [label(str(place)) for place in places], rotation=20, ha="right")
    axes.set_xlabel(label(x))
    axes.set_ylabel(label(y))
    if "title" in spec:
        axes.set_title(spec["title"], fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
    if by:
        legend = axes.legend(frameon=False, fontsize="small", title=label(str(by)), title_fontsize="small")
        if _lines_above(records, spec):
            legend.set_loc("lower left")
            legend.set_bbox_to_anchor((0, 1))


def _lines_above(records: Records, spec: Mapping[str, Any]) -> int:
    """Lines of a legend above its panel, where its groups leave no room within; else 0."""
    by, chosen = spec.get("by"), _chosen(records, spec)
    groups = {_plain(record[by]) for record in chosen if by in record} if by else set()
    numbers = all(isinstance(_plain(record.get(spec["x"])), int | float) for record in chosen)
    return 0 if len(groups) < (5 if numbers else 4) else len(groups) + 1


def _plain(value: Any) -> Any:  # noqa: ANN401 - what an option holds
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, dict | list) or value is None else value

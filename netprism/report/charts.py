"""Curves of runs as figures of plotly: plain dictionaries, since building its Python objects takes seconds."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.colors import to_hex

from netprism.report.run import Run, Series
from netprism.report.words import meaning, split_key

# Okabe and Ito 2008, https://jfly.uni-koeln.de/color/: eight colours that the colour-blind tell apart, without yellow
# and black, which one of the two grounds hides.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
DASHES = ("solid", "dash", "dot", "dashdot")
MOST_LINES = 30
Chart = dict[str, Any]


def charts_of(run: Run) -> dict[str, list[Chart]]:
    """Returns {section: charts}: one chart per quantity, and layers by epochs where there are layers.

    Test and training images are in two charts unless the quantity does not depend on their number.
    """
    sections: dict[str, list[Chart]] = {}
    for quantity, parts in _quantities(run).items():
        section = "training" if quantity.partition("/")[0] in ("train", "val", "test") else quantity.partition("/")[0]
        charts = sections.setdefault(section if "/" in quantity else "training", [])
        if len(parts) == 1:
            ((layer, series),) = parts.items()
            charts.append(lines({layer or quantity: series}, quantity))
        else:
            whole = {name or "all": series for name, series in parts.items()}
            charts.append(lines(whole, quantity) if len(whole) <= MOST_LINES else heat_map(parts, quantity))
            if 3 < len(parts) <= MOST_LINES and len(run.epochs) > 1:
                charts.append(heat_map(parts, quantity))
    return {name: sections[name] for name in sorted(sections, key=lambda name: name != "training")}


def overlaid(runs: Mapping[str, Run], keys: Sequence[str], groups: Mapping[str, str]) -> list[Chart]:
    """Returns one chart per key: a line per run, and runs of one group (seeds) in one colour.

    Args:
        runs: {label: run}.
        keys: Keys to draw.
        groups: {label: group}; several runs of one group also get their mean, with a band of one standard deviation.
    """
    return [_overlay(key, {label: run.curves[key] for label, run in runs.items() if key in run.curves}, groups)
            for key in keys]  # fmt: skip


def lines(series: Mapping[str, Series], quantity: str) -> Chart:
    """Returns a chart of named curves over epochs: layers in rising brightness, few of them in colours that differ."""
    rising = len(series) > len(COLOURS)
    traces = []
    for number, (name, values) in enumerate(series.items()):
        share = number / max(len(series) - 1, 1)
        colour = to_hex(colormaps["viridis"](0.1 + 0.75 * share)) if rising else COLOURS[number]
        dash = DASHES[number % len(DASHES)] if rising else "solid"
        traces.append(_line(name, values, colour, dash))
    return _chart(quantity, traces, {"xaxis": _epochs(), "yaxis": {"title": {"text": meaning(quantity).unit}}})


def profile(networks: Mapping[str, Mapping[str, float]], quantity: str) -> Chart:
    """Returns a chart of a quantity over layers, or over orders: a line per network.

    Args:
        networks: {network: {layer: value}}.
        quantity: The key without the layer.
    """
    traces = [
        {
            "type": "scatter", "mode": "lines+markers", "name": name, "x": list(layers),
            "y": [_cell(value) for value in layers.values()], "marker": {"size": 6},
            "line": {"color": COLOURS[number % len(COLOURS)], "dash": DASHES[number // len(COLOURS) % len(DASHES)]},
        }
        for number, (name, layers) in enumerate(networks.items())
    ]  # fmt: skip
    layout = {"xaxis": {"type": "category", "automargin": True}, "yaxis": {"title": {"text": meaning(quantity).unit}}}
    return _chart(quantity, traces, layout)


def heat_map(parts: Mapping[str, Series], quantity: str) -> Chart:
    """Returns layers by epochs."""
    layers = {name: series for name, series in parts.items() if name}
    epochs = sorted({epoch for series in layers.values() for epoch in series})
    trace = {
        "type": "heatmap", "x": [_name(epoch) for epoch in epochs], "y": list(layers), "colorscale": "Viridis",
        "z": [[_cell(series.get(epoch, math.nan)) for epoch in epochs] for series in layers.values()],
        "colorbar": {"title": {"text": meaning(quantity).unit}, "thickness": 12},
    }  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": "epoch"}, "type": "category"},
        "yaxis": {"autorange": "reversed", "automargin": True, "type": "category"},
        "height": 160 + 18 * len(layers),
    }
    return _chart(f"{quantity}: layers by epochs", [trace], layout, quantity)


def turnable(page: str, title: str) -> Chart | None:
    """Returns the figure within a page that plotly has written, with its frames; None where there is none."""
    start = re.search(r'Plotly\.newPlot\(\s*(?=")', page)  # plotly's own source, in the page, calls it with a variable
    if start is None:
        return None
    decoder, position, found = json.JSONDecoder(), start.end(), []
    for _ in range(3):  # the id of the element, traces, layout
        value, position = decoder.raw_decode(page, position)
        position = re.compile(r"[\s,]*").match(page, position).end()  # type: ignore[union-attr]  # matches anything
        found.append(value)
    begin = re.search(r"Plotly\.addFrames\(\s*(['\"]).*?\1\s*,\s*", page)
    frames = decoder.raw_decode(page, begin.end())[0] if begin else []
    layout = {key: value for key, value in found[2].items() if key != "template"} | {"height": 560}
    return _chart(title, found[1], layout) | {"frames": frames}


def _overlay(key: str, series: Mapping[str, Series], groups: Mapping[str, str]) -> Chart:
    names = list(dict.fromkeys(groups[label] for label in series))
    members = {name: [label for label in series if groups[label] == name] for name in names}
    traces: list[dict[str, Any]] = []
    for number, (name, labels) in enumerate(members.items()):
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]
        if len(labels) == 1:
            traces.append(_line(labels[0], series[labels[0]], colour, dash))
            continue
        for label in labels:
            thin = _line(label, series[label], colour, dash) | {"opacity": 0.35, "showlegend": False}
            traces.append(thin | {"line": {"color": colour, "width": 1}, "mode": "lines"})
        traces += _band(f"{name}, mean of {len(labels)}", [series[label] for label in labels], colour)
    return _chart(key, traces, {"xaxis": _epochs(), "yaxis": {"title": {"text": meaning(key).unit}}})


def _band(name: str, series: Sequence[Series], colour: str) -> list[dict[str, Any]]:
    epochs = sorted(set.intersection(*(set(one) for one in series)))
    means = [sum(one[e] for one in series) / len(series) for e in epochs]
    spread = [
        math.sqrt(sum((one[e] - mean) ** 2 for one in series) / (len(series) - 1))
        for e, mean in zip(epochs, means, strict=True)
    ]
    upper = [_cell(m + s) for m, s in zip(means, spread, strict=True)]
    lower = [_cell(m - s) for m, s in zip(means, spread, strict=True)]
    area = {
        "x": epochs + epochs[::-1], "y": upper + lower[::-1], "fill": "toself", "fillcolor": colour, "opacity": 0.2,
        "line": {"width": 0}, "type": "scatter", "mode": "lines", "showlegend": False, "hoverinfo": "skip",
        "name": f"{name}, one standard deviation",
    }  # fmt: skip
    return [area, _line(name, dict(zip(epochs, means, strict=True)), colour, "solid")]


def _line(name: str, series: Series, colour: str, dash: str) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "lines+markers", "name": name, "x": list(series),
        "y": [_cell(value) for value in series.values()], "connectgaps": False,
        "line": {"color": colour, "dash": dash, "width": 2}, "marker": {"size": 5},
    }  # fmt: skip


def _chart(title: str, traces: list[Any], layout: dict[str, Any], key: str | None = None) -> Chart:
    return {"title": title, "text": meaning(key or title).text, "data": traces, "layout": layout, "frames": []}


def _epochs() -> dict[str, Any]:
    return {"title": {"text": "epoch (-1: before training)"}, "tickformat": "d"}


def _name(epoch: int) -> str:
    return "start" if epoch < 0 else str(epoch)


def _cell(value: float) -> float | None:
    """JSON has no NaN; six digits are enough for a picture."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _quantities(run: Run) -> dict[str, dict[str, Series]]:
    found: dict[str, dict[str, Series]] = {}
    for key, series in run.curves.items():
        quantity, layer = split_key(key)
        found.setdefault(quantity, {})[layer] = series
    return found

"""The figures of the gating entropy: curves, layers by epochs, activation rates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from netprism.figures._common import History, epoch_axis, epoch_name, panels, save, styled
from netprism.gates.entropy import GateComplexity

_CURVES = (
    ("entropy", "entropy of all gates H(Σ), bits"),
    ("class_information", "class information I(X;Σ;Y), bits"),
    ("total_correlation", "total correlation TC(Σ), bits"),
    ("saturation", "saturation H(Σ) / log₂ n"),
)
_MOST_HISTOGRAMS = 24
RATE_BINS = 20


def keep_rates(rates: dict[str, dict[str, Any]], epoch: int, complexity: GateComplexity) -> None:
    """Keeps the histograms of activation rates of the first, the lowest-entropy and the last measurement in `rates`."""
    entry = {
        "epoch": epoch,
        "entropy": complexity.joint_entropy,
        "layers": {
            name: np.histogram(np.linspace(0, 1, len(gates)), RATE_BINS, (0, 1), weights=gates.numpy())[0].tolist()
            for name, gates in complexity.open_on.items()
        },
    }
    rates.setdefault("first", entry)
    if entry["entropy"] <= rates.get("lowest", entry)["entropy"]:
        rates["lowest"] = entry
    rates["last"] = entry


def draw(history: History, rates: Mapping[str, Mapping[str, Any]], folder: Path, name: str) -> list[Path]:
    """Draws all figures of the gating entropy.

    Args:
        history: One row per measurement, with `epoch` (-1 before training) and the keys that `GatingEntropy` logs.
        rates: What `keep_rates` keeps: "first", "lowest" and "last" -> `epoch`, `entropy` and `layers`, which is
            layer -> counts of activation rates in equal bins.
        folder: Folder of the files; it is created.
        name: Prefix of their names.

    Returns:
        The files: `<name>_curves.png`, `<name>_layers.png`, `<name>_activation_rates.png`; none without a measurement.
    """
    if not history:
        return []
    drawn = {
        "curves": entropy_curves(history),
        "layers": layers_by_epochs(history),
        "activation_rates": activation_rate_histograms(rates),
    }
    return [save(figure, folder / f"{name}_{what}.png") for what, figure in drawn.items()]


@styled
def entropy_curves(history: History) -> Figure:
    """Entropy, class information, total correlation and saturation over epochs, of training and test images."""
    shown = [(key, label) for key, label in _CURVES if any(key in row for row in history)]
    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(4.5 * columns, 3.2 * rows), layout="constrained")
    counts = {prefix: _images(history, prefix) for prefix in ("", "test/")}
    names = {prefix: f"{split} images, n = {counts[prefix]}" for prefix, split in (("", "training"), ("test/", "test"))}
    for axes, (key, label) in zip(panels(figure, rows, columns, len(shown)), shown, strict=True):
        for column, split, style in ((key, names[""], "o-"), (f"test/{key}", names["test/"], "s--")):
            points = [(row["epoch"], row[column]) for row in history if column in row]
            if points:
                axes.plot(*zip(*points, strict=True), style, markersize=3 if len(points) < 40 else 1, label=split)
        axes.set_title(label, fontsize="medium")
        epoch_axis(axes)
    figure.axes[0].legend()
    if counts["test/"] and counts[""] != counts["test/"]:
        figure.supxlabel(
            "Values over different numbers of images cannot be compared with one another.", fontsize="small"
        )
    return figure


def _images(history: History, prefix: str) -> int:
    """The number of images, from H and H / log2 n; 0 where neither tells."""
    for row in history:
        entropy, saturation = row.get(f"{prefix}entropy", 0.0), row.get(f"{prefix}saturation", 0.0)
        if entropy > 0 and saturation > 0:
            return round(2 ** (entropy / saturation))
    return 0


@styled
def layers_by_epochs(history: History) -> Figure:
    """H(Sigma_l) as a heat map: one row per layer, one column per epoch; training and test images."""
    splits = [(f"{p}entropy/", title) for p, title in (("", "training images"), ("test/", "test images"))]
    keys = dict.fromkeys(key for row in history for key in row)  # a resumed run may have others
    splits = [(prefix, title) for prefix, title in splits if any(key.startswith(prefix) for key in keys)]
    layers = [key.removeprefix("entropy/") for key in keys if key.startswith("entropy/")]
    values = [
        np.array([[row.get(prefix + layer, np.nan) for row in history] for layer in layers]) for prefix, _ in splits
    ]
    figure = Figure(figsize=(1.5 + 4.5 * len(splits), 1.2 + 0.22 * len(layers)), layout="constrained")
    top = max(float(np.nanmax(block)) for block in values)
    panels = figure.subplots(1, len(splits), squeeze=False, sharey=True)[0]
    for axes, block, (_, title) in zip(panels, values, splits, strict=True):
        picture = axes.imshow(block, aspect="auto", interpolation="nearest", vmin=0, vmax=top)
        epochs = [int(row["epoch"]) for row in history]
        shown = range(0, len(epochs), max(1, len(epochs) // 10))
        axes.set_xticks(list(shown), [epoch_name(epochs[i]) for i in shown])
        axes.set_yticks(range(len(layers)), layers, fontsize="small")
        axes.set_xlabel("epoch")
        axes.set_title(title, fontsize="medium")
    figure.colorbar(picture, ax=figure.axes, label="H(Σ of a layer), bits")
    return figure


@styled
def activation_rate_histograms(rates: Mapping[str, Mapping[str, Any]]) -> Figure:
    """How often the gates of each layer are open, at the first, the lowest-entropy and the last measurement."""
    layers = [layer for layer in rates["first"]["layers"] if all(layer in r["layers"] for r in rates.values())]
    if len(layers) > _MOST_HISTOGRAMS:  # evenly spaced ones, the first and the last among them
        layers = [layers[i] for i in np.linspace(0, len(layers) - 1, _MOST_HISTOGRAMS).round().astype(int)]
    rows = -(-len(layers) // 6)
    columns = -(-len(layers) // rows)
    figure = Figure(figsize=(max(9.0, 2.4 * columns), 0.8 + 1.7 * rows), layout="constrained")
    lines = _distinct(rates)
    colors = colormaps["viridis"](np.linspace(0, 0.85, len(lines)))
    for axes, layer in zip(panels(figure, rows, columns, len(layers)), layers, strict=True):
        for (label, measured), color in zip(lines.items(), colors, strict=True):
            counts = np.asarray(measured["layers"][layer])
            axes.stairs(counts / counts.sum(), np.linspace(0, 1, len(counts) + 1), color=color, label=label)
        axes.set_title(layer, fontsize="small")
        axes.set_yticks([])
    figure.supxlabel("activation rate of a gate")
    figure.supylabel("fraction of the gates")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    return figure


def _distinct(rates: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The measurements by a label; one that is first and lowest at once is listed once."""
    names: dict[int, list[str]] = {}
    for name in ("first", "lowest", "last"):
        names.setdefault(int(rates[name]["epoch"]), []).append(name)
    labelled = {}
    for epoch, same in names.items():
        measured = rates[same[0]]
        when = f"epoch {epoch}" if epoch >= 0 else "start"
        labelled[f"{' and '.join(same)}: {when}, H = {measured['entropy']:.2f} bits"] = measured
    return labelled

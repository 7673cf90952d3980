"""The figures of the complexity loss: curves of a training, and what its weight buys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from netprism.figures._common import History, epoch_axis, panels, save, styled

_LAYERWISE = (
    ("complexity", "complexity as penalised, nats"),
    ("entropy_bound", "upper bound of the entropy, nats"),
    ("energy_gap", "f of gates minus f of samples, nats"),
    ("acceptance", "fraction of proposals accepted"),
)
_SWEPT = (
    ("H", "sum of layer entropies, bits"),
    ("accuracy", "test accuracy"),
    ("gap", "test loss - training loss, nats"),
)


def draw(history: History, folder: Path) -> list[Path]:
    """Draws `penalty_curves.png`: one panel per quantity, one line per layer.

    Args:
        history: One row per epoch, with `epoch` and the keys that `ComplexityPenalty` logs, without the prefix.
        folder: Folder of the file; it is created.

    Returns:
        The file; none without an epoch.
    """
    return [save(penalty_curves(history), folder / "penalty_curves.png")] if history else []


@styled
def penalty_curves(history: History) -> Figure:
    """Energies, gaps and acceptance of each layer over epochs, and the train-test gap."""
    keys = dict.fromkeys(key for row in history for key in row)
    shown = [(label, [k for k in keys if k.startswith(f"{kind}/")]) for kind, label in _LAYERWISE]
    shown += [("test loss - training loss", [key for key in keys if key == "train_test_gap"])]
    shown = [(label, lines) for label, lines in shown if lines]
    figure = Figure(figsize=(4.5 * max(len(shown), 1), 3.2), layout="constrained")
    for axes, (label, lines) in zip(panels(figure, 1, max(len(shown), 1), len(shown)), shown, strict=True):
        for key in lines:
            points = [(row["epoch"], row[key]) for row in history if key in row]
            axes.plot(*zip(*points, strict=True), "o-", markersize=2, label=key.partition("/")[2])
        axes.set_title(label, fontsize="medium")
        epoch_axis(axes)
    if shown and shown[0][1][0] != "train_test_gap":
        figure.axes[0].legend(frameon=False, fontsize="small")
    return figure


@styled
def weight_sweep(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Entropy, accuracy and over-fitting against the weight, and accuracy against entropy, one line per estimator.

    Args:
        rows: One row per training: `weight`, `estimator`, `seed`, `H` (bits), `accuracy`, `gap` (nats). Lines are means
            over seeds, bands from the lowest to the highest; weight 0 is at the left end, and the same for all.
    """
    figure = Figure(figsize=(17, 3.6), layout="constrained")
    *swept, trade = panels(figure, 1, 4, 4)
    estimators = [name for name in dict.fromkeys(row["estimator"] for row in rows) if name != "none"]
    for number, label in enumerate(estimators):
        color = f"C{number}"
        own = [row for row in rows if row["estimator"] == label or row["weight"] == 0]
        weights = sorted({row["weight"] for row in own})
        for axes, (key, title) in zip(swept, _SWEPT, strict=True):
            _band(
                axes, weights, [[row[key] for row in own if row["weight"] == value] for value in weights], color, label
            )
            axes.set_title(title, fontsize="medium")
            axes.set_xlabel("λ")
        means = [
            [np.mean([row[key] for row in own if row["weight"] == v]) for v in weights] for key in ("H", "accuracy")
        ]
        trade.plot(*means, "o-", color=color, markersize=4, label=label)
        trade.scatter([row["H"] for row in own], [row["accuracy"] for row in own], s=6, color=color, alpha=0.4)
    trade.set_title("accuracy against entropy: up and left is better", fontsize="medium")
    trade.set_xlabel("sum of layer entropies, bits")
    trade.spines[["top", "right"]].set_visible(False)
    trade.legend(frameon=False)
    return figure


def _band(axes: Axes, weights: Sequence[float], values: Sequence[Sequence[float]], color: str, label: str) -> None:
    axes.set_xscale("symlog", linthresh=min((value for value in weights if value > 0), default=1.0))
    axes.plot(weights, [np.mean(v) for v in values], "o-", color=color, markersize=4, label=label)
    axes.fill_between(weights, [min(v) for v in values], [max(v) for v in values], color=color, alpha=0.15, linewidth=0)
    axes.spines[["top", "right"]].set_visible(False)

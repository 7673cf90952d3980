"""Quantities over the layers of one network or of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from netprism.figures._common import COLOURS, panels, styled

Profiles = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]
MOST_TICKS = 12


@styled
def layer_profiles(profiles: Profiles) -> tuple[Figure, list[Axes]]:
    """Draws quantities over the layers, in their order, as measured: the curve may rise and fall.

    Networks with other layers are drawn over their depth, from the first layer to the last.

    Args:
        profiles: {label of the y axis: {network: {layer: values}}}; of several values, of single images, the mean is
            drawn with a band of one standard deviation.

    Returns:
        The figure, and one panel per quantity.
    """
    count = len(profiles)
    columns = min(count, 3)
    rows = -(-count // max(columns, 1))
    figure = Figure(figsize=(4.4 * columns, 3.4 * rows), layout="constrained")
    shown = panels(figure, rows, columns, count)
    for axes, (title, networks) in zip(shown, profiles.items(), strict=True):
        names = [list(layers) for layers in networks.values()]
        is_same = all(own == names[0] for own in names)
        for colour, (network, layers) in zip(COLOURS * len(networks), networks.items(), strict=False):
            places = np.arange(len(layers)) if is_same else np.linspace(0, 1, len(layers))
            _line(axes, places, list(layers.values()), colour, network)
        if is_same:
            _name_layers(axes, names[0])
        else:
            axes.set_xlabel("depth, first to last layer")
        axes.set_title(title, fontsize="medium")
        axes.spines[["top", "right"]].set_visible(False)
    if shown and any(len(networks) > 1 for networks in profiles.values()):
        shown[0].legend(frameon=False, fontsize="small")
    return figure, shown


def _line(axes: Axes, places: np.ndarray, values: Sequence[Sequence[float]], colour: str, label: str) -> None:
    mean = np.array([np.nanmean(each) if np.isfinite(each).any() else np.nan for each in map(np.asarray, values)])
    axes.plot(places, mean, marker="o", markersize=4, color=colour, label=label)
    if any(len(each) > 1 for each in values):
        spread = np.array([np.nanstd(each) if np.isfinite(each).any() else np.nan for each in map(np.asarray, values)])
        axes.fill_between(places, mean - spread, mean + spread, alpha=0.2, linewidth=0, color=colour)
        axes.set_xlabel("band: one standard deviation over images", fontsize="small")


def _name_layers(axes: Axes, names: Sequence[str]) -> None:
    step = -(-len(names) // MOST_TICKS)
    is_long = len(names) > 5 or max(map(len, names)) > 10
    axes.set_xticks(
        range(0, len(names), step), names[::step], rotation=45 if is_long else 0, ha="right" if is_long else "center",
        fontsize="small",
    )  # fmt: skip

"""The figures of the regressor: networks over the plane of their first two principal components, and predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from netprism.components.regressor import Floats, Plane
from netprism.figures._common import styled


@styled
def regression_plane(plane: Plane, performance: Sequence[float], groups: Sequence[str], what: str) -> Figure:
    """Draws networks as points, their performance as height, and the fitted plane; a line per network is its error.

    Args:
        plane: Result of `netprism.components.regressor.fit_plane`.
        performance: The n heights.
        groups: The n names of the networks' groups; a group has one colour.
        what: Label of the height, with its unit.
    """
    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    axes = figure.add_subplot(projection="3d")
    corners = np.meshgrid(*zip(plane.points.min(axis=0), plane.points.max(axis=0), strict=True))
    axes.plot_surface(*corners, _height(plane, *corners), color="0.6", alpha=0.35, shade=False)
    heights = np.asarray(performance, dtype=float)
    for name in dict.fromkeys(groups):
        chosen = np.array([group == name for group in groups])
        axes.plot(*plane.points[chosen].T, heights[chosen], "o", markersize=5, label=name)
    for (x, y), height in zip(plane.points, heights, strict=True):
        axes.plot([x, x], [y, y], [height, _height(plane, x, y)], color="0.4", linewidth=0.7)
    axes.set_xlabel(f"1st component ({plane.explained[0]:.0%} of variance)")
    axes.set_ylabel(f"2nd component ({plane.explained[1]:.0%})")
    axes.set_zlabel(what)
    axes.view_init(elev=18, azim=-60)
    figure.legend(loc="outside upper center", ncols=min(5, len(set(groups))), frameon=False)
    return figure


@styled
def predicted_performance(values: Mapping[str, Mapping[str, tuple[Floats, Floats]]]) -> Figure:
    """Draws predicted over measured performance: a panel per quantity, a point per network; equal on the line.

    Args:
        values: {quantity with its unit: {group of networks: measured and predicted (n,)}}.
    """
    figure = Figure(figsize=(4.2 * len(values), 4.2), layout="constrained")
    for axes, (what, groups) in zip(figure.subplots(1, len(values), squeeze=False)[0], values.items(), strict=True):
        shown = np.concatenate([np.concatenate(pair) for pair in groups.values()])
        axes.axline((shown.min(), shown.min()), slope=1, color="0.6", linewidth=0.8)
        for (name, (measured, predicted)), marker in zip(groups.items(), "os^Dv", strict=False):
            axes.plot(measured, predicted, marker, markersize=5, alpha=0.8, label=name)
        axes.set_xlabel(f"test {what}, measured")
        axes.set_ylabel(f"test {what}, predicted")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=len(groups), frameon=False)
    return figure


def _height(plane: Plane, x: Floats, y: Floats) -> Floats:
    height: Floats = plane.intercept + plane.slopes[0] * x + plane.slopes[1] * y
    return height

"""Regional features of two classes, layer by layer: densities, and the regions that decide in the last layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from scipy.stats import gaussian_kde
from torch import Tensor

from netprism.figures._common import panels, styled
from netprism.knowledge.points import KnowledgePointCounts

OWN, OTHER, DOTS = "#0072B2", "#D55E00", "black"  # blue and vermilion differ for all eyes, and in grey by their dashes
LEVELS = (0.2, 0.5, 0.8)  # fractions of the regions inside a contour
_GRID = 60


@dataclass(frozen=True)
class ClassPlane:
    """The regions of two classes in the plane of their directions, in one layer.

    Attributes:
        layer: Name of the layer.
        names: Names of the class that is looked at, and of the other one.
        own: Regions of images of that class `(n, 2)`, across and up: up is the direction of the class.
        other: Regions of images of the other class `(m, 2)`.
        followed: Those of `own` that are reliable knowledge points in the last layer `(k, 2)`.
        arrows: Directions of both classes in this plane, `(2, 2)`.
    """

    layer: str
    names: tuple[str, str]
    own: Tensor
    other: Tensor
    followed: Tensor
    arrows: Tensor


def class_planes(
    h: Mapping[str, Tensor],
    last: Mapping[str, tuple[tuple[int, int], KnowledgePointCounts]],
    directions: Tensor,
    labels: Tensor,
    names: Sequence[str],
) -> list[ClassPlane]:
    """Returns the plane of each layer, for the class with the most reliable knowledge points in the last layer.

    The other class is the one that these images are nearest to beside their own: the nearest direction. Where a layer
    has finer regions than the last one, the means of those inside one of its regions are taken.

    Args:
        h: Layer -> projected regional features `(N, R, d)`, d 2 or 3.
        last: Layer -> rows and columns of its regions, and knowledge points.
        directions: Directions of the classes `(C, d)`, unit vectors.
        labels: Classes of the images `(N,)`.
        names: Names of the classes.

    Returns:
        One per layer; none where no knowledge point is reliable.
    """
    *_, (sides, counts) = last.values()
    reliable = counts.reliable.cpu()
    of_class = torch.stack([reliable[labels == c].sum() for c in range(len(directions))])
    if not of_class.any():
        return []
    target = int(of_class.argmax())
    towards = directions @ directions[target]
    towards[target] = -torch.inf
    other = int(towards.argmax())
    up = directions[target]
    across = directions[other] - (directions[other] @ up) * up
    plane = torch.stack([F.normalize(across, dim=0), up])  # (2, d)
    found = []
    for layer, ((rows, columns), _) in last.items():
        maps = h[layer].detach().transpose(1, 2).unflatten(2, (rows, columns))
        regions = F.adaptive_avg_pool2d(maps, sides).flatten(2).transpose(1, 2) @ plane.T
        own = labels == target
        found.append(
            ClassPlane(
                layer,
                (names[target], names[other]),
                regions[own].flatten(0, 1),
                regions[labels == other].flatten(0, 1),
                regions[own][reliable[own]],
                torch.stack([up, directions[other]]) @ plane.T,
            )
        )
    return found


@styled
def region_densities(rows: Mapping[str, Sequence[ClassPlane]]) -> Figure:
    """Draws contours of the regions of two classes for each layer, a row per network, and the same regions as dots.

    The vertical axis is the direction of the class that is looked at: what lies high is discriminative for it.

    Args:
        rows: Title of a network -> its planes, of the first layer to the last.

    Source: Li et al. 2021, figure 4 and supplement, https://arxiv.org/abs/2111.03505.
    """
    columns = max(map(len, rows.values()))
    figure = Figure(figsize=(3.1 * columns, 3.0 * len(rows) + 0.5), layout="constrained")
    grid = panels(figure, len(rows), columns, columns * len(rows))
    for row, (title, planes) in enumerate(rows.items()):
        points = torch.cat([torch.cat([plane.own, plane.other]) for plane in planes]).abs()
        reach = 1.1 * float(points.amax(dim=1).double().quantile(0.99)) or 1.0  # one scale for all layers of a network
        for column in range(columns):
            axes = grid[row * columns + column]
            if column >= len(planes):
                axes.set_axis_off()
                continue
            _plane(axes, planes[column], reach)
        grid[row * columns].set_ylabel(f"{title}\nstrength towards {planes[0].names[0]}")
    marks: list[Any] = [
        Line2D([], [], color=OWN, label="regions of the class"),
        Line2D([], [], color=OTHER, linestyle="--", label="of the nearest other class"),
        Line2D([], [], color=DOTS, marker=".", linestyle="none", label="reliable knowledge points of the last layer"),
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=3)
    return figure


def _plane(axes: Axes, plane: ClassPlane, reach: float) -> None:
    for points, color, line in ((plane.own, OWN, "-"), (plane.other, OTHER, "--")):
        contours(axes, points.double().numpy(), reach, color, line)
    axes.plot(*plane.followed.T.numpy(), color=DOTS, marker=".", markersize=3, linestyle="none", alpha=0.6)
    for (across, up), color in zip(plane.arrows.tolist(), (OWN, OTHER), strict=True):
        end = 0.95 * reach * across, 0.95 * reach * up
        axes.annotate("", end, (0, 0), arrowprops={"arrowstyle": "->", "color": color, "linewidth": 1.2})
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel=f"across, to {plane.names[1]}")
    axes.set_title(plane.layer, fontsize="medium")


def contours(axes: Axes, points: NDArray[np.float64], reach: float, color: str, line: str) -> None:
    """Draws the contours of a density that have `LEVELS` of points `(n, 2)` inside; nothing of points on a line."""
    if len(points) < 3 or np.linalg.matrix_rank(points - points.mean(axis=0)) < 2:
        return
    density = gaussian_kde(points.T)
    at = np.linspace(-reach, reach, _GRID)
    heights = density(np.stack([part.ravel() for part in np.meshgrid(at, at)])).reshape(_GRID, _GRID)
    levels = np.unique(np.quantile(density(points.T), [1 - level for level in LEVELS]))
    axes.contour(at, at, heights, levels=levels, colors=color, linestyles=line, linewidths=1)

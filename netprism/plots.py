"""The style of all figures, and plots that know no measure: numbers over layers, and maps of images.

Results draw themselves with them, `result.plot()`. Without pyplot, so that no window and no global state is touched.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from cycler import cycler
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")
Profiles = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]
MOST_TICKS = 12
MOST_IMAGES = 8
# Okabe and Ito 2008, https://jfly.uni-koeln.de/color/: colours that the colour-blind tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
STYLE: Any = {
    "axes.prop_cycle": cycler(color=COLOURS), "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlesize": "medium", "font.family": "DejaVu Sans", "font.size": 9, "image.cmap": "viridis",
    "legend.frameon": False, "legend.fontsize": "small", "lines.linewidth": 1.4, "lines.markersize": 4,
    "pdf.fonttype": 42, "svg.fonttype": "none",  # text stays text
}  # fmt: skip


def styled(draw: Callable[P, T]) -> Callable[P, T]:
    """Draws in the one style of all figures; matplotlib's own settings are as before afterwards."""

    @functools.wraps(draw)
    def in_style(*args: P.args, **kwargs: P.kwargs) -> T:
        with rc_context(STYLE):
            return draw(*args, **kwargs)

    return in_style


def panels(figure: Figure, rows: int, columns: int, count: int) -> list[Axes]:
    """Returns the first `count` panels of a grid and removes the others."""
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[count:]:
        axes.remove()
    return grid[:count]


def plot_numbers(runs: Mapping[str, Mapping[str, Any]]) -> tuple[Figure, list[Axes]]:
    """Draws numbers by key over the layers, or orders, that the keys end with; others are left out.

    Args:
        runs: {name: {"<quantity>/<layer>": number}}; several are drawn over one another.

    Returns:
        The figure, and one panel per quantity.

    Raises:
        ValueError: There is no number of a layer.
    """
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for name, values in runs.items():
        for key, value in values.items():
            quantity, _, layer = key.partition("/")
            if layer and (not isinstance(value, Tensor) or value.numel() == 1):
                found.setdefault(quantity, {}).setdefault(name, {})[layer] = [float(value)]
    if not found:
        raise ValueError(f"{', '.join(runs)} has no number of a layer; expected some")
    return layer_profiles(found)


@styled
def plot_maps(maps: Tensor, label: str) -> tuple[Figure, list[Axes]]:
    """Draws maps of the first eight images side by side, in one colour scale.

    Args:
        maps: Numbers `(N, C, H, W)`; channels are averaged.
        label: What a colour means, with its unit.

    Returns:
        The figure, and one panel per image.

    Raises:
        ValueError: These are no maps.
    """
    if maps.dim() != 4 or not len(maps):
        raise ValueError(f"maps have shape {tuple(maps.shape)}; expected (N, C, H, W), N >= 1")
    shown = maps[:MOST_IMAGES].detach().float().mean(1).cpu().numpy()
    figure, drawn = _side_by_side(shown, vmin=float(np.nanmin(shown)), vmax=float(np.nanmax(shown)))
    figure.colorbar(drawn[-1].images[0], ax=drawn, label=label)
    return figure, drawn


@styled
def plot_states(states: Tensor, names: Sequence[str], colours: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """Draws in which of a few states the places of the first eight images are.

    Args:
        states: Numbers 0, 1, ... of the states, `(N, H, W)`.
        names: Name of each state, for the legend.
        colours: Its colour.

    Returns:
        The figure, and one panel per image.

    Raises:
        ValueError: There is no image.
    """
    if states.dim() != 3 or not len(states):
        raise ValueError(f"states have shape {tuple(states.shape)}; expected (N, H, W), N >= 1")
    shown = states[:MOST_IMAGES].cpu().numpy()
    figure, drawn = _side_by_side(shown, cmap=ListedColormap(colours), vmin=-0.5, vmax=len(names) - 0.5)
    patches = [Patch(color=colour, label=name) for colour, name in zip(colours, names, strict=True)]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(names))
    return figure, drawn


@styled
def plot_directions(points: Tensor, groups: Tensor, names: Sequence[str] | None = None) -> tuple[Figure, list[Axes]]:
    """Draws vectors in the plane in which they differ most, coloured by group; the cross is the origin.

    Args:
        points: Vectors `(N, d)`, d >= 2.
        groups: Group of each, 0, 1, ..., `(N,)`.
        names: Names of the groups.

    Returns:
        The figure, and its panel.

    Raises:
        ValueError: These are no vectors.
    """
    if points.dim() != 2 or points.shape[1] < 2 or not len(points):
        raise ValueError(f"points have shape {tuple(points.shape)}; expected (N, d), N >= 1, d >= 2")
    rows = points.detach().double().cpu()
    _, _, axes_of = torch.linalg.svd(rows, full_matrices=False)
    plane = (rows @ axes_of[:2].T).numpy()
    figure = Figure(figsize=(4.6, 4), layout="constrained")
    axes = figure.subplots()
    for number, colour in zip(groups.unique().tolist(), COLOURS * len(rows), strict=False):
        of = (groups == number).cpu().numpy()
        axes.scatter(
            plane[of, 0], plane[of, 1], s=8, color=colour, label=str(number if names is None else names[number])
        )
    axes.plot(0, 0, "+", color="black", markersize=9)
    axes.set(xlabel="first axis of g", ylabel="second axis of g", aspect="equal")
    figure.legend(loc="outside right upper", title="category")
    return figure, [axes]


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


def _side_by_side(shown: np.ndarray, **options: Any) -> tuple[Figure, list[Axes]]:
    """Draws arrays `(N, H, W)`, four in a row; the options are those of `imshow`."""
    columns = min(len(shown), 4)
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(1.7 * columns + 0.9, 1.7 * rows + 0.4), layout="constrained")
    drawn = panels(figure, rows, columns, len(shown))
    for number, (axes, values) in enumerate(zip(drawn, shown, strict=True)):
        axes.imshow(values, **options)
        axes.set_title(f"image {number}")
        axes.set_axis_off()
    return figure, drawn


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

"""The figures of the reliability: curves over epochs, what is left round by round, images of the parts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from netprism.components.reliable_variance import Reliability
from netprism.figures._common import History, as_picture, epoch_axis, rising_colors, save, styled
from netprism.files import write_table, write_text


def draw(
    found: Reliability,
    history: History,
    images: Tensor,
    feature: Tensor,
    approximations: Sequence[Tensor],
    reliable: Sequence[Tensor],
    folder: Path,
) -> list[Path]:
    """Draws all figures of the reliability.

    Args:
        found: The last measurement.
        history: One row per measurement, with `epoch` and `reliability/<order>`.
        images: Images (N, C, H, W); in any other form there are no pictures of the parts.
        feature: The feature f of the images, (N, c, h, w); in any other form there are no pictures of the parts.
        approximations: Phi^(l), one for each order, of the form of the feature.
        reliable: Phi^(l),reli, one for each order, of the form of the feature.
        folder: Folder of the files; it is made.

    Returns:
        The files: `reliability_curves.png`, `reliability_rounds.png` and, of maps, `reliability_parts.png`.
    """
    drawn = {"curves": curves(history, found.orders), "rounds": rounds(found)}
    if images.dim() == 4 and feature.dim() == 4:
        drawn["parts"] = parts(images, feature, approximations, reliable, found.orders)
    return [save(figure, folder / f"reliability_{what}.png") for what, figure in drawn.items()]


def write_tables(found: Reliability, folder: Path) -> list[Path]:
    """Writes all numbers: `reliability.csv` with a row per order, `reliability.json` also with the rounds.

    The columns are those that `netprism.components.regressor.component_ratios` reads.
    """
    by_round = {str(order): values for order, values in zip(found.orders, found.by_round, strict=True)}
    document = {"samples": found.samples, "orders": found.rows, "reliability_by_round": by_round}
    write_text(folder / "reliability.json", json.dumps(document, indent=2) + "\n")
    return [write_table(folder / "reliability.csv", found.rows), folder / "reliability.json"]


@styled
def curves(history: History, orders: Sequence[int]) -> Figure:
    """Draws the reliability of each order over the epochs in which the nets learn."""
    figure = Figure(figsize=(4.8, 3.2), layout="constrained")
    axes = figure.subplots()
    for order, color in zip(orders, rising_colors(len(orders)), strict=True):
        points = [(row["epoch"], row[f"reliability/{order}"]) for row in history]
        axes.plot(*zip(*points, strict=True), "o-", markersize=3, color=color, label=f"order {order}")
    axes.set_ylabel("reliable fraction of Var Φ(l)")
    axes.set_ylim(bottom=0)
    epoch_axis(axes)
    axes.set_xlabel("epoch")
    axes.legend(frameon=False)
    return figure


@styled
def rounds(found: Reliability) -> Figure:
    """Draws what is left of an order's variance after each round trip, and what the orders' components consist of."""
    figure = Figure(figsize=(9.0, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for order, values, color in zip(found.orders, found.by_round, rising_colors(len(found.orders)), strict=True):
        left.plot(values, "o-", markersize=3, color=color, label=f"order {order}")
    left.set_xlabel("round trips r")
    left.set_ylabel("Var g(ψ_r) / Var Φ(l)")
    left.set_ylim(bottom=0)
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.legend(frameon=False)
    names = [str(order) for order in found.orders]
    for part, values, offset in (
        ("reliable", found.reliable_significance, -0.2),
        ("unreliable", found.unreliable_significance, 0.2),
    ):
        positions = [i + offset for i in range(len(names))]
        right.bar(positions, values, width=0.38, label=f"new {part} part")
    right.set_xticks(range(len(names)), names)
    right.set_xlabel("order l")
    right.set_ylabel("fraction of Var f")
    right.margins(y=0.25)  # room for the legend
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


@styled
def parts(
    images: Tensor, feature: Tensor, approximations: Sequence[Tensor], reliable: Sequence[Tensor], orders: Sequence[int]
) -> Figure:
    """Draws per image a row: the image, f, and for each order Phi^(l) and its two parts, in f's most varying channel.

    All maps of a row have one colour for one value, white for the mean of f there; the unreliable part, whose mean is
    0, is shown about it. The arguments are those of `draw`.
    """
    titles = ["image", "f"]
    for order in orders:
        titles += [f"Φ({order})", "reliable", "unreliable"]
    figure = Figure(figsize=(0.85 * len(titles), 0.3 + 0.95 * len(images)), layout="constrained")
    grid = figure.subplots(len(images), len(titles), squeeze=False)
    for n, row in enumerate(grid):
        channel = int(feature[n].var(dim=(1, 2)).argmax())
        maps = [feature[n, channel]]
        middle = float(maps[0].mean())
        reach = float((maps[0] - middle).abs().max()) or 1.0
        for phi, part in zip(approximations, reliable, strict=True):
            maps += [phi[n, channel], part[n, channel], phi[n, channel] - part[n, channel] + middle]
        row[0].imshow(as_picture(images[n]))
        for axes, values in zip(row[1:], maps, strict=True):
            axes.imshow(values.cpu().numpy(), cmap="RdBu_r", vmin=middle - reach, vmax=middle + reach)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize="small")
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
    return figure

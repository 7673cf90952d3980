"""The figures of an attack: regional features along its steps, and the regions whose role it changes, on images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from netprism.figures._common import History, as_picture, epoch_axis, rising_colors, save, styled
from netprism.interventions.regions import KINDS, RegionChanges

# Kept in checkpoints: images, attacked, layers -> cosine, strength, kinds, counts, utilities, tau, grid.
Shown = dict[str, Any]

IMAGES = 4  # images that are drawn
COLORS = ("#D55E00", "#CC79A7", "#0072B2", "#009E73")  # Okabe and Ito's, one per kind
WORDS = {
    "redirected": "important, now for another class",
    "damaged": "the same, by way of unimportant",
    "created": "unimportant, now important",
    "lost": "important, now unimportant",
}


def shown(
    found: Mapping[str, RegionChanges], grids: Mapping[str, tuple[int, int]], rows: Mapping[str, Tensor]
) -> Shown:
    """Returns what the pictures need.

    Args:
        found: Layer -> changes of its regions.
        grids: Layer -> its rows and columns of regions.
        rows: The images `(N, C, H, W)` before and after the attack, as "image" and "attacked".
    """
    layers = {
        layer: {
            "cosine": changes.cosine.float().cpu(),
            "strength": changes.strength.float().cpu(),
            "kinds": changes.kinds[:IMAGES].cpu(),
            "counts": changes.counts(),
            "utilities": changes.utilities.float().cpu(),
            "tau": changes.tau,
            "grid": grids[layer],
        }
        for layer, changes in found.items()
    }
    return {"images": rows["image"][:IMAGES].cpu(), "attacked": rows["attacked"][:IMAGES].cpu(), "layers": layers}


@styled
def draw(history: History, of: Shown, folder: Path, name: str = "attack") -> list[Path]:
    """Draws `<name>_{steps,utilities}.png` and, of images, `<name>_regions.png`; returns the files."""
    drawn = [save(_steps(history, of), folder / f"{name}_steps.png")]
    drawn.append(save(_utilities(of), folder / f"{name}_utilities.png"))
    if of["images"].dim() == 4:
        drawn.append(save(_regions(of), folder / f"{name}_regions.png"))
    return drawn


def _steps(history: History, of: Shown) -> Figure:
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    accuracy, cosine, strength, counts = figure.subplots(1, 4)
    epochs = [row["epoch"] for row in history if "accuracy" in row]
    for key, text in (("clean_accuracy", "no attack"), ("accuracy", "attack")):
        accuracy.plot(epochs, [row[key] for row in history if "accuracy" in row], marker="o", markersize=3, label=text)
    epoch_axis(accuracy)
    accuracy.set_ylabel("accuracy")
    accuracy.set_ylim(-0.02, 1.02)
    accuracy.legend(frameon=False, fontsize="small")
    layers = of["layers"]
    for color, (layer, values) in zip(rising_colors(len(layers)), layers.items(), strict=True):
        for axes, key in ((cosine, "cosine"), (strength, "strength")):
            axes.plot(values[key].numpy(), color=color, label=layer)
    for axes, text in ((cosine, "cosine with the feature before"), (strength, "relative change of strength")):
        axes.set_xlabel("step of the attack")
        axes.set_ylabel(text)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
    cosine.legend(frameon=False, fontsize="small")
    _bars(counts, layers)
    return figure


def _bars(axes: Axes, layers: Mapping[str, Mapping[str, Any]]) -> None:
    below = np.zeros(len(layers))
    for kind, color in zip(KINDS, COLORS, strict=True):
        heights = np.array([values["counts"][kind] for values in layers.values()])
        axes.bar(range(len(layers)), heights, bottom=below, color=color, label=WORDS[kind], width=0.6)
        below += heights
    axes.set_xticks(range(len(layers)), list(layers), rotation=20, ha="right")
    axes.set_ylabel("regions per image")
    axes.set_ylim(0, 1.6 * max(below.max(), 1e-3))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="x-small", loc="upper left")


def _utilities(of: Shown) -> Figure:
    layers = of["layers"]
    figure = Figure(figsize=(2.8 * len(layers) + 0.6, 2.6), layout="constrained")
    grid = figure.subplots(1, len(layers), squeeze=False)[0]
    for axes, (layer, values) in zip(grid, layers.items(), strict=True):
        axes.hist(values["utilities"].numpy(), bins=np.linspace(0, 1, 21), color=COLORS[2])
        axes.axvline(values["tau"], color="0.3", linestyle="--", linewidth=1)
        axes.set_title(f"{layer}: {len(values['utilities'])} regions", fontsize="medium")
        axes.set_xlim(0, 1)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.spines[["top", "right"]].set_visible(False)
    grid[0].set_ylabel("regions important\nfor the wrong class after")
    figure.supxlabel("p(true class | h) before the attack; dashed: tau", fontsize="medium")
    return figure


def _regions(of: Shown) -> Figure:
    images, layers = of["images"], of["layers"]
    low, high = images.min().item(), images.max().item()
    figure = Figure(figsize=(1.6 * (2 + len(layers)), 1.7 * len(images) + 0.5), layout="constrained")
    grid = figure.subplots(len(images), 2 + len(layers), squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for text, axes in zip(["image", "attacked", *layers], grid[0], strict=True):
        axes.set_title(text, fontsize="medium")
    for number, row in enumerate(grid):
        for key, axes in zip(("images", "attacked"), row, strict=False):
            axes.imshow(as_picture(of[key][number], low, high), interpolation="nearest")
        for axes, values in zip(row[2:], layers.values(), strict=True):
            axes.imshow(as_picture(images[number], low, high), interpolation="nearest", alpha=0.6)
            _outline(axes, values["kinds"][number], values["grid"], (images.shape[2], images.shape[3]))
    patches = [Patch(color=color, label=WORDS[kind]) for kind, color in zip(KINDS, COLORS, strict=True)]
    figure.legend(handles=patches, loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    return figure


def _outline(axes: Axes, kinds: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> None:
    """Colours the regions whose role has changed."""
    height, width = size[0] / grid[0], size[1] / grid[1]
    for region, kind in enumerate(kinds.tolist()):
        if kind:
            corner = (region % grid[1] * width - 0.5, region // grid[1] * height - 0.5)
            axes.add_patch(Rectangle(corner, width, height, color=COLORS[kind - 1], alpha=0.7, linewidth=0))

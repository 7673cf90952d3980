"""The figures of reconstructions: what layers keep of images, and where the reconstruction is uncertain."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from netprism.figures._common import save


def draw(images: Tensor, rebuilt: Mapping[str, Tensor], path: Path) -> Path:
    """Images in the first row, and a row for each layer with what a decoder rebuilds from it.

    Args:
        images: (N, C, H, W), C = 1 in grey, C = 3 in colour, of other C the mean over the channels.
        rebuilt: {layer: (N, C, H, W)}; a row's title gives the mean squared error.
        path: a PNG; its folder is made.
    """
    rows = {"original": images, **rebuilt}
    figure = Figure(figsize=(1.2 + 1.0 * len(images), 1.1 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(images), squeeze=False)
    low, high = images.min().item(), images.max().item()
    for line, (name, pictures) in zip(grid, rows.items(), strict=True):
        for axes, picture in zip(line, pictures, strict=True):
            _show(axes, picture, low, high)
        error = f"\nMSE {(pictures - images).square().mean().item():.3g}" if pictures is not images else ""
        line[0].set_ylabel(name + error, rotation=0, ha="right", va="center", fontsize="small")
    return save(figure, path)


def _show(axes: Axes, picture: Tensor, low: float, high: float) -> None:
    """One image, the same grey or colour for the same value in all of them."""
    scaled = ((picture - low) / max(high - low, 1e-12)).clamp(0, 1).numpy(force=True)
    if len(scaled) == 3:
        axes.imshow(scaled.transpose(1, 2, 0))
    else:
        axes.imshow(scaled.mean(0), cmap="gray", vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)

"""The figures of reconstructions: what layers keep of images, and where the reconstruction is uncertain."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from netprism.figures._common import as_picture, save, styled


@styled
def draw(images: Tensor, rebuilt: Mapping[str, Tensor], path: Path) -> Path:
    """Draws the images in the first row, and one row per layer with what a decoder rebuilds from it.

    Args:
        images: Shape `(N, C, H, W)`; three channels are shown in colour, any other number by their mean in grey.
        rebuilt: {layer: reconstructions `(N, C, H, W)`}; the title of a row gives the mean squared error.
        path: Path of the PNG; its folder is created.
    """
    rows = {"original": images, **rebuilt}
    figure = Figure(figsize=(1.2 + 1.0 * len(images), 1.1 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(images), squeeze=False)
    low, high = images.min().item(), images.max().item()
    for line, (name, pictures) in zip(grid, rows.items(), strict=True):
        for axes, picture in zip(line, pictures, strict=True):
            axes.imshow(as_picture(picture, low, high))
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        error = f"\nMSE {(pictures - images).square().mean().item():.3g}" if pictures is not images else ""
        line[0].set_ylabel(name + error, rotation=0, ha="right", va="center", fontsize="small")
    return save(figure, path)

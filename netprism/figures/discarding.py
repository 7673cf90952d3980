"""The figures of information discarding: maps over images and layers, curves over layers and epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from netprism.figures._common import History, as_picture, epoch_axis, panels, rising_colors, save, styled

_QUANTITIES = ("SID", "RU", "concentration")
_CELL = 96  # pixels of an image in the grid
_GAP = 4  # pixels between two images


@styled
def maps(images: Tensor, entropies: Mapping[str, Tensor], path: Path, label: str = "H, nats", rows: int = 8) -> Path:
    """Draws one row per image: the image, then the map of each layer. All maps share one colour scale.

    The grid is assembled as one picture: one panel per map would take a second to draw, in every epoch.

    Args:
        images: Shape `(N, C, H, W)`; three channels are shown in colour, any other number by their mean in grey.
        entropies: {layer: entropy maps `(N, C, H, W)`}; means over channels are shown.
        path: Path of the PNG; its folder is created.
        label: Label of the colour scale.
        rows: Largest number of images.
    """
    means = {layer: values[:rows].float().mean(1).cpu().numpy() for layer, values in entropies.items()}
    scale = _common_scale(list(means.values()))
    columns = [
        [as_picture(image) for image in images[:rows]],
        *(colormaps["viridis"](scale(values))[..., :3] for values in means.values()),
    ]
    grid = np.stack([np.stack([_cell(picture) for picture in column]) for column in columns], axis=1)
    height, width = grid.shape[2:4]
    picture = grid.swapaxes(1, 2).reshape(len(grid) * height, len(columns) * width, 3)
    inches = 0.9 * len(columns), 0.9 * len(grid) * height / width
    header = 0.3 + 0.17 * max(label.count("\n") for label in ("", *means))
    figure = Figure(figsize=(inches[0] + 1.2, inches[1] + header))  # laid out by hand: twice as fast
    whole = figure.get_size_inches()
    axes = figure.add_axes((0, 0, inches[0] / whole[0], inches[1] / whole[1]))
    axes.imshow(picture, aspect="auto")
    axes.set_xticks([(i + 0.5) * width for i in range(len(columns))], ["input", *means])
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    bar = figure.add_axes(((inches[0] + 0.1) / whole[0], 0.05, 0.12 / whole[0], 0.95 * inches[1] / whole[1] - 0.05))
    figure.colorbar(ScalarMappable(scale, "viridis"), cax=bar, label=label)
    return save(figure, path)


@styled
def curves(history: History, path: Path) -> Path | None:
    """Draws each quantity over the epochs, one line per layer. Returns None where there is only one epoch.

    Args:
        history: Rows with `epoch` and keys `<quantity>/<layer>`.
        path: Path of the PNG; its folder is created.
    """
    found = [quantity for quantity in _QUANTITIES if any(key.startswith(f"{quantity}/") for key in history[-1])]
    if len(history) < 2 or not found:
        return None
    figure = Figure(figsize=(5 * len(found), 3.4), layout="constrained")
    epochs = [row["epoch"] for row in history]
    for axes, quantity in zip(panels(figure, 1, len(found), len(found)), found, strict=True):
        names = [key for key in history[-1] if key.startswith(f"{quantity}/")]
        for name, colour in zip(names, rising_colors(len(names)), strict=True):
            values = [row.get(name, np.nan) for row in history]
            axes.plot(epochs, values, marker=".", color=colour, label=name.partition("/")[2])
        axes.set_ylabel(f"{quantity}, nats")
        epoch_axis(axes)
        axes.legend(frameon=False, fontsize="small")
    return save(figure, path)


def draw(history: History, folder: Path, name: str) -> list[Path]:
    """Draws `<name>_curves.png` into a folder; nothing where there is only one epoch."""
    path = curves(history, folder / f"{name}_curves.png")
    return [] if path is None else [path]


def _common_scale(values: Sequence[NDArray[np.float32]]) -> Normalize:
    """From the 1st to the 99th percentile of all maps; otherwise a few units at the cap take most of the scale."""
    low, high = np.percentile(np.concatenate([v.ravel() for v in values]), [1, 99])
    return Normalize(float(low), float(max(high, low + 1e-6)), clip=True)


def _cell(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """Enlarged by whole factors, and framed in white."""
    factor = max(1, _CELL // picture.shape[0])
    large = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    return np.pad(large, ((_GAP, _GAP), (_GAP, _GAP), (0, 0)), constant_values=1.0)

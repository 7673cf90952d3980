"""What all figures share. Drawn without pyplot, so that no window and no global state is touched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from netprism.files import whole_file

History = Sequence[Mapping[str, float]]
# Okabe and Ito 2008, https://jfly.uni-koeln.de/color/: colours that the colour-blind tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")


def save(figure: Figure, path: Path) -> Path:
    """Writes a PNG, whole or not at all; the folder is created."""
    return write_whole(path, lambda temporary: figure.savefig(temporary, dpi=120))


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Lets `write` fill a temporary file that then takes the place of `path`; the folder is created."""
    with whole_file(path) as part:
        write(part)
    return path


def panels(figure: Figure, rows: int, columns: int, count: int) -> list[Axes]:
    """Returns the first `count` panels of a grid and removes the others."""
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[count:]:
        axes.remove()
    return grid[:count]


def epoch_axis(axes: Axes) -> None:
    """Marks whole epochs on the x axis and removes the frame on top and on the right."""
    axes.set_xlabel("epoch (-1: before training)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)


def epoch_name(epoch: int) -> str:
    """Returns the label of an epoch; the one before training is the start."""
    return "start" if epoch < 0 else str(epoch)


def as_picture(image: Tensor, low: float | None = None, high: float | None = None) -> NDArray[np.float32]:
    """Returns an image `(C, H, W)` as a picture `(H, W, 3)` between 0 and 1.

    Args:
        image: What the network gets; three channels are shown in colour, any other number by their mean in grey.
        low: The value shown in black; None for the smallest one, since the normalization of the input is not known.
        high: The value shown in white; None for the largest one.
    """
    values = image.detach().float().cpu()
    values = values if len(values) == 3 else values.mean(0, keepdim=True).expand(3, -1, -1)
    black = values.min().item() if low is None else low
    white = values.max().item() if high is None else high
    picture: NDArray[np.float32] = ((values - black) / max(white - black, 1e-12)).clamp(0, 1).permute(1, 2, 0).numpy()
    return picture


def rising_colors(count: int) -> list[tuple[float, ...]]:
    """Returns colours for layers or orders in sequence: the first is dark, the last is bright."""
    return [tuple(colormaps["viridis"](0.9 * i / max(count - 1, 1))) for i in range(count)]

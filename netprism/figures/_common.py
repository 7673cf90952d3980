"""What all figures share. Drawn without pyplot, so that no window and no global state is touched."""

from __future__ import annotations

import os
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
from netprism.plots import COLOURS as COLOURS
from netprism.plots import STYLE as STYLE
from netprism.plots import panels as panels
from netprism.plots import styled as styled

History = Sequence[Mapping[str, float]]
FORMATS = "NETPRISM_FIGURES"  # environment: formats of figures beside PNG


def save(figure: Figure, path: Path) -> Path:
    """Writes a PNG, and beside it the formats in `$NETPRISM_FIGURES` (`pdf`, `svg`), each whole or not at all.

    The folder is created.

    Raises:
        ValueError: The variable names another format.
    """
    for kind in filter(None, os.environ.get(FORMATS, "").replace(" ", "").split(",")):
        if kind not in ("pdf", "svg"):
            raise ValueError(f"{FORMATS} is {os.environ[FORMATS]!r}; expected pdf, svg, or both with a comma")
        write_whole(path.with_suffix(f".{kind}"), lambda temporary: _write(figure, temporary))
    return write_whole(path, lambda temporary: _write(figure, temporary))


@styled
def _write(figure: Figure, path: Path) -> None:
    """Colours such as C0 are looked up now."""
    figure.savefig(path, dpi=120)


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Lets `write` fill a temporary file that then takes the place of `path`; the folder is created."""
    with whole_file(path) as part:
        write(part)
    return path


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

"""What all figures share. Drawn without pyplot, so that no window and no global state is touched."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
from cycler import cycler
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from netprism.files import whole_file

P = ParamSpec("P")
T = TypeVar("T")
History = Sequence[Mapping[str, float]]
# Okabe and Ito 2008, https://jfly.uni-koeln.de/color/: colours that the colour-blind tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
FORMATS = "NETPRISM_FIGURES"  # environment: formats of figures beside PNG
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

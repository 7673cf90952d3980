"""What all figures share. Drawn without pyplot, so that no window and no global state is touched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from netprism.files import whole_file

History = Sequence[Mapping[str, float]]


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

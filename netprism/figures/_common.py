"""What all figures share. Drawn without pyplot, so that no window and no global state is touched."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

History = Sequence[Mapping[str, float]]


def save(figure: Figure, path: Path) -> Path:
    """Writes a PNG, whole or not at all; makes the folder."""
    return write_whole(path, lambda temporary: figure.savefig(temporary, dpi=120))


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Lets `write` fill a file beside `path` and then renames it; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def panels(figure: Figure, rows: int, columns: int, count: int) -> list[Axes]:
    """The first `count` panels of a grid; the others are taken away."""
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[count:]:
        axes.remove()
    return grid[:count]


def epoch_axis(axes: Axes) -> None:
    """Whole epochs on the x axis, no frame on top and on the right."""
    axes.set_xlabel("epoch (-1: before training)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)


def epoch_name(epoch: int) -> str:
    """What to call an epoch: the one before training is the start."""
    return "start" if epoch < 0 else str(epoch)

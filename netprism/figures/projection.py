"""The figures of projected features, by strength and on the sphere: a picture, a page to turn, a film."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from netprism.figures._common import save, styled, write_whole

_SIZE = 2.5  # size of a point


@dataclass(frozen=True)
class Scatter:
    """Features in three dimensions, and the directions of the categories.

    Attributes:
        g: Projected features `(N, 3)`.
        categories: Category of each feature, `(N,)`, from 0 to C - 1; it chooses the colour.
        directions: Directions of the categories, unit vectors `(C, 3)`.
        title: Title of the picture.
        names: Names of the categories; by default their numbers.

    Raises:
        ValueError: The features do not have three dimensions, or not one category each.
    """

    g: Tensor
    categories: Tensor
    directions: Tensor
    title: str = ""
    names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        shapes = tuple(self.g.shape), tuple(self.categories.shape), tuple(self.directions.shape)
        if shapes[0] != (len(self.categories), 3) or shapes[2] != (len(self.directions), 3):
            raise ValueError(f"shapes of g, categories and directions are {shapes}; expected (N, 3), (N,), (C, 3)")

    def name(self, category: int) -> str:
        """Returns the name of a category in the legend."""
        return str(category) if self.names is None else self.names[category]


def class_names(numbers: Sequence[int], *sources: object) -> list[str]:
    """Returns the names of classes: of the first source that has `classes`, or else their numbers.

    Args:
        numbers: Numbers of the classes.
        sources: Data sets, data modules, or trainers with a data module; torchvision's and netprism's data have the
            names of their classes as `classes`.
    """
    for source in sources:
        for known in (source, getattr(source, "dataset", None), getattr(source, "datamodule", None)):
            names = getattr(known, "classes", None) or ()
            if max(numbers, default=-1) < len(names):
                return [str(names[number]) for number in numbers]
    return [str(number) for number in numbers]


def draw(scatter: Scatter, stem: Path) -> list[Path]:
    """Draws `<stem>.png` and the page `<stem>.html`, which shares `plotly.min.js` (5 MB) with others in its folder."""
    png, html = (stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "html"))  # with_suffix would cut layer1.0
    return [save(figure(scatter), png), page([scatter], html)]


@styled
def figure(scatter: Scatter, reach: float | None = None) -> Figure:
    """Draws features by strength, and on the sphere, each with an arrow per category.

    Args:
        scatter: Features to show.
        reach: Half the width of the left picture; by default it holds 98 % of the features.
    """
    result = Figure(figsize=(8.4, 4.2))
    reach = reach or _reach([scatter])
    views = (("by strength", scatter.g, reach), ("on the sphere", F.normalize(scatter.g, dim=1), 1.0))
    for place, (what, points, size) in enumerate(views):
        axes: Any = result.add_axes((0.46 * place, 0.03, 0.46, 0.9), projection="3d")
        _points(axes, points, scatter, size)
        _bare(axes, size)
        axes.set_title(what, fontsize="medium", y=1.0)
    _globe(axes)
    result.legend(*result.axes[0].get_legend_handles_labels(), loc="right", frameon=False, markerscale=3)
    result.suptitle(scatter.title, fontsize="medium")
    return result


def _points(axes: Any, points: Tensor, scatter: Scatter, size: float) -> None:  # noqa: ANN401  (Axes3D has no types)
    colours = _colours(len(scatter.directions))
    for category, direction in enumerate(scatter.directions.tolist()):
        own = points[scatter.categories == category].cpu().numpy()
        axes.scatter(*own.T, s=_SIZE, color=colours[category], label=scatter.name(category), depthshade=False)
        axes.quiver(0, 0, 0, *(size * c for c in direction), color=colours[category], arrow_length_ratio=0.08)


def _bare(axes: Any, size: float) -> None:  # noqa: ANN401
    """Sets up a cube with only the ticks that are needed to read strengths."""
    axes.set(xlim=(-size, size), ylim=(-size, size), zlim=(-size, size))
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_major_locator(MaxNLocator(4))
        axis.set_pane_color((1, 1, 1, 0))
    axes.tick_params(labelsize="xx-small", pad=-3)
    axes.set_box_aspect((1, 1, 1), zoom=1.0)


def _globe(axes: Any) -> None:  # noqa: ANN401
    """Draws the unit sphere as a transparent grid of 12 meridians and 5 parallels."""
    around, down = torch.linspace(0, 2 * math.pi, 13), torch.linspace(0, math.pi, 7)
    axes.set_axis_off()
    x, y, z = torch.outer(down.sin(), around.cos()), torch.outer(down.sin(), around.sin()), down.cos().unsqueeze(1)
    axes.plot_wireframe(x.numpy(), y.numpy(), z.expand_as(x).numpy(), color="0.85", linewidth=0.5)


def page(scatters: Sequence[Scatter], path: Path) -> Path:
    """Writes a page on which a reader can turn the features, with a slider where there are several scatters.

    Raises:
        ValueError: There is no scatter.
    """
    _check(scatters)
    frames = [go.Frame(data=_traces(scatter), name=scatter.title or str(i)) for i, scatter in enumerate(scatters)]
    shown = go.Figure(data=frames[0].data, frames=frames if len(frames) > 1 else [])
    reach = _reach(scatters)
    axis = {"range": [-reach, reach], "title": ""}
    shown.update_layout(
        title=scatters[0].title,
        scene={"xaxis": axis, "yaxis": axis, "zaxis": axis, "aspectmode": "cube"},
        legend={"itemsizing": "constant"},
        margin={"l": 0, "r": 0, "b": 0, "t": 40},
    )
    if len(frames) > 1:
        shown.update_layout(sliders=[{"steps": [_step(frame.name) for frame in frames]}])
    return write_whole(path, lambda temporary: shown.write_html(temporary, include_plotlyjs="directory"))


def film(scatters: Sequence[Scatter], path: Path, seconds: float = 0.5) -> Path:
    """Writes a GIF with one picture per scatter, all at one scale; the last one is shown four times as long.

    Raises:
        ValueError: There is no scatter.
    """
    _check(scatters)
    reach = _reach(scatters)
    first, *others = [_image(figure(scatter, reach)) for scatter in scatters]
    times = [round(1000 * seconds)] * len(others) + [round(4000 * seconds)]
    return write_whole(
        path, lambda temporary: first.save(temporary, save_all=True, append_images=others, duration=times, loop=0)
    )


def _check(scatters: Sequence[Scatter]) -> None:
    if not scatters:
        raise ValueError("scatters is empty; expected at least one")


def _image(drawn: Figure) -> Image.Image:
    drawn.set_dpi(60)
    canvas: Any = FigureCanvasAgg(drawn)  # half of its methods have annotations
    canvas.draw()
    picture = Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba())
    return picture.convert("RGB").quantize(64, method=Image.Quantize.MAXCOVERAGE)


def _reach(scatters: Sequence[Scatter]) -> float:
    """A strength that only 2 % of the features exceed, positive also where all are 0."""
    strengths = torch.cat([scatter.g.norm(dim=1).cpu() for scatter in scatters])
    return max(strengths.double().quantile(0.98).item() if strengths.numel() < 2**24 else strengths.max().item(), 1e-6)


def _colours(count: int) -> list[str]:
    if count <= 10:
        return [to_hex(colormaps["tab10"](i)) for i in range(count)]
    return [to_hex(colormaps["hsv"](i / count)) for i in range(count)]


def _traces(scatter: Scatter) -> list[go.Scatter3d]:
    """Each category's features, and its direction with the length of its strongest feature."""
    colours, traces = _colours(len(scatter.directions)), []
    for category, direction in enumerate(scatter.directions):
        own = scatter.g[scatter.categories == category].cpu()
        length = own.norm(dim=1).max().item() if len(own) else 0.0
        line = torch.stack([torch.zeros(3), length * direction.cpu().float()])
        look = {"legendgroup": str(category), "name": scatter.name(category), "hoverinfo": "name"}
        marker = {"size": _SIZE, "color": colours[category]}
        traces.append(go.Scatter3d(**_xyz(own), mode="markers", marker=marker, **look))
        traces.append(
            go.Scatter3d(
                **_xyz(line), mode="lines", line={"color": colours[category], "width": 5}, showlegend=False, **look
            )
        )
    return traces


def _xyz(points: Tensor) -> dict[str, list[float]]:
    rounded = [[round(value, 4) for value in column] for column in points.double().T.tolist()]
    return dict(zip("xyz", rounded, strict=True))


def _step(name: str) -> dict[str, object]:
    at_once = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}}
    return {"args": [[name], at_once], "label": name, "method": "animate"}

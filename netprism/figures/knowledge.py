"""The figures of knowledge points: counts over epochs, regions outlined on images, projected regions, their film."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from netprism.figures._common import History, epoch_axis, epoch_name, panels, save
from netprism.figures.projection import Scatter, film, page
from netprism.knowledge.points import KnowledgePoints

Frame = dict[str, Any]  # a checkpoint holds it: epoch, directions, names, layers -> points, categories, means, ...

IMAGES = 8  # that are drawn
FRAMES = 50  # of a film, at most
_FILM_IMAGES = 20  # whose regions are points of the film: 26 kB a layer and epoch with 64 regions


def frame(
    epoch: int, projected: Mapping[str, Tensor], labels: Tensor, directions: Tensor, categories: Sequence[int]
) -> Frame:
    """What the pictures need of one epoch.

    Args:
        epoch: -1 before training.
        projected: layer -> h, `(N, R, 3)` or `(N, R, 2)`.
        labels: `(N,)`, in 0 to C - 1.
        directions: `(C, 3)`, likewise.
        categories: what the C classes are called.
    """
    layers = {}
    directions = _in_space(directions).cpu()
    for layer, h in ((layer, _in_space(h)) for layer, h in projected.items()):
        of_class = [_moments(h[labels == c].flatten(0, 1).double().cpu()) for c in range(len(directions))]
        layers[layer] = {
            "points": h[:_FILM_IMAGES].flatten(0, 1).float().cpu(),
            "labels": labels[:_FILM_IMAGES].repeat_interleave(h.shape[1]).cpu(),
            "means": torch.stack([mean for mean, _ in of_class]),
            "covariances": torch.stack([covariance for _, covariance in of_class]),
        }
    return {"epoch": epoch, "directions": directions, "names": [str(c) for c in categories], "layers": layers}


def thinned(frames: Sequence[Frame]) -> list[Frame]:
    """At most `FRAMES` of the frames, so that memory and checkpoints do not grow with the epochs.

    The first and the last stay, and between them those of every second epoch, every fourth, ...
    """
    step, last = 1, frames[-1]["epoch"]
    while len(frames) > FRAMES:
        step *= 2
        frames = [one for one in frames if (one["epoch"] + 1) % step == 0 or one["epoch"] == last]
    return list(frames)


def draw(
    history: History,
    frames: Sequence[Frame],
    images: Tensor | None,
    last: Mapping[str, tuple[tuple[int, int], KnowledgePoints]],
    folder: Path,
    name: str = "knowledge",
) -> list[Path]:
    """Draws everything that there is: `<name>_points.png`, `_ellipsoids.png`, `_regions.png`, `_film_<layer>.gif`, ...

    Args:
        history: rows with the epoch and the logged values.
        frames: at least one, of rising epochs.
        images: `(n, channels, H, W)` that are drawn on, or None.
        last: layer -> rows and columns of its regions, and the knowledge points of the images and others.
        folder: is made.
        name: of the monitor.
    """
    paths = [save(curves(history, list(frames[-1]["layers"])), folder / f"{name}_points.png")]
    if images is not None and last:
        paths.append(save(outlines(images, last), folder / f"{name}_regions.png"))
    return paths + draw_projected(frames, folder, name)


def draw_projected(frames: Sequence[Frame], folder: Path, name: str) -> list[Path]:
    """Draws the projected regions of the last frame, `<name>_ellipsoids.png`, and for each layer a film of all."""
    paths = [save(ellipsoids(frames[-1]), folder / f"{name}_ellipsoids.png")]
    for layer in frames[-1]["layers"]:
        scatters = [_scatter(one, layer) for one in frames if layer in one["layers"]]
        paths += [
            film(scatters, folder / f"{name}_film_{layer}.gif"),
            page(scatters, folder / f"{name}_film_{layer}.html"),
        ]
    return paths


def curves(history: History, layers: Sequence[str]) -> Figure:
    """All and reliable knowledge points over epochs, and their ratio, a colour a layer."""
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    counts, ratios = panels(figure, 1, 2, 2)
    epochs = [row["epoch"] for row in history]
    for number, layer in enumerate(layers):
        look: dict[str, Any] = {"color": f"C{number % 10}", "marker": ".", "markersize": 4}
        counts.plot(epochs, [row[f"points/{layer}"] for row in history], label=layer, **look)
        counts.plot(epochs, [row[f"reliable/{layer}"] for row in history], linestyle="--", **look)
        ratios.plot(epochs, [row[f"ratio/{layer}"] for row in history], label=layer, **look)
    counts.set_title("knowledge points an image (dashed: reliable)", fontsize="medium")
    ratios.set(title="share that is reliable", ylim=(0, 1))
    ratios.title.set_fontsize("medium")
    ratios.legend(frameon=False, loc="upper left")  # few shares come near 1
    for axes in (counts, ratios):
        epoch_axis(axes)
    return figure


def outlines(images: Tensor, last: Mapping[str, tuple[tuple[int, int], KnowledgePoints]]) -> Figure:
    """The first images in each layer, with knowledge points outlined: green where reliable, red where not."""
    count = min(IMAGES, len(images))
    figure = Figure(figsize=(1.1 * count + 0.9, 1.15 * len(last)), layout="constrained")
    grid = panels(figure, len(last), count, count * len(last))
    for row, (layer, (sides, found)) in enumerate(last.items()):
        for column in range(count):
            axes = grid[row * count + column]
            axes.imshow(_displayed(images[column]), cmap="gray")
            for mask, colour in ((found.mask & ~found.reliable, "tab:red"), (found.reliable, "tab:green")):
                _outline(axes, mask[column].view(sides).cpu(), images.shape[2:], colour)
            axes.set(xticks=[], yticks=[])
        grid[row * count].set_ylabel(layer, fontsize="small")
    return figure


def ellipsoids(frame: Frame) -> Figure:
    """For each layer the regional features of some images, with an ellipsoid of one standard deviation a class."""
    layers = frame["layers"]
    figure, width = Figure(figsize=(3.6 * len(layers), 3.9)), 1 / len(layers)
    for number, (layer, parts) in enumerate(layers.items()):
        axes: Any = figure.add_axes((width * number, 0.02, 0.94 * width, 0.84), projection="3d")
        reach = float(parts["points"].norm(dim=1).double().quantile(0.98)) or 1.0
        for category, direction in enumerate(frame["directions"].double()):
            colour = colormaps["tab10"](category % 10)
            own = parts["points"][parts["labels"] == category]
            axes.scatter(*own.T.numpy(), s=1, color=colour, depthshade=False)
            axes.quiver(0, 0, 0, *(reach * direction).tolist(), color=colour, arrow_length_ratio=0.08)
            surface = ellipsoid(parts["means"][category], parts["covariances"][category])
            axes.plot_surface(*surface.unbind(2), color=colour, alpha=0.2, linewidth=0, shade=False)
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), zlim=(-reach, reach))
        axes.set_title(layer, fontsize="medium", y=1.0)
        for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
            axis.set_major_locator(MaxNLocator(4))
        axes.tick_params(labelsize="xx-small", pad=-3)
    figure.suptitle(f"regional features, epoch {epoch_name(frame['epoch'])}", fontsize="medium")
    return figure


def ellipsoid(mean: Tensor, covariance: Tensor, detail: int = 16) -> Tensor:
    """Points `(detail, detail, 3)` at one standard deviation of a Gaussian in three dimensions."""
    values, axes = torch.linalg.eigh(covariance)
    around, down = torch.linspace(0, 2 * torch.pi, detail), torch.linspace(0, torch.pi, detail)
    x, y, z = (
        torch.outer(around.cos(), down.sin()),
        torch.outer(around.sin(), down.sin()),
        down.cos().expand(detail, -1),
    )
    sphere = torch.stack([x, y, z], dim=2).to(mean)
    surface: Tensor = mean + (sphere * values.clamp(min=0).sqrt()) @ axes.T
    return surface


def boundary(mask: Tensor) -> list[list[tuple[int, int]]]:
    """The edges between regions in a bool `(rows, columns)` mask and others, as pairs of corners (column, row).

    Example:
        >>> sorted(boundary(torch.tensor([[True]])))
        [[(0, 0), (0, 1)], [(0, 0), (1, 0)], [(0, 1), (1, 1)], [(1, 0), (1, 1)]]
    """
    framed = torch.nn.functional.pad(mask.int(), (1, 1, 1, 1))
    across = framed.diff(dim=1)[1:-1].nonzero().tolist()
    down = framed.diff(dim=0)[:, 1:-1].nonzero().tolist()
    return [[(c, r), (c, r + 1)] for r, c in across] + [[(c, r), (c + 1, r)] for r, c in down]


def _moments(points: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `(3,)` and covariance `(3, 3)` of points `(n, 3)`; 0 where there is none."""
    count = max(len(points), 1)
    mean = points.sum(dim=0) / count
    return mean, (points - mean).T @ (points - mean) / count


def _in_space(points: Tensor) -> Tensor:
    """Points of a plane, or of a space, `(..., d)`, as points of a space `(..., 3)`."""
    return torch.nn.functional.pad(points, (0, 3 - points.shape[-1]))


def _outline(axes: Axes, mask: Tensor, size: Sequence[int], colour: str) -> None:
    rows, columns = mask.shape
    height, width = size[0] / rows, size[1] / columns
    edges = [[(c * width - 0.5, r * height - 0.5) for c, r in edge] for edge in boundary(mask)]
    axes.add_collection(LineCollection(edges, colors=colour, linewidths=1.2))


def _displayed(image: Tensor) -> Any:  # noqa: ANN401 - what imshow takes
    """An image with its own values from dark to bright, in colour where it has three channels."""
    low, high = image.aminmax()
    scaled = (image - low) / (high - low).clamp(min=1e-12)
    return scaled.permute(1, 2, 0).numpy() if len(image) == 3 else scaled.mean(dim=0).numpy()


def _scatter(frame: Frame, layer: str) -> Scatter:
    parts = frame["layers"][layer]
    title = f"{layer}, epoch {epoch_name(frame['epoch'])}"
    return Scatter(parts["points"], parts["labels"], frame["directions"], title, frame["names"])

"""The figures of knowledge points: counts over epochs, regions outlined on images, projected regions, their film."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from netprism.figures._common import History, as_picture, epoch_axis, epoch_name, panels, save, styled
from netprism.figures.projection import Scatter, film, page
from netprism.knowledge.points import KnowledgePointCounts

Frame = dict[str, Any]  # kept in checkpoints: epoch, directions, names, layers -> points, labels, means, covariances

RIGHT, WRONG = "#0072B2", "#E69F00"  # blue and orange: red and green are one to many
IMAGES = 8  # images that are drawn
FRAMES = 50  # largest number of frames of a film
_FILM_IMAGES = 20  # images whose regions are points of the film: 26 kB per layer and epoch with 64 regions


def frame(
    epoch: int, projected: Mapping[str, Tensor], labels: Tensor, directions: Tensor, names: Sequence[str]
) -> Frame:
    """Returns what the pictures need of one epoch.

    Args:
        epoch: Epoch, -1 before training.
        projected: Layer -> projected regional features h, `(N, R, 3)` or `(N, R, 2)`.
        labels: Classes of the images `(N,)`, in 0 to C - 1.
        directions: Directions of the classes, `(C, 3)` or `(C, 2)`.
        names: Names of the C classes.
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
    return {"epoch": epoch, "directions": directions, "names": list(names), "layers": layers}


def with_frame(frames: Sequence[Frame], new: Frame) -> list[Frame]:
    """Returns the frames of earlier epochs and a new one, at most `FRAMES`, so that checkpoints do not grow.

    The first and the last are kept, and between them those of every second epoch, or every fourth, ...
    """
    kept, step, last = [one for one in frames if one["epoch"] < new["epoch"]] + [new], 1, new["epoch"]
    while len(kept) > FRAMES:
        step *= 2
        kept = [one for one in kept if (one["epoch"] + 1) % step == 0 or one["epoch"] == last]
    return kept


def draw(
    history: History,
    frames: Sequence[Frame],
    images: Tensor | None,
    last: Mapping[str, tuple[tuple[int, int], KnowledgePointCounts]],
    folder: Path,
    name: str = "knowledge",
) -> list[Path]:
    """Draws all figures: `<name>_points.png`, `_ellipsoids.png`, `_regions.png`, `_layers.png`, a film per layer.

    Args:
        history: Rows with the epoch and the logged values.
        frames: Frames of rising epochs, at least one.
        images: Images `(n, channels, H, W)` to draw on, or None.
        last: Layer -> rows and columns of its regions, and knowledge points, first those on `images`.
        folder: Folder to write into, created if missing.
        name: Name of the monitor.
    """
    paths = [save(curves(history, list(frames[-1]["layers"]), len(frames[-1]["names"])), folder / f"{name}_points.png")]
    if images is not None and last:
        paths.append(save(outlines(images, last), folder / f"{name}_regions.png"))
    if len(last) > 1 and (lines := along_layers(frames[-1], last))[0].numel():
        paths.append(save(followed(list(last), *lines), folder / f"{name}_layers.png"))
    return paths + draw_projected(frames, folder, name)


def draw_projected(frames: Sequence[Frame], folder: Path, name: str) -> list[Path]:
    """Draws the projected regions of the last frame, `<name>_ellipsoids.png`, and a film of all frames per layer."""
    paths = [save(ellipsoids(frames[-1]), folder / f"{name}_ellipsoids.png")]
    for layer in frames[-1]["layers"]:
        paths.append(film(_scatters(frames, layer), folder / f"{name}_film_{layer}.gif"))
    return paths + turnable_pages(frames, folder, name)


def turnable_pages(frames: Sequence[Frame], folder: Path, name: str) -> list[Path]:
    """Writes a page per layer, `<name>_film_<layer>.html`, on which the regions can be turned."""
    layers = frames[-1]["layers"]
    return [page(_scatters(frames, layer), folder / f"{name}_film_{layer}.html") for layer in layers]


@styled
def curves(history: History, layers: Sequence[str], classes: int) -> Figure:
    """Draws all and reliable knowledge points over epochs, and their ratio, in one colour per layer."""
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    counts, ratios = panels(figure, 1, 2, 2)
    epochs = [row["epoch"] for row in history]
    for number, layer in enumerate(layers):
        look: dict[str, Any] = {"color": f"C{number % 10}", "marker": ".", "markersize": 4}
        counts.plot(epochs, [row[f"points/{layer}"] for row in history], label=layer, **look)
        counts.plot(epochs, [row[f"reliable/{layer}"] for row in history], linestyle="--", **look)
        ratios.plot(epochs, [row[f"ratio/{layer}"] for row in history], label=layer, **look)
    counts.set_title("knowledge points per image (dashed: reliable)", fontsize="medium")
    ratios.axhline(1 / classes, color="0.5", linewidth=1, linestyle=":", label=f"chance, 1/{classes}")
    ratios.set(title="fraction that is reliable", ylim=(0, 1))
    ratios.title.set_fontsize("medium")
    ratios.legend(frameon=False, loc="upper left")  # few ratios come near 1
    for axes in (counts, ratios):
        epoch_axis(axes)
    return figure


@styled
def outlines(images: Tensor, last: Mapping[str, tuple[tuple[int, int], KnowledgePointCounts]]) -> Figure:
    """Draws the first images for each layer, knowledge points outlined in blue where reliable, in orange where not."""
    count = min(IMAGES, len(images))
    figure = Figure(figsize=(1.1 * count + 0.9, 1.15 * len(last) + 0.3), layout="constrained")
    grid = panels(figure, len(last), count, count * len(last))
    for row, (layer, (sides, found)) in enumerate(last.items()):
        for column in range(count):
            axes = grid[row * count + column]
            axes.imshow(as_picture(images[column]))
            for mask, colour in ((found.mask & ~found.reliable, WRONG), (found.reliable, RIGHT)):
                _outline(axes, mask[column].view(sides).cpu(), images.shape[2:], colour)
            axes.set(xticks=[], yticks=[])
        grid[row * count].set_ylabel(layer, fontsize="small")
    says = {RIGHT: "decides for the right class by itself", WRONG: "for a wrong one"}
    handles = [Line2D([], [], color=colour, label=text) for colour, text in says.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


@styled
def ellipsoids(frame: Frame) -> Figure:
    """Draws the regional features of some images per layer, with an ellipsoid of one standard deviation per class."""
    layers = frame["layers"]
    figure, width = Figure(figsize=(3.6 * len(layers), 3.9)), 1 / len(layers)
    shown = frame["names"][:10]
    columns = len(shown) if sum(map(len, shown)) < 12 * len(layers) else 5  # short names stand in one row
    bottom = 0.02 if columns == len(shown) else 0.1
    for number, (layer, parts) in enumerate(layers.items()):
        axes: Any = figure.add_axes((width * number, bottom, 0.94 * width, 0.86 - bottom), projection="3d")
        reach = float(parts["points"].norm(dim=1).double().quantile(0.98)) or 1.0
        for category, direction in enumerate(frame["directions"].double()):
            colour = colormaps["tab10"](category % 10)
            own = parts["points"][parts["labels"] == category]
            axes.scatter(*own.T.numpy(), s=1, color=colour, depthshade=False)
            axes.quiver(0, 0, 0, *(reach * direction).tolist(), color=colour, arrow_length_ratio=0.08)
            surface = ellipsoid(parts["means"][category], parts["covariances"][category])
            axes.plot_surface(*surface.unbind(2), color=colour, alpha=0.35, linewidth=0, shade=False)
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), zlim=(-reach, reach))
        axes.set_title(layer, fontsize="medium", y=1.0)
        for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
            axis.set_major_locator(MaxNLocator(4))
        axes.tick_params(labelsize="xx-small", pad=-3)
    when = epoch_name(frame["epoch"])
    figure.suptitle(f"regional features, epoch {when}; arrows: directions of the classes", fontsize="medium")
    handles = [Line2D([], [], color=colormaps["tab10"](i % 10), label=name) for i, name in enumerate(shown)]
    figure.legend(handles=handles, loc="lower center", ncols=columns, title="class")
    return figure


def along_layers(
    frame: Frame, last: Mapping[str, tuple[tuple[int, int], KnowledgePointCounts]]
) -> tuple[Tensor, Tensor]:
    """Follows the regions that are reliable knowledge points in the last layer through the layers before it.

    Where a layer has finer regions, the mean of those inside a region of the last layer is taken.

    Args:
        frame: Projected regional features of some images.
        last: Layer -> rows and columns of its regions, and knowledge points.

    Returns:
        Cosine with the direction of the true class, and strength, of each region in each layer, `(L, r)` both.

    Source: Li et al. 2021, figure 4, https://arxiv.org/abs/2111.03505.
    """
    *_, (sides, found) = last.values()
    maps, labels = [], torch.empty(0, dtype=torch.int64)
    for layer, ((rows, columns), _) in last.items():
        h = frame["layers"][layer]["points"].float().view(-1, rows, columns, 3)
        labels = frame["layers"][layer]["labels"].view(len(h), -1)[:, 0]
        maps.append(F.adaptive_avg_pool2d(h.permute(0, 3, 1, 2), sides).flatten(2).transpose(1, 2))
    regions = torch.stack(maps)  # (L, N, R, 3)
    towards = F.cosine_similarity(regions, frame["directions"].float()[labels][:, None], dim=3)
    chosen = found.reliable[: len(labels)].cpu()
    return towards[:, chosen], regions.norm(dim=3)[:, chosen]


@styled
def followed(layers: Sequence[str], towards: Tensor, strengths: Tensor) -> Figure:
    """Draws the same regions from layer to layer, a thin line each and their mean; see `along_layers`."""
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    titles = "cosine with the direction of the class", "strength"
    for axes, values, title in zip(panels(figure, 1, 2, 2), (towards, strengths), titles, strict=True):
        axes.plot(values.numpy(), color="0.6", linewidth=0.4, alpha=0.5)
        axes.plot(values.mean(1).numpy(), color=RIGHT, marker="o", linewidth=2, label="mean")
        axes.set_title(title, fontsize="medium")
        axes.set_xticks(range(len(layers)), layers)
    figure.suptitle(f"{towards.shape[1]} regions that are reliable knowledge points in {layers[-1]}", fontsize="medium")
    return figure


def ellipsoid(mean: Tensor, covariance: Tensor, detail: int = 16) -> Tensor:
    """Returns points `(detail, detail, 3)` at one standard deviation of a Gaussian in three dimensions."""
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
    """Returns the edges between regions in a bool `(rows, columns)` mask and others, as pairs of corners (column, row).

    Example:
        >>> sorted(boundary(torch.tensor([[True]])))
        [[(0, 0), (0, 1)], [(0, 0), (1, 0)], [(0, 1), (1, 1)], [(1, 0), (1, 1)]]
    """
    framed = torch.nn.functional.pad(mask.int(), (1, 1, 1, 1))
    across = framed.diff(dim=1)[1:-1].nonzero().tolist()
    down = framed.diff(dim=0)[:, 1:-1].nonzero().tolist()
    return [[(c, r), (c, r + 1)] for r, c in across] + [[(c, r), (c + 1, r)] for r, c in down]


def _moments(points: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `(3,)` and covariance `(3, 3)` of points `(n, 3)`; 0 where there is no point."""
    count = max(len(points), 1)
    mean = points.sum(dim=0) / count
    return mean, (points - mean).T @ (points - mean) / count


def _in_space(points: Tensor) -> Tensor:
    """Points `(..., 2)` or `(..., 3)` as points `(..., 3)`."""
    return torch.nn.functional.pad(points, (0, 3 - points.shape[-1]))


def _outline(axes: Axes, mask: Tensor, size: Sequence[int], colour: str) -> None:
    rows, columns = mask.shape
    height, width = size[0] / rows, size[1] / columns
    edges = [[(c * width - 0.5, r * height - 0.5) for c, r in edge] for edge in boundary(mask)]
    axes.add_collection(LineCollection(edges, colors=colour, linewidths=1.2))


def _scatters(frames: Sequence[Frame], layer: str) -> list[Scatter]:
    return [_scatter(one, layer) for one in frames if layer in one["layers"]]


def _scatter(frame: Frame, layer: str) -> Scatter:
    parts = frame["layers"][layer]
    title = f"{layer}, epoch {epoch_name(frame['epoch'])}"
    return Scatter(parts["points"], parts["labels"], frame["directions"], title, frame["names"])

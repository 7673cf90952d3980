"""The figures and tables of feature components: curves over epochs, bars over orders, maps of single channels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor
from torch.nn import functional as F

from netprism.components.measures import Components, overfitting
from netprism.figures._common import History, as_picture, epoch_axis, panels, rising_colors, save, styled
from netprism.files import write_table, write_text

_CURVES = (
    ("significance", "significance Var[c] / Var[f]"),
    ("unexplained", "unexplained E‖f − Φ‖² / Var[f]"),
    ("accuracy", "accuracy with Φ in place of f"),
    ("contribution", "contribution to the loss, nats"),
)
_TILE = 70  # pixels
_NAMES = {"train": "training images", "test": "test images"}


def draw(
    history: History,
    found: Mapping[str, Components],
    maps: Mapping[str, Tensor],
    channels: Sequence[int] | int,
    folder: Path,
    name: str,
) -> list[Path]:
    """Draws all figures.

    Args:
        history: One row per measurement, with `epoch` and the keys that `FeatureComponents` logs.
        found: Components of the last measurement, of "train", "test" or both.
        maps: Tensors `images` (N, C, H, W), `feature` (N, ...) and `approximations` (L, N, ...).
        channels: Channels to show, or the number of those with the largest variance.
        folder: Folder of the files; it is made.
        name: Beginning of their names.

    Returns:
        The files: `<name>_bars.png`; of several epochs also `<name>_curves.png`, and of features with positions also
        `<name>_maps.png`.
    """
    drawn = {"bars": bars(found)}
    if len(history) > 1:
        drawn["curves"] = curves(history)
    if maps["feature"].dim() == 4 and maps["images"].dim() == 4:
        orders = next(iter(found.values())).orders
        drawn["maps"] = channel_maps(maps["images"], maps["feature"], maps["approximations"], orders, channels)
    return [save(figure, folder / f"{name}_{what}.png") for what, figure in drawn.items()]


def tabulate(found: Mapping[str, Components], folder: Path, name: str) -> list[Path]:
    """Writes all numbers: `<name>.json` by split, and `<name>.csv` with one row per split and order.

    Args:
        found: Components of "train", "test" or both.
        folder: Folder of the files; it is made.
        name: Beginning of their names.
    """
    document = {split: asdict(c) | {"effectiveness": c.effectiveness} for split, c in found.items()}
    both = [found[split] for split in _NAMES if split in found]
    if len(both) == 2 and all(c.contribution is not None for c in both):
        document["train"]["overfitting"] = overfitting(*both)
    rows = [row for split, entry in document.items() for row in _rows(split, entry)]
    columns = dict.fromkeys(key for row in rows for key in row)
    write_text(folder / f"{name}.json", json.dumps(document, indent=2) + "\n")
    table = write_table(folder / f"{name}.csv", [{key: row.get(key) for key in columns} for row in rows])
    return [folder / f"{name}.json", table]


@styled
def curves(history: History) -> Figure:
    """Draws quantities over epochs, a line per order; training images solid, test images dashed."""
    shown = [(key, label) for key, label in _CURVES if any(k.startswith(f"{key}/") for k in history[-1])]
    orders = [key.partition("/")[2] for key in history[-1] if key.startswith("significance/")]
    figure = Figure(figsize=(9, 3.2 * -(-len(shown) // 2)), layout="constrained")
    colors = rising_colors(len(orders))
    for axes, (key, label) in zip(panels(figure, -(-len(shown) // 2), 2, len(shown)), shown, strict=True):
        for order, color in zip(orders, colors, strict=True):
            for prefix, style in (("", "-"), ("test/", "--")):
                points = [(row["epoch"], row[k]) for row in history if (k := f"{prefix}{key}/{order}") in row]
                if points:
                    axes.plot(*zip(*points, strict=True), style, color=color, label=None if prefix else f"l = {order}")
        axes.set_title(label, fontsize="medium")
        epoch_axis(axes)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    styles = [Line2D([], [], color="0.4", linestyle=style) for style in ("-", "--")]
    figure.legend([*handles, *styles], [*labels, *_NAMES.values()], loc="outside upper center", ncols=4, frameon=False)
    return figure


@styled
def bars(found: Mapping[str, Components]) -> Figure:
    """Draws the last measurement: a group of bars per order, training beside test images."""
    shown: list[tuple[str, str]] = [("significance", "significance"), ("unexplained", "unexplained by Φ")]
    if all(c.contribution is not None for c in found.values()):
        shown += [("effectiveness", "effectiveness, nats / unit of f"), ("accuracy", "accuracy with Φ")]
        shown += [("overfitting", "over-fitting")] if len(found) == 2 else []
    figure = Figure(figsize=(2.6 * len(shown), 2.9), layout="constrained")
    for axes, (key, label) in zip(panels(figure, 1, len(shown), len(shown)), shown, strict=True):
        if key == "overfitting":
            series = {"train": overfitting(found["train"], found["test"])}
        else:
            series = {split: getattr(components, key) for split, components in found.items()}
        _bars(axes, next(iter(found.values())).orders, series)
        if key == "accuracy":
            for i, components in enumerate(found.values()):
                axes.axhline(float(components.feature_accuracy or 0), color=f"C{i}", linewidth=0.8, linestyle=":")
        axes.set_title(label, fontsize="medium")
    handles, _ = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, [_NAMES[s] for s in found], loc="outside lower center", ncols=2, frameon=False)
    return figure


@styled
def channel_maps(
    images: Tensor, feature: Tensor, approximations: Tensor, orders: Sequence[int], channels: Sequence[int] | int
) -> Figure:
    """Draws images, and of some channels f and Phi^(l), with c^(l) in the row below; one scale per channel."""
    if isinstance(channels, int):
        channels = feature.var(dim=(0, 2, 3)).topk(min(channels, feature.shape[1])).indices.tolist()
    rows, names = [], []
    for i, image in enumerate(images):
        for channel in channels:
            phi, f = approximations[:, i, channel], feature[i, channel]
            parts = phi.diff(dim=0, prepend=torch.zeros_like(phi[:1]))
            limit = float(torch.stack([f, *phi, *parts]).abs().max().clamp_min(1e-12))
            blank = torch.ones_like(f)[None].expand(3, -1, -1)
            rows.append(
                [
                    torch.from_numpy(as_picture(image)).permute(2, 0, 1),
                    _coloured(f, limit),
                    *(_coloured(one, limit) for one in phi),
                ]
            )
            rows.append([blank, blank, *(_coloured(one, limit) for one in parts)])
            names += [f"channel {channel}: Φ", "c"]
    # One picture of all tiles: with an axes per tile it took 7 s.
    tiles = [torch.cat([_tile(picture) for picture in row], dim=2) for row in rows]
    figure = Figure(figsize=(0.8 * len(rows[0]) + 1.9, 0.8 * len(rows) + 0.4), layout="constrained")
    axes = figure.subplots()
    axes.imshow(torch.cat(tiles, dim=1).permute(1, 2, 0).numpy(), interpolation="nearest")
    centres = (np.arange(max(len(rows), len(rows[0]))) + 0.5) * _TILE
    axes.set_xticks(centres[: len(rows[0])], ["image", "f", *(f"l = {order}" for order in orders)])
    axes.set_yticks(centres[: len(rows)], names)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def _rows(split: str, entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per order, and one for the feature as a whole."""
    orders = entry["orders"]
    lists = {key: value for key, value in entry.items() if isinstance(value, tuple) and key != "orders"}
    single = {k: v for k, v in entry.items() if isinstance(v, int | float)}
    rows = [{"split": split, "order": o, **{k: v[i] for k, v in lists.items()}} for i, o in enumerate(orders)]
    return [*rows, {"split": split, "order": "all", **single}]


def _bars(axes: Axes, orders: Sequence[int], series: Mapping[str, Sequence[float]]) -> None:
    width = 0.8 / len(series)
    for i, (split, values) in enumerate(series.items()):
        axes.bar(np.arange(len(orders)) + (i - (len(series) - 1) / 2) * width, values, width, label=split)
    axes.set_xticks(range(len(orders)), [str(order) for order in orders])
    axes.set_xlabel("order l")
    axes.axhline(0, color="0.3", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _coloured(values: Tensor, limit: float) -> Tensor:
    """A map (H, W) as (3, H, W): blue below zero, white at zero, red above."""
    colours = colormaps["RdBu_r"](((values / limit + 1) / 2).numpy())
    return torch.from_numpy(colours[..., :3]).permute(2, 0, 1).float()


def _tile(picture: Tensor) -> Tensor:
    """A picture (3, H, W) enlarged to a tile with a white frame."""
    inner = F.interpolate(picture[None], (_TILE - 6, _TILE - 6))[0]
    return F.pad(inner, (3, 3, 3, 3), value=1.0)

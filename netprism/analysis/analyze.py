"""Every measure once, on networks that are trained already."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_info
from torch import nn

from netprism.analysis.result import Analysis
from netprism.analysis.still import Still, as_module
from netprism.callbacks import FeatureComponents, GatingEntropy, InformationDiscarding, KnowledgePoints
from netprism.callbacks._monitor import Monitor

USUAL = ("gates", "discarding", "knowledge")  # components train nets: minutes
_MADE: dict[str, Callable[..., Monitor]] = {
    "gates": GatingEntropy,
    "discarding": InformationDiscarding,
    "knowledge": KnowledgePoints,
    "components": FeatureComponents,
}
MONITORS = tuple(_MADE)


def analyze(
    model: nn.Module | Mapping[str, nn.Module],
    data: Any,  # noqa: ANN401 - anybody's data
    monitors: Sequence[str | Monitor] | None = None,
    *,
    layers: Sequence[str] | None = None,
    num_images: int = 64,
    seed: int = 0,
    names: Sequence[str] | None = None,
    usual: Sequence[str | Monitor] = USUAL,
    **options: Any,
) -> Analysis:
    """Measures trained networks once, without any training; they stay as they are, on the device where they are.

    Args:
        model: A network, of whatever kind, or several by name: `{"before": a, "after": b}`.
        data: A data set, loader, data module, images `(N, C, H, W)`, or tensors `(images, labels)`; `{"train": ...,
            "test": ...}` for both splits. Images are given as the network gets them, normalised.
        monitors: "gates", "discarding", "knowledge", "components", or monitors with options of their own:
            `[GatingEntropy(layers=-4), "discarding"]`. None: the first three, as far as they fit the network and its
            data; what does not fit is said.
        layers: Layers of discarding, knowledge and, the last one, components; None for the outermost blocks.
        num_images: Number of images that discarding and components look at. Gates take up to 1000, knowledge up to 50
            of each of ten classes.
        seed: Seed of all random numbers and of the choice of images.
        names: Names of the images, in the order of the data set, for the table of single images.
        usual: What `monitors=None` means.
        options: Options that all monitors share: `unpack`, `call`, `network`, `batch_size`, see `Monitor`.

    Returns:
        The numbers: `.table()`, `.plot()`, `.save(folder)`, which also writes a page with the pictures.

    Raises:
        ValueError: There is no such monitor, or one that was asked for does not fit.

    Cost: that of one measurement of each monitor; components train nets for 500 steps before, some minutes.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
        >>> result = analyze(net, (torch.randn(12, 1, 8, 8), torch.arange(12) % 3), ["gates"])
        >>> [row["layer"] for row in result.table() if row["quantity"] == "gates/entropy"]
        ['', '1']
    """
    chosen = [_monitor(given, layers, num_images, seed, options) for given in monitors or usual]
    networks = dict(model) if isinstance(model, Mapping) else {type(model).__name__: model}
    still = Still(data)
    values: dict[str, dict[str, float]] = {}
    used: dict[str, list[Monitor]] = {}
    notes: list[str] = []
    for name, network in networks.items():
        module = as_module(network)
        values[name], used[name] = {}, []
        for monitor in map(copy.deepcopy, chosen):
            try:
                with warnings.catch_warnings(record=True) as said:
                    warnings.simplefilter("always")
                    values[name] |= look_once(monitor, still, module)
                notes += [str(each.message) for each in said if issubclass(each.category, UserWarning)]
            except ValueError as error:
                if monitors is not None:
                    raise
                notes.append(f"{name} without {monitor.name}: {str(error).removeprefix(f'{monitor.name}: ')}")
                rank_zero_info(notes[-1])
                continue
            used[name].append(monitor)
    if not any(values.values()):
        raise ValueError(notes[0])
    return Analysis(values, used, list(dict.fromkeys(notes)), None if names is None else list(names))


def look_once(monitor: Monitor, still: Still, module: pl.LightningModule) -> dict[str, float]:
    """Returns all numbers of a monitor for a network as it is. It takes the monitor for itself."""
    trainer = cast(pl.Trainer, still)
    monitor.setup(trainer, module, "fit")
    monitor.per_layer = True  # a table may be long
    if isinstance(monitor, InformationDiscarding):
        monitor.measuring["measure_ratio"] = True
    return monitor.look(trainer, module, epoch=-1)


def _monitor(
    given: str | Monitor, layers: Sequence[str] | None, num_images: int, seed: int, shared: Mapping[str, Any]
) -> Monitor:
    if isinstance(given, Monitor):
        return given
    if given not in _MADE:
        raise ValueError(f"monitor is {given!r}; expected {', '.join(_MADE)}, or a monitor of netprism.callbacks")
    options: dict[str, Any] = {"seed": seed, **shared}
    named = None if layers is None else list(layers)
    if given == "discarding":
        options |= {"layers": named, "num_images": num_images, "num_scale_images": num_images}
        options = {"num_vjps": 64, "num_shown": 32} | options
    if given == "knowledge":
        options |= {"layers": named}
    if given == "components":
        options |= {"layer": named[-1] if named else None, "num_images": num_images}
    return _MADE[given](**options)

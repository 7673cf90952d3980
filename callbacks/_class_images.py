"""The images of some classes, and what a network computes from them on all ranks together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.utils.data import Dataset

from netprism.callbacks._monitor_data import MonitorData, labels_of_items, monitor_data, targets_of
from netprism.callbacks._view import Batch, View, check_finite
from netprism.knowledge.epoch_projection import NetworkFeatures, network_features

MOST_ITEMS = 1 << 62  # all; of a stream, as many as fit
READ = 4  # items whose labels are read, per image that is wanted


def images_of_classes(
    view: View, given: Dataset[Any] | None, classes: int, each: int, batch_size: int, seed: int
) -> tuple[MonitorData, list[int]]:
    """Chooses the same number of training images of each of some classes at random.

    It warns where there are fewer classes or images.

    Args:
        view: The training; in a dry run there are at most 3 images per class.
        given: A data set to use instead of the trainer's training data.
        classes: Number of classes; all if there are fewer.
        each: Images per class; all if there are fewer.
        batch_size: Batch size of the result.
        seed: Seed of the choice.

    Returns:
        The images in random order, and the chosen classes in rising order.

    Raises:
        ValueError: The data set does not tell its labels, or has fewer than 3 images or 2 classes.
    """
    data = monitor_data(view.trainer, "train", MOST_ITEMS, batch_size, seed, given, name=view.name)
    assert data is not None  # there are training data
    targets, own = targets_of(data.dataset), None
    if targets is None:
        rank_zero_info(f"{view.name}: reads labels out of up to {READ * classes * each} items; the data set lists none")
        if (read := labels_of_items(data, READ * classes * each)) is None:
            raise ValueError(f"{view.name}: the training data have no integer label per sample; expected classes")
        own, targets = read
    draws, each = torch.Generator().manual_seed(seed), min(each, 3) if view.is_dry_run else each
    order, present = torch.randperm(len(targets), generator=draws), targets.unique()
    chosen = present[torch.randperm(len(present), generator=draws)[:classes]].sort()[0].tolist()
    members = {c: order[targets[order] == c][:each] for c in chosen}
    counts = {c: len(own) for c, own in members.items()}
    if len(counts) < 2 or sum(counts.values()) < 3:
        raise ValueError(f"number of images per class is {counts}; expected at least 3 images and 2 classes")
    if len(counts) < classes:
        rank_zero_warn(f"{view.name}: {len(counts)} classes; classes is {classes}, there are no more")
    if min(counts.values()) < each:
        few = {c: count for c, count in counts.items() if count < each}
        rank_zero_warn(f"{view.name}: fewer than {each} images of some classes: {few}")
    images = order[torch.isin(order, torch.cat(list(members.values())))].tolist()
    images = images if own is None else [own[i] for i in images]
    batches = [images[i : i + batch_size] for i in range(0, len(images), batch_size)]
    return view.prepare(replace(data, batches=batches), "train"), chosen


def collect_features(
    view: View,
    data: MonitorData,
    categories: Sequence[int],
    layers: Sequence[str],
    logits_layer: str | None,
    max_grid: int,
) -> tuple[NetworkFeatures, Tensor]:
    """Collects the features and labels of all images, in order and on all ranks.

    Args:
        view: The network.
        data: The images.
        categories: Classes of the images, rising. Other columns of the logits are dropped, and labels are indices into
            `categories`.
        layers: Names of layers with feature maps.
        logits_layer: The layer of the logits; None for the last fully connected one that runs.
        max_grid: Largest number of rows and of columns of regions.

    Raises:
        ValueError: A layer is unknown or gives values that are not finite; there are no integer labels; the logits are
            not (N, C) with a C above all classes.
    """
    logits_layer = logits_layer or view.logits_layer(data)

    def look(batch: Batch) -> dict[str, Tensor]:
        if batch.labels is None:
            raise ValueError("labels is None; expected integer labels in each batch")
        found = network_features(
            view.model, lambda: view.forward(batch.inputs), layers, logits_layer, max_grid=max_grid,
            relative_to=view.network,
        )  # fmt: skip
        check_finite(found.maps, view.name)
        maps = {f"maps/{layer}": m for layer, m in found.maps.items()}
        return {"samples": found.samples.float(), "logits": found.logits.float(), "labels": batch.labels, **maps}

    rows = {key: value.to(view.device) for key, value in view.collect(data, look, "images").items()}
    shape, chosen = tuple(rows["logits"].shape), torch.tensor(categories, device=view.device)
    if len(shape) != 2 or shape[1] <= max(categories):
        raise ValueError(f"shape of logits is {shape}; expected (N, C) with C above {max(categories)}")
    maps = {layer: rows[f"maps/{layer}"] for layer in layers}
    features = NetworkFeatures(maps, rows["samples"], rows["logits"][:, chosen])
    for layer in (layer for layer in layers if features.grid(layer) == (1, 1)):
        rank_zero_warn(f"{view.name}: layer {layer!r} has one region, the whole image")
    return features, torch.searchsorted(chosen, rows["labels"])


def first_images(view: View, data: MonitorData, number: int) -> Tensor | None:
    """Returns the first images `(n, C, H, W)` of the data, to draw on, or None where the inputs are not images."""
    inputs = view.load(data, 0, number).inputs
    return inputs.float().cpu() if isinstance(inputs, Tensor) and inputs.ndim == 4 else None

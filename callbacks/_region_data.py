"""The images of some classes, and what a network makes of them on all processes together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from netprism.callbacks._monitor_data import MonitorData, targets_of
from netprism.distributed import all_gather_object
from netprism.module_names import module_names


@dataclass(frozen=True)
class Seen:
    """What a network makes of N images.

    Attributes:
        regions: layer -> regional features `(N, R, K)`.
        samples: sample features `(N, d)`.
        logits: `(N, C)`.
        labels: integer classes `(N,)`.
    """

    regions: dict[str, Tensor]
    samples: Tensor
    logits: Tensor
    labels: Tensor


def images_of_classes(
    data: MonitorData, classes: int, each: int, batch_size: int, name: str
) -> tuple[MonitorData, list[int]]:
    """As many images of each of some classes, chosen at random by the seed of `data`; what is missing is said.

    Args:
        data: all images.
        classes: how many; all if there are fewer.
        each: images of a class; all if there are fewer.
        batch_size: of the result.
        name: of the monitor that says what is missing.

    Returns:
        The images in random order, and the chosen classes, rising.

    Raises:
        ValueError: a data set that does not tell its labels; fewer than 3 images or 2 classes.
    """
    targets = targets_of(data.dataset)
    if targets is None:
        raise ValueError("the training data do not tell their labels; give train_data= with `targets`")
    draws = torch.Generator().manual_seed(data.seed)
    order, present = torch.randperm(len(targets), generator=draws), targets.unique()
    chosen = present[torch.randperm(len(present), generator=draws)[:classes]].sort()[0].tolist()
    members = {c: order[targets[order] == c][:each] for c in chosen}
    counts = {c: len(own) for c, own in members.items()}
    if len(counts) < 2 or sum(counts.values()) < 3:
        raise ValueError(f"images of the classes are {counts}: expected 3 images and 2 classes at least")
    if len(counts) < classes:
        rank_zero_warn(f"{name}: {len(counts)} classes: {classes} were asked for, there are no more")
    if min(counts.values()) < each:
        few = {c: count for c, count in counts.items() if count < each}
        rank_zero_warn(f"{name}: fewer than {each} images of some classes: {few}")
    images = order[torch.isin(order, torch.cat(list(members.values())))].tolist()
    return replace(data, batches=[images[i : i + batch_size] for i in range(0, len(images), batch_size)]), chosen


def gathered(own: Mapping[int, Seen], categories: Sequence[int], device: torch.device) -> Seen:
    """The batches of all processes in their order, on each process, with classes counted among `categories`.

    Args:
        own: number of the batch -> what the network makes of it, on the CPU.
        categories: the classes of the images, rising; logits of others are left out.
        device: of the result.

    Raises:
        ValueError: logits that are not (N, C) with a C above all classes.
    """
    batches = {number: batch for share in all_gather_object(own) for number, batch in share.items()}
    ordered, chosen = [batches[number] for number in sorted(batches)], torch.tensor(categories)
    shape = tuple(ordered[0].logits.shape)
    if len(shape) != 2 or shape[1] <= max(categories):
        raise ValueError(f"logits are {shape}; expected (N, C) with C above the label {max(categories)}")
    return Seen(
        {layer: torch.cat([batch.regions[layer] for batch in ordered]).to(device) for layer in ordered[0].regions},
        torch.cat([batch.samples for batch in ordered]).to(device),
        torch.cat([batch.logits for batch in ordered])[:, chosen].to(device),
        torch.searchsorted(chosen, torch.cat([batch.labels for batch in ordered]).cpu()).to(device),
    )


def last_linear(network: nn.Module) -> str:
    """The name of the last fully connected layer, whose input is the sample feature and whose output the logits.

    Raises:
        ValueError: there is none.
    """
    names = [name for module, name in module_names(network).items() if isinstance(module, nn.Linear) and name]
    if not names:
        raise ValueError(f"{type(network).__name__} has no fully connected layer: name the layer of the logits, head=")
    return names[-1]


def sides_of(features: Tensor, max_grid: int) -> tuple[int, int]:
    """Rows and columns of the regions of a layer's features, as `region_features` makes them."""
    if features.ndim == 4:
        return min(features.shape[2], max_grid), min(features.shape[3], max_grid)
    return 1, features[0, 0].numel()

"""The regional features of images along an attack on the network."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from netprism.callbacks._view import Batch, View
from netprism.interventions.attack import pgd_steps
from netprism.interventions.pixels import RAW, Pixels
from netprism.knowledge.epoch_projection import EpochProjection, network_features


def along_attack(
    view: View,
    projection: EpochProjection,
    batch: Batch,
    *,
    categories: Sequence[int],
    layers: Sequence[str],
    logits_layer: str,
    max_grid: int,
    eps: float,
    steps: int,
    pixels: Pixels | None,
) -> dict[str, Tensor]:
    """Attacks the images of a batch.

    Args:
        view: The network.
        projection: Of its regional features.
        batch: n images with classes.
        categories: Classes of the images, rising.
        layers: Names of layers with feature maps.
        logits_layer: The layer of the logits.
        max_grid: Largest number of rows and of columns of regions.
        eps: Largest change of a pixel in [0, 1].
        steps: Number of steps.
        pixels: The range of the images; None for that of the data module, or [0, 1] where it has none.

    Returns:
        "image" and "attacked", the images before and after; "before" and "after", whether they are classified
        correctly; "true" and "wrong", the places in `categories` of the true class and of the wrong one that an image
        is taken for after the attack, -1 where there is none; and "path/<layer>", the projected regions h before the
        attack and after each step, `(n, steps + 1, R, d)`.

    Raises:
        ValueError: The inputs are no images, or have no classes; otherwise see `netprism.interventions.pgd`.
    """
    if not isinstance(batch.inputs, Tensor) or batch.labels is None:
        raise ValueError(f"{view.name}: a batch has no images or no labels; expected one tensor, and classes")
    data: Any = getattr(view.trainer, "datamodule", None)
    if pixels is None:
        pixels = Pixels.of(data) if hasattr(data, "mean") and hasattr(data, "std") else RAW
    with view.precision():
        path = list(pgd_steps(view.model, batch.inputs, batch.labels, eps=eps, steps=steps, pixels=pixels))
    seen = [
        network_features(
            view.model, partial(view.forward, images), layers, logits_layer, max_grid=max_grid,
            relative_to=view.network,
        )
        for images in path
    ]  # fmt: skip
    projected = [projection(features) for features in seen]
    right = {key: (seen[i].logits.argmax(1) == batch.labels).float() for key, i in (("before", 0), ("after", -1))}
    chosen, decided = torch.tensor(categories, device=batch.labels.device), seen[-1].logits.argmax(1)
    hits = (decided[:, None] == chosen) & (decided != batch.labels)[:, None]
    right["true"] = torch.searchsorted(chosen, batch.labels)
    right["wrong"] = torch.where(hits.any(1), hits.int().argmax(1), -1)
    images = {"image": path[0].float(), "attacked": path[-1].float()}
    return right | images | {f"path/{layer}": torch.stack([h[layer] for h in projected], 1) for layer in layers}

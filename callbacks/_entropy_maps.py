"""Entropy maps of images: where the objects are, the means that are logged, and the pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from netprism.discarding.concentration import box_mask, segment_mask
from netprism.figures import discarding as figures
from netprism.metrics.discarding import DiscardingMetric


def masks_of(batch: Any, size: tuple[int, int]) -> Tensor | None:  # noqa: ANN401 - a user's batch
    """Returns where the objects are, bool `(N, 1, H, W)`, if the batch has it.

    That is the third item of a tuple, or `mask` or `box` of a dict: segments `(N, H, W)` or `(N, 1, H, W)` of any size,
    or boxes `(N, 4)` (left, top, right, bottom). Boxes are in pixels of the image that the network gets, or of one of
    `original_size` `(N, 2)` (height, width), a key of the dict. Anything else is no mask: None.
    """
    if isinstance(batch, dict):
        found, original = batch.get("mask", batch.get("box")), batch.get("original_size")
    else:
        found, original = batch[2] if isinstance(batch, tuple | list) and len(batch) > 2 else None, None
    if not isinstance(found, Tensor):
        return None
    if found.dim() == 2 and found.shape[1] == 4:
        return box_mask(found, size, original)
    return segment_mask(found, size) if found.dim() == 3 or (found.dim() == 4 and found.shape[1] == 1) else None


def mean_values(maps: Mapping[str, Tensor]) -> dict[str, float]:
    """Returns the logged numbers of the maps "SID/<layer>" and "RU/<layer>" of all images, and of their "mask"."""
    values: dict[str, float] = {}
    for quantity, masks in (("SID", maps.get("mask")), ("RU", None)):
        if chosen := _of(maps, quantity):
            metric = DiscardingMetric(list(chosen), quantity, sync_on_compute=False)  # each rank has all maps
            metric.update(chosen, masks)
            values |= {key: float(value) for key, value in metric.compute().items()}
    return values


def draw_maps(maps: Mapping[str, Tensor], name: str, num_shown: int, folder: Path) -> list[Path]:
    """Draws `<name>_SID.png` and `<name>_RU.png`, where the inputs "x" are images."""
    paths = []
    for quantity in ("SID", "RU"):
        chosen = _of(maps, quantity)
        if chosen and maps["x"].dim() == 4:
            path = folder / f"{name}_{quantity}.png"
            paths.append(figures.maps(maps["x"], chosen, path, f"{quantity}, nats", num_shown))
    return paths


def _of(maps: Mapping[str, Tensor], quantity: str) -> dict[str, Tensor]:
    return {key.partition("/")[2]: value for key, value in maps.items() if key.startswith(f"{quantity}/")}

"""Entropy maps of images: where the objects are, the means that are logged, and the pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from netprism.discarding.concentration import box_mask, segment_mask
from netprism.discarding.reconstruction import reconstruction_uncertainty
from netprism.discarding.sid import strict_information_discarding
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


def maps_of(
    model: nn.Module,
    x: Tensor,
    scale: Mapping[str, float],
    decoders: Mapping[str, nn.Module],
    share_channels: bool,
    options: dict[str, Any],
) -> dict[str, Tensor]:
    """Returns the images "x" and their entropy maps, "SID/<layer>" of the layers in `scale`, "RU/<layer>" of decoders.

    Args:
        model: The network as a function of `x`.
        x: Images.
        scale: Feature scale of each layer.
        decoders: Decoders of some of the layers.
        share_channels: Whether SID has one sigma per pixel.
        options: Options of `strict_information_discarding` and `reconstruction_uncertainty`.
    """
    sid_options = options | {"share_channels": share_channels, "measure_ratio": False}
    results = strict_information_discarding(model, list(scale), x, scale=dict(scale), **sid_options)
    found = {"x": x} | {f"SID/{layer}": result.entropy_map for layer, result in results.items()}
    for layer, decoder in decoders.items():
        given = model, layer, decoder.to(x.device), x
        found[f"RU/{layer}"] = (
            reconstruction_uncertainty(*given, scale=scale[layer], **options).entropy_map
            if scale[layer] > 0
            else torch.full_like(x, torch.nan)  # no image reaches the layer: no reason to end a training
        )
    return found


def joined(parts: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Returns the rows of all parts by name."""
    found = list(parts)
    return {name: torch.cat([part[name] for part in found]) for name in found[0]}


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

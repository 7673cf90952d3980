"""Entropy maps of images: where the objects are, the means that are logged, and the pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from netprism.discarding.concentration import box_mask, concentration, segment_mask
from netprism.discarding.decoder import load_decoders
from netprism.discarding.reconstruction import reconstruction_uncertainty
from netprism.discarding.sid import strict_information_discarding
from netprism.figures import discarding as figures
from netprism.runs.checkpoints import read_training


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


def decoders_of(
    decoders: Mapping[str, nn.Module] | str | None, layers: Sequence[str], pl_module: nn.Module
) -> dict[str, nn.Module]:
    """Returns {layer: decoder}: those given, those of a checkpoint, or the "own" of an `InputDecoder` in training.

    Raises:
        ValueError: One is of another layer, or the module has none.
    """
    if decoders == "own":
        own: Any = pl_module
        if not hasattr(own, "decoder"):
            raise ValueError(f"decoders is 'own', but {type(own).__name__} has none; expected an InputDecoder")
        return {layer: own.decoder(layer) for layer in own.layers if layer in layers}
    found = load_decoders(read_training(decoders)) if isinstance(decoders, str) else decoders or {}
    for layer in found:
        if layer not in layers:
            raise ValueError(f"decoders has layer {layer!r}; expected some of {', '.join(layers)}")
    return dict(found)


def maps_of(
    model: nn.Module,
    x: Tensor,
    scale: Mapping[str, float],
    decoders: Mapping[str, nn.Module],
    share_channels: bool,
    options: dict[str, Any],
) -> dict[str, Tensor]:
    """Returns the images "x" and their entropy maps, "SID/<layer>" of the layers in `scale`, "RU/<layer>" of decoders.

    Of each image there are also the "error/<layer>", the "ratio/<layer>" (NaN unless `measure_ratio` is among the
    options) and the fraction of "unseen/<layer>" pixels of SID, `(N,)` each.

    Args:
        model: The network as a function of `x`.
        x: Images.
        scale: Feature scale of each layer.
        decoders: Decoders of some of the layers.
        share_channels: Whether SID has one sigma per pixel.
        options: Options of `strict_information_discarding` and `reconstruction_uncertainty`.
    """
    sid_options = {"measure_ratio": False} | options | {"share_channels": share_channels}
    results = strict_information_discarding(model, list(scale), x, scale=dict(scale), **sid_options)
    found = {"x": x}
    for layer, result in results.items():
        found |= {f"SID/{layer}": result.entropy_map, f"error/{layer}": result.error, f"ratio/{layer}": result.ratio}
        found[f"unseen/{layer}"] = result.unseen.flatten(1).float().mean(1)
    options = {name: value for name, value in options.items() if name != "measure_ratio"}
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


def per_image(found: Mapping[str, Tensor], masks: Tensor | None, num_shown: int) -> dict[str, Tensor]:
    """Returns the numbers of each image, float64 `(N,)`, and the maps of the first ones alone, as "maps/SID/<layer>".

    So a measurement of many images takes no more memory than one of a few.

    Args:
        found: What `maps_of` has found.
        masks: Where the objects are, for "concentration/<layer>", or None.
        num_shown: Number of images whose maps are kept, and themselves, as "x".
    """
    rows: dict[str, Tensor] = {"x": found["x"][:num_shown].clone()}  # a view would keep all
    for key, value in found.items():
        quantity, _, layer = key.partition("/")
        if quantity in ("SID", "RU"):
            rows[key] = value.double().flatten(1).mean(1)
            rows[f"maps/{key}"] = value[:num_shown].clone()
            if quantity == "SID" and masks is not None:
                rows[f"concentration/{layer}"] = concentration(value.double(), masks)
        elif quantity != "x":
            rows[key] = value.double()
    return rows


def mean_values(rows: Mapping[str, Tensor]) -> dict[str, float]:
    """Returns the logged numbers: means over the images, for concentration over those that have one."""
    quantities = ("SID", "unseen", "concentration", "RU")
    found = {quantity: [key for key in rows if key.startswith(f"{quantity}/")] for quantity in quantities}
    return {key: float(rows[key].nanmean() if quantity == "concentration" else rows[key].mean())
            for quantity, keys in found.items() for key in keys}  # fmt: skip


def draw_maps(maps: Mapping[str, Tensor], name: str, folder: Path) -> list[Path]:
    """Draws `<name>_SID.png` and `<name>_RU.png`, where the inputs "x" are images."""
    paths = []
    for quantity in ("SID", "RU"):
        chosen = maps_by_layer(maps, quantity)
        if chosen and maps["x"].dim() == 4:
            path = folder / f"{name}_{quantity}.png"
            paths.append(figures.maps(maps["x"], chosen, path, f"{quantity}, nats", len(maps["x"])))
    return paths


def maps_by_layer(rows: Mapping[str, Tensor], quantity: str) -> dict[str, Tensor]:
    """Returns {layer: maps} of a quantity, "SID" or "RU"."""
    prefix = f"maps/{quantity}/"
    return {key.removeprefix(prefix): value for key, value in rows.items() if key.startswith(prefix)}

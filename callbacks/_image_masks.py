"""Where the objects are in the images of a batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from netprism.discarding.concentration import box_mask, segment_mask


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

"""Whether a layer forgets the background rather than the object; masks of objects from boxes and segments."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def concentration(entropy_map: Tensor, mask: Tensor) -> Tensor:
    """Concentration of each image: how much more of the background is forgotten than of the object, in nats.

    It is the mean of H_i over the units outside the mask, minus the mean over those inside. Where it is positive, the
    layer looks at the object.

    Args:
        entropy_map: Entropies H_i, `(N, C, H, W)`.
        mask: Where the object is, non-zero inside it: `(N, H, W)`, `(N, 1, H, W)` or `(N, C, H, W)`;
            :func:`box_mask` and :func:`segment_mask` make one of a box, or of a segment of another size.

    Returns:
        `(N,)`; NaN where a mask is all or nothing, since there is nothing to compare then.

    Raises:
        ValueError: The mask does not fit the entropy map.

    Source: Ma et al. 2019, eq. (6), https://openreview.net/forum?id=BygG3hEYvB.

    Example:
        >>> concentration(torch.tensor([[[[-3.0, -1.0, -1.0]]]]), torch.tensor([[[1, 0, 0]]]))
        tensor([2.])
    """
    inside = (mask.unsqueeze(1) if mask.dim() == entropy_map.dim() - 1 else mask) != 0
    try:
        inside = inside.expand_as(entropy_map).flatten(1)
    except RuntimeError as error:
        shapes = f"mask is {tuple(mask.shape)}, entropy map {tuple(entropy_map.shape)}"
        raise ValueError(f"{shapes}; expected the same N, H and W") from error
    h = entropy_map.double().flatten(1)

    def mean(of: Tensor) -> Tensor:
        return h.where(of, 0.0).sum(1) / of.sum(1)  # 0 / 0 is NaN

    return (mean(~inside) - mean(inside)).to(entropy_map)


def box_mask(boxes: Tensor, size: tuple[int, int], original: Tensor | tuple[int, int] | None = None) -> Tensor:
    """Turns boxes, one per image, into masks; a pixel is inside if its centre is.

    Args:
        boxes: Shape `(N, 4)`: left, top, right, bottom in pixels, right and bottom exclusive.
        size: Height and width of the images that the network gets.
        original: Height and width of the image that the boxes were drawn on, one or `(N, 2)`; None: `size`.

    Returns:
        Bool `(N, 1, H, W)`.

    Raises:
        ValueError: The boxes have another shape.

    Example:
        >>> box_mask(torch.tensor([[2.0, 0.0, 4.0, 8.0]]), size=(2, 4), original=(8, 8)).int()
        tensor([[[[0, 1, 0, 0],
                  [0, 1, 0, 0]]]], dtype=torch.int32)
    """
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes are {tuple(boxes.shape)}; expected (N, 4): left, top, right, bottom")
    device = boxes.device
    scale = torch.tensor(size, device=device) / torch.as_tensor(size if original is None else original, device=device)
    left, top, right, bottom = (boxes * scale.flip(-1).repeat(*[1] * (scale.dim() - 1), 2)).T[..., None, None]
    y = (torch.arange(size[0], device=device) + 0.5)[:, None]
    x = (torch.arange(size[1], device=device) + 0.5)[None, :]
    inside: Tensor = (left <= x) & (x < right) & (top <= y) & (y < bottom)
    return inside.unsqueeze(1)


def segment_mask(segments: Tensor, size: tuple[int, int]) -> Tensor:
    """Turns segments of any size into masks of the images that the network gets, by the nearest pixel.

    Args:
        segments: Shape `(N, H, W)` or `(N, 1, H, W)`, non-zero on the object.
        size: Height and width of the images.

    Returns:
        Bool `(N, 1, H, W)`.

    Raises:
        ValueError: The segments have another shape.
    """
    if segments.dim() == 3:
        segments = segments.unsqueeze(1)
    if segments.dim() != 4 or segments.shape[1] != 1:
        raise ValueError(f"segments are {tuple(segments.shape)}; expected (N, H, W) or (N, 1, H, W)")
    mask: Tensor = F.interpolate((segments != 0).float(), size, mode="nearest-exact") != 0
    return mask

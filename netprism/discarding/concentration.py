"""Whether a layer forgets the background rather than the object; masks of objects from boxes and segments."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def concentration(entropy_map: Tensor, mask: Tensor) -> Tensor:
    """Concentration of each image: how much more of the background is forgotten than of the object, in nats.

    mean of H_i over the units outside of the mask - mean over those inside. Positive: the layer looks at the object.

    Args:
        entropy_map: H_i `(N, C, H, W)`.
        mask: the object, non-zero inside: `(N, H, W)`, `(N, 1, H, W)` or `(N, C, H, W)`; :func:`box_mask` and
            :func:`segment_mask` make one of a box, or of a segment of another size.

    Returns:
        `(N,)`; NaN where a mask is all or nothing, since there is nothing to compare then.

    Raises:
        ValueError: a mask that does not fit.

    Source: "Quantifying Layerwise Information Discarding of Neural Networks and Beyond", equation 6.

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
    """Turns one box an image into masks; a pixel is inside if its centre is.

    Args:
        boxes: `(N, 4)`, left, top, right, bottom in pixels, right and bottom exclusive.
        size: height and width of the images that the network gets.
        original: height and width of the image that the boxes were drawn on, one or `(N, 2)`; None: `size`.

    Returns:
        bool `(N, 1, H, W)`.

    Raises:
        ValueError: boxes of another shape.

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
        segments: `(N, H, W)` or `(N, 1, H, W)`, non-zero on the object.
        size: height and width of the images.

    Returns:
        bool `(N, 1, H, W)`.

    Raises:
        ValueError: segments of another shape.
    """
    if segments.dim() == 3:
        segments = segments.unsqueeze(1)
    if segments.dim() != 4 or segments.shape[1] != 1:
        raise ValueError(f"segments are {tuple(segments.shape)}; expected (N, H, W) or (N, 1, H, W)")
    mask: Tensor = F.interpolate((segments != 0).float(), size, mode="nearest-exact") != 0
    return mask

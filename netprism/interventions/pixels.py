"""The range of images, for whoever changes them: pixels are in [0, 1], a network gets (pixel - mean) / std."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_ROUNDING = 1e-3  # of a pixel: what a normalisation in half precision may add to the range


class HasNormalisation(Protocol):
    """What `netprism.datamodules.ImageDataModule` has, and any object with these two attributes."""

    mean: Sequence[float]
    std: Sequence[float]


@dataclass(frozen=True)
class Pixels:
    """How inputs of a network belong to pixels in [0, 1]: input = (pixel - mean) / std.

    Args:
        mean: Mean of each channel, of pixels in [0, 1]; by default the inputs are the pixels themselves.
        std: Standard deviation of each channel.

    Raises:
        ValueError: There are not as many means as deviations, or a deviation is not positive.

    Example:
        >>> Pixels(mean=(0.5,), std=(0.5,)).bounds(torch.zeros(1, 1, 2, 2))[1].flatten().tolist()
        [1.0]
    """

    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(
                f"mean has {len(self.mean)} numbers and std {len(self.std)}; expected one each per channel"
            )
        if not all(0 < std < float("inf") for std in self.std):
            raise ValueError(f"std is {tuple(self.std)}; expected numbers > 0")

    @classmethod
    def of(cls, data: HasNormalisation) -> Pixels:
        """Returns the range of the images of a data module, from its `mean` and `std`."""
        return cls(tuple(data.mean), tuple(data.std))

    def scale(self, x: Tensor) -> Tensor:
        """Returns std in float32 as `(1, C, 1, ...)`, to multiply with a batch `x` `(N, C, ...)`.

        Raises:
            ValueError: The images have another number of channels.
        """
        return self._per_channel(self.std, x)

    def bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the inputs of the pixels 0 and 1, in float32 as `(1, C, 1, ...)`."""
        mean, std = self._per_channel(self.mean, x), self.scale(x)
        return (0 - mean) / std, (1 - mean) / std

    def check(self, x: Tensor) -> None:
        """Refuses images that are not in the range.

        Raises:
            TypeError: The images are not floating.
            ValueError: There is no image, one is not finite, or a pixel is outside of [0, 1].
        """
        if not x.is_floating_point():
            raise TypeError(f"images are {x.dtype}; expected float images as the network gets them")
        if x.dim() < 2 or not x.numel():
            raise ValueError(f"images have shape {tuple(x.shape)}; expected (N, ...) with at least one image")
        if not x.isfinite().all():
            raise ValueError("images hold NaN or infinity; expected finite values")
        low, high = self.bounds(x)
        slack = _ROUNDING / self.scale(x)
        values = x.float()
        if (values < low - slack).any() or (values > high + slack).any():
            given = f"{float(values.min()):.4g} to {float(values.max()):.4g}"
            allowed = f"{float(low.min()):.4g} to {float(high.max()):.4g}"
            raise ValueError(
                f"images are {given}; expected {allowed}, pixels in [0, 1] with mean {tuple(self.mean)} and std "
                f"{tuple(self.std)}: give `pixels`, or Pixels.of(data_module)"
            )

    def _per_channel(self, values: Sequence[float], x: Tensor) -> Tensor:
        if len(values) > 1 and len(values) != x.shape[1]:
            raise ValueError(f"images have {x.shape[1]} channels; expected {len(values)}, as mean and std have")
        return torch.tensor(values, dtype=torch.float32, device=x.device).view(1, -1, *[1] * (x.dim() - 2))


RAW = Pixels()

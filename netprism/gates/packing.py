"""Boolean tensors at one bit per element, in the layout that integer matrix products need.

Gate `i` of a sample with `d` gates is bit `i // b` of byte `i % b`, with `b = ceil(d / 8)`: the eight bit planes of the
bytes are then eight contiguous runs of gates. Packing is eight shifts, an inner product over gates is the sum of the
inner products of the planes, and no step ever interleaves bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor


@dataclass(frozen=True)
class PackedGates:
    """Gates of `n` samples, packed eight to a byte.

    Attributes:
        bits: uint8 `(n, ceil(d / 8))`, on the device of the gates.
        shape: Shape of one sample's gates; there are `d = prod(shape)`.
        preceded_by: Kind of the last weighted operation before the gates, "conv" or "linear"; None if unknown.
    """

    bits: Tensor
    shape: tuple[int, ...]
    preceded_by: str | None = None

    @classmethod
    def pack(cls, gates: Tensor) -> PackedGates:
        """Packs bool `(n, ...)`. Time O(n d), memory n d / 8 bytes beside the input."""
        if gates.dtype != torch.bool:
            raise TypeError(f"gates are {gates.dtype}; expected torch.bool (for pre-activations: x > 0)")
        if gates.dim() == 0:
            raise ValueError("gates have shape (); expected (n, ...)")
        if gates.shape[1:].numel() == 0:
            raise ValueError(f"gates have shape {tuple(gates.shape)}; expected (n, ...) with at least one gate")
        flat = gates.flatten(1) if gates.dim() > 1 else gates.unsqueeze(1)
        width = math.ceil(flat.shape[1] / 8)
        padded = torch.nn.functional.pad(flat, (0, 8 * width - flat.shape[1])).view(torch.uint8)
        planes = rearrange(padded, "n (planes width) -> n planes width", planes=8)
        bits = planes[:, 0].clone()
        for k in range(1, 8):
            bits |= planes[:, k] << k
        return cls(bits, tuple(gates.shape[1:]))

    @classmethod
    def concatenate(cls, parts: Sequence[PackedGates]) -> PackedGates:
        """Joins parts of the same shape along the samples.

        Raises:
            ValueError: There is no part, or their shapes differ.
        """
        if len({part.shape for part in parts}) != 1:
            raise ValueError(f"shapes of gates are {[part.shape for part in parts]}; expected one and the same")
        return replace(parts[0], bits=torch.cat([part.bits for part in parts]))

    def first(self, n: int) -> PackedGates:
        """Returns the gates of the first `n` samples."""
        return replace(self, bits=self.bits[:n])

    def unpack(self) -> Tensor:
        """Returns bool `(n, *shape)`."""
        planes = torch.stack([self.bits >> k & 1 for k in range(8)], dim=1)
        return planes.flatten(1)[:, : self.size].bool().view(len(self), *self.shape)

    def runs(self, max_gates: int) -> Iterator[tuple[slice, Tensor]]:
        """Yields all gates unpacked, a run of them at a time.

        Args:
            max_gates: Largest number of gates in a run; memory is `n * max_gates` bytes.

        Yields:
            The position of the run in a sample's `8 * ceil(d / 8)` padded gates, and int8 `(n, gates)`, 0 or 1.
        """
        width = self.bits.shape[1]
        planes = max(1, min(8, max_gates // width))  # several whole planes at once, or a part of one
        shifts = torch.arange(8, dtype=torch.uint8, device=self.bits.device)
        for k in range(0, 8, planes):
            for start in range(0, width, max_gates):
                columns = self.bits[:, start : start + max_gates]
                run = rearrange(
                    columns[:, None] >> shifts[k : k + planes, None] & 1, "n planes width -> n (planes width)"
                )
                yield slice(k * width + start, k * width + start + run.shape[1]), run.view(torch.int8)

    @property
    def size(self) -> int:
        """The number of gates of one sample, d."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.bits.shape[0]

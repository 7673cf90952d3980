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
        shape: Shape of one sample's gates in the network.
        preceded_by: Kind of the last weighted operation before the gates, "conv" or "linear"; None if unknown.
        positions: Which of the `prod(shape)` gates are packed, int64 `(d,)`, see `some_positions`; None: all of them.
    """

    bits: Tensor
    shape: tuple[int, ...]
    preceded_by: str | None = None
    positions: Tensor | None = None

    @classmethod
    def pack(cls, gates: Tensor, positions: Tensor | None = None) -> PackedGates:
        """Packs bool `(n, ...)`, or those at flat positions. Time O(n d), memory n d / 8 bytes beside the input."""
        if gates.dtype != torch.bool:
            raise TypeError(f"gates are {gates.dtype}; expected torch.bool (for pre-activations: x > 0)")
        if gates.dim() == 0:
            raise ValueError("gates have shape (); expected (n, ...)")
        if gates.shape[1:].numel() == 0:
            raise ValueError(f"gates have shape {tuple(gates.shape)}; expected (n, ...) with at least one gate")
        flat = gates.flatten(1) if gates.dim() > 1 else gates.unsqueeze(1)
        flat = flat if positions is None else flat.index_select(1, positions)
        width = math.ceil(flat.shape[1] / 8)
        padded = torch.nn.functional.pad(flat, (0, 8 * width - flat.shape[1])).view(torch.uint8)
        planes = rearrange(padded, "n (planes width) -> n planes width", planes=8)
        bits = planes[:, 0].clone()
        for k in range(1, 8):
            bits |= planes[:, k] << k
        return cls(bits, tuple(gates.shape[1:]), positions=positions)

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
        """Returns bool `(n, *shape)`, or `(n, d)` where only some positions are packed."""
        planes = torch.stack([self.bits >> k & 1 for k in range(8)], dim=1)
        shape = self.shape if self.positions is None else (self.size,)
        return planes.flatten(1)[:, : self.size].bool().view(len(self), *shape)

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
        """The number of packed gates of one sample, d."""
        return math.prod(self.shape) if self.positions is None else len(self.positions)

    @property
    def stands_for(self) -> float:
        """How many gates of the layer each packed one stands for; 1 where all are packed."""
        return math.prod(self.shape) / self.size

    def __len__(self) -> int:
        return self.bits.shape[0]


def some_positions(gates: int, most: int, seed: int) -> Tensor:
    """Returns `most` of the positions 0 to `gates` - 1, rising: one at random out of each of `most` equal stretches.

    Each position is as likely as any other one. A stretch is a part of one channel, so that all channels and all parts
    of the image are there, and neighbours, which are much alike, seldom.

    Args:
        gates: Number of positions, at least `most`.
        most: Number of positions that are taken.
        seed: Seed of the choice.
    """
    within = torch.rand(most, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    positions: Tensor = ((torch.arange(most) + within) * (gates / most)).long().clamp_max(gates - 1)
    return positions

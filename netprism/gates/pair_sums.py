"""Sums of kernels over all pairs of samples, which ranks can share: block by block of the matrix of distances.

A block has some samples as rows, and all samples up to the last of them as columns. So each pair is looked at once: a
block adds its rows' sums to its rows, and its columns' sums to samples of earlier blocks. All blocks of all layers are
joined in one gather and added up in a fixed order, so that the sums are bitwise the same on any number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from netprism.distributed import all_gather_object, rank_and_size
from netprism.gates.hamming import block_rows, distance_blocks
from netprism.gates.packing import PackedGates


@dataclass(frozen=True)
class PairSums:
    """`log2 sum_k exp(-D_jk / (2 s0^2))`, float64 `(n,)`: over all k and over j's class, with k = j and without.

    Sums over j's class are empty without classes.
    """

    over_all: Tensor
    over_others: Tensor
    over_class: Tensor
    over_others_of_class: Tensor


def pair_sums(
    gates: Mapping[str, PackedGates], widths: Mapping[str, float], classes: Tensor | None, shared: bool
) -> tuple[dict[str, PairSums], dict[str, PairSums]]:
    """Returns the sums of each layer, and of each layer with all behind it, these at the bandwidth of all layers.

    Cost: n^2 d / 2 multiply-adds (a tenth as many operations on words where bits are counted) and n^2 L exponentials,
    divided among the ranks if shared. Memory: 4 n^2 bytes, divided as well, `n * 16 kB` for a run of gates, and at most
    `n L * 1 kB` of sums.

    Args:
        gates: Gates of the layers, in the order of the calls.
        widths: Variance s0^2 of each layer's kernel.
        classes: Classes 0, 1, ... of the samples `(n,)`, or None.
        shared: Whether all ranks call it, with the same gates, and each does a part of the work.
    """
    n, names = len(next(iter(gates.values()))), list(gates)
    blocks = block_rows(n)
    own = _share(len(blocks)) if shared else list(range(len(blocks)))
    scales = {name: _scale(width) for name, width in widths.items()}
    of_all = _scale(sum(widths.values()))
    behind: dict[int, Tensor] = {}
    found: dict[int, list[Tensor]] = {number: [] for number in own}
    for name in reversed(names):
        for number, block in distance_blocks(gates[name], own).items():
            within = _of_all_gates(block, gates[name])
            behind[number] = within if number not in behind else behind[number].add_(within)
            for distances, scale in ((within, scales[name]), (behind[number], of_all)):
                found[number].append(_block_sums(distances, blocks[number].start, scale, classes))
    parts = {number: torch.stack(found.pop(number)) for number in own}  # (2 L, 1 or 2, end)
    total = _joined(parts, blocks, shared).to(next(iter(gates.values())).bits.device)
    sums = [_with_logarithms(each) for each in total]
    return dict(zip(names, sums[::2][::-1], strict=True)), dict(zip(names, sums[1::2][::-1], strict=True))


def _scale(width: float) -> float:
    return 0.5 / width if width > 1e-300 else math.inf


def _of_all_gates(distances: Tensor, layer: PackedGates) -> Tensor:
    """What the distances would be if all gates of a layer were packed, to the nearest integer."""
    return distances if layer.positions is None else (distances.double() * layer.stands_for).round().int()


def _share(count: int) -> list[int]:
    """This rank's blocks: dealt from the largest to the smallest, to and fro."""
    rank, size = rank_and_size()
    return [number for number in reversed(range(count)) if _dealt(count - 1 - number, size) == rank]


def _dealt(place: int, size: int) -> int:
    turn, seat = divmod(place, size)
    return seat if turn % 2 == 0 else size - 1 - seat


def _block_sums(distances: Tensor, start: int, scale: float, classes: Tensor | None) -> Tensor:
    """What a block of rows from `start` on adds to the sums over k != j of samples 0 to its end, `(1 or 2, end)`."""
    kernel = distances.double().mul_(-scale).exp_() if scale < math.inf else (distances == 0).double()
    kernel.diagonal(start).zero_()
    parts = [torch.cat([kernel[:, :start].sum(0), kernel.sum(1)])]
    if classes is not None:
        kernel.mul_(classes[start : distances.shape[1], None] == classes[: distances.shape[1]])
        parts.append(torch.cat([kernel[:, :start].sum(0), kernel.sum(1)]))
    return torch.stack(parts)


def _joined(parts: Mapping[int, Tensor], blocks: Sequence[slice], shared: bool) -> Tensor:
    """The sums `(2 L, 1 or 2, n)` of all blocks of all ranks."""
    if shared:
        own = {number: part.cpu() for number, part in parts.items()}
        parts = {number: part for of_rank in all_gather_object(own) for number, part in of_rank.items()}
    *shape, _ = parts[0].shape
    total = parts[0].new_zeros(*shape, blocks[-1].stop)
    for number in range(len(blocks)):
        total[..., : blocks[number].stop] += parts[number]
    return total


def _with_logarithms(sums: Tensor) -> PairSums:
    found = [each for over_others in sums for each in ((over_others + 1).log2(), over_others.log2())]  # itself: exp 0
    return PairSums(*found, *([sums.new_empty(0)] * (4 - len(found))))

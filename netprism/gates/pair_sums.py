"""Sums of kernels over all pairs of samples, block by block of the matrix of distances.

A block has some samples as rows, and all samples up to the last of them as columns. So each pair is looked at once: a
block adds its rows' sums to its rows, and its columns' sums to samples of earlier blocks.

Ranks that have slices of the gates find the distances in these. Distances of one block go to one rank, which adds them
up, exactly, since they are integers, and sums the kernels. The sums of all blocks are joined in one gather and added up
in a fixed order, so that they are bitwise the same on any number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from netprism.distributed import all_to_all
from netprism.gates.hamming import block_rows, distance_blocks
from netprism.gates.packing import PackedGates
from netprism.gates.slices import GateSlices

DISTANCES = 2**29  # bytes of distances that a rank finds at a time, unless those of one block are more


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
    slices: GateSlices, widths: Mapping[str, float], classes: Tensor | None
) -> tuple[dict[str, PairSums], dict[str, PairSums]]:
    """Returns the sums of each layer, and of each layer with all behind it, these at the bandwidth of all layers.

    Cost: n^2 d / 2 multiply-adds (a tenth as many operations on words where bits are counted) and n^2 L exponentials,
    divided among the ranks. Memory: 2 n^2 (L + 1) bytes, but at most about 1 GB, and once more what is sent; `n * 16
    kB` for a run of gates, and at most `n L * 1 kB` of sums. Sent: 2 n^2 bytes a layer, by each rank that has some of
    it.

    Args:
        slices: Gates of the layers, in the order of the calls.
        widths: Variance s0^2 of each layer's kernel.
        classes: Classes 0, 1, ... of the samples `(n,)`, or None.
    """
    blocks, names = block_rows(slices.samples), list(slices.layers)
    scales = {name: _scale(width) for name, width in widths.items()}
    of_all = _scale(sum(widths.values()))
    parts: dict[int, Tensor] = {}
    for numbers in _some_at_a_time(blocks):
        owners = _owners(numbers, len(slices.columns))
        behind: dict[int, Tensor] = {}
        found: dict[int, list[Tensor]] = {number: [] for number in numbers if owners[number] == slices.rank}
        for some in _some_layers(names[::-1], [blocks[number] for number in numbers]):
            for number, of_layers in _distances(slices, blocks, owners, some):
                for name in some:
                    within = _of_all_gates(of_layers.pop(name), slices.layers[name])
                    behind[number] = behind[number] + within if number in behind else within
                    for distances, scale in ((within, scales[name]), (behind[number], of_all)):
                        found[number].append(_block_sums(distances, blocks[number].start, scale, classes))
        parts |= {number: torch.stack(of_block) for number, of_block in found.items()}  # (2 L, 1 or 2, end)
    total = _joined(slices, parts, blocks).to(slices.device)
    sums = [_with_logarithms(each) for each in total]
    return dict(zip(names, sums[::2][::-1], strict=True)), dict(zip(names, sums[1::2][::-1], strict=True))


def _some_at_a_time(blocks: Sequence[slice]) -> Iterator[list[int]]:
    """Numbers of successive blocks, so many that their distances in a layer fit in `DISTANCES`."""
    some: list[int] = []
    for number in range(len(blocks)):
        if some and _layer_bytes([blocks[each] for each in (*some, number)]) > DISTANCES:
            yield some
            some = []
        some.append(number)
    yield some


def _some_layers(names: Sequence[str], blocks: Sequence[slice]) -> Iterator[Sequence[str]]:
    """Successive layers, so many that their distances in these blocks fit in `DISTANCES`."""
    count = max(1, DISTANCES // _layer_bytes(blocks))
    for start in range(0, len(names), count):
        yield names[start : start + count]


def _layer_bytes(blocks: Sequence[slice]) -> int:
    return sum(4 * (rows.stop - rows.start) * rows.stop for rows in blocks)


def _owners(numbers: Sequence[int], ranks: int) -> dict[int, int]:
    """Which rank gets which block: dealt from the largest to the smallest, to and fro."""
    owners = {}
    for place, number in enumerate(reversed(numbers)):
        turn, seat = divmod(place, ranks)
        owners[number] = seat if turn % 2 == 0 else ranks - 1 - seat
    return owners


def _distances(
    slices: GateSlices, blocks: Sequence[slice], owners: Mapping[int, int], names: Sequence[str]
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """The distances of this rank's blocks in each of some layers."""
    own = [number for number, owner in owners.items() if owner == slices.rank]
    if not slices.shared:
        of_layers = {name: distance_blocks(slices.gates(name), own) for name in names}
        for number in own:
            yield number, {name: of_layer.pop(number) for name, of_layer in of_layers.items()}
        return
    shapes = {number: (blocks[number].stop - blocks[number].start, blocks[number].stop) for number in own}
    sizes = [rows * columns for rows, columns in shapes.values()]
    layers = [[name for name in names if name in of_rank] for of_rank in slices.columns]
    lengths = [sum(sizes) * len(of_rank) for of_rank in layers]
    arrived = all_to_all(slices.on_all_ranks(partial(_to_send, slices, owners, layers[slices.rank])), lengths)
    found: dict[int, dict[str, Tensor]] = {number: {} for number in own}
    for of_rank, part in zip(layers, arrived, strict=True):
        pieces = iter(part.split(sizes * len(of_rank)))
        for name in of_rank:
            for number, shape in shapes.items():
                piece = next(pieces).view(shape)
                found[number][name] = found[number][name] + piece if name in found[number] else piece
    yield from found.items()


def _to_send(slices: GateSlices, owners: Mapping[int, int], names: Sequence[str]) -> list[Tensor]:
    """For each rank the distances of its blocks in this rank's gates of some layers, layer by layer, flat."""
    parts: list[list[Tensor]] = [[torch.empty(0, dtype=torch.int32, device=slices.device)] for _ in slices.columns]
    for name in names:
        of_layer = distance_blocks(slices.gates(name), list(owners))
        for number, owner in owners.items():
            parts[owner].append(of_layer.pop(number).flatten())
    return [torch.cat(of_rank) for of_rank in parts]


def _scale(width: float) -> float:
    return 0.5 / width if width > 1e-300 else math.inf


def _of_all_gates(distances: Tensor, layer: PackedGates) -> Tensor:
    """What the distances would be if all gates of a layer were packed, to the nearest integer."""
    return distances if layer.positions is None else (distances.double() * layer.stands_for).round().int()


def _block_sums(distances: Tensor, start: int, scale: float, classes: Tensor | None) -> Tensor:
    """What a block of rows from `start` on adds to the sums over k != j of samples 0 to its end, `(1 or 2, end)`."""
    kernel = distances.double().mul_(-scale).exp_() if scale < math.inf else (distances == 0).double()
    kernel.diagonal(start).zero_()
    parts = [torch.cat([kernel[:, :start].sum(0), kernel.sum(1)])]
    if classes is not None:
        kernel.mul_(classes[start : distances.shape[1], None] == classes[: distances.shape[1]])
        parts.append(torch.cat([kernel[:, :start].sum(0), kernel.sum(1)]))
    return torch.stack(parts)


def _joined(slices: GateSlices, own: Mapping[int, Tensor], blocks: Sequence[slice]) -> Tensor:
    """The sums `(2 L, 1 or 2, n)` of all blocks of all ranks."""
    of_ranks = slices.gathered(lambda: {number: part.cpu() if slices.shared else part for number, part in own.items()})
    parts = {number: part for of_rank in of_ranks for number, part in of_rank.items()}
    *shape, _ = parts[0].shape
    total = parts[0].new_zeros(*shape, blocks[-1].stop)
    for number in range(len(blocks)):
        total[..., : blocks[number].stop] += parts[number]
    return total


def _with_logarithms(sums: Tensor) -> PairSums:
    found = [each for over_others in sums for each in ((over_others + 1).log2(), over_others.log2())]  # itself: exp 0
    return PairSums(*found, *([sums.new_empty(0)] * (4 - len(found))))

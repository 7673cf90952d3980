"""Gates of all samples, divided among the ranks: each has a slice of every sample's gates, and none has all of them.

A rank begins with all gates of its own samples. Distances need both samples of a pair, and add up over the gates. So a
slice of the gates of all n samples travels to each of W ranks: n d / (8 W) bytes, where all gates would be n d / 8 on
each. What ranks find in their slices are integers, whose sums are the same on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from netprism.distributed import all_gather_object, all_to_all, rank_and_size, run_on_all_ranks
from netprism.gates.packing import PackedGates

T = TypeVar("T")
_MESSAGE = 2**25  # bytes that a rank sends at a time


@dataclass(frozen=True)
class GateSlices:
    """This rank's slice of the gates of n samples.

    Attributes:
        samples: Number n of samples, those of all ranks.
        layers: All layers in the order of the calls, without samples: shapes, and what precedes the gates.
        parts: Layers of which this rank has gates -> bits of successive samples, uint8 `(n_1, bytes)`, `(n_2, bytes)`.
        columns: Which bytes of a sample each rank has, by layer; of one entry where this rank has all.
        device: Where the gates are.
    """

    samples: int
    layers: Mapping[str, PackedGates]
    parts: Mapping[str, Sequence[Tensor]]
    columns: Sequence[Mapping[str, slice]]
    device: torch.device

    @classmethod
    def undivided(cls, gates: Mapping[str, PackedGates]) -> GateSlices:
        """Returns all gates of all samples as the slice of the only rank."""
        layers = {name: layer.first(0) for name, layer in gates.items()}
        first = next(iter(gates.values()))
        parts = {name: [layer.bits] for name, layer in gates.items()}
        return cls(len(first), layers, parts, deal(layers, 1), first.bits.device)

    @classmethod
    def of_columns(
        cls, bits: Sequence[Tensor], layers: Mapping[str, PackedGates], columns: Sequence[Mapping[str, slice]]
    ) -> GateSlices:
        """Returns a slice whose layers lie side by side in `bits`, uint8 `(n_1, bytes)`, `(n_2, bytes)` and so on."""
        parts, start = {}, 0
        for name, of_layer in columns[rank_and_size()[0] if len(columns) > 1 else 0].items():
            stop = start + of_layer.stop - of_layer.start
            parts[name] = [some[:, start:stop] for some in bits]
            start = stop
        return cls(sum(map(len, bits)), layers, parts, columns, bits[0].device)

    @property
    def shared(self) -> bool:
        """Whether the other ranks have the other gates."""
        return len(self.columns) > 1

    @property
    def rank(self) -> int:
        """Which of `columns` are those of this process."""
        return rank_and_size()[0] if self.shared else 0

    def gates(self, name: str) -> PackedGates:
        """The own gates of a layer, as a layer of so many gates; gates that fill up a byte are always closed."""
        parts = self.parts[name]
        bits = parts[0].contiguous() if len(parts) == 1 else torch.cat(list(parts))
        return PackedGates(bits, (8 * bits.shape[1],))

    def gathered(self, run: Callable[[], T]) -> list[T]:
        """What `run` returns on each rank; where it raises on one, all raise. Tensors should be on the CPU."""
        own = self.on_all_ranks(run)
        return all_gather_object(own) if self.shared else [own]

    def on_all_ranks(self, run: Callable[[], T]) -> T:
        """What `run` returns on this rank; where it raises on one, all raise."""
        return run_on_all_ranks(run) if self.shared else run()

    def whole(self, run: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Joins numbers per gate, `(8 * bytes,)` of own gates, to those of whole layers, `(d,)` on all ranks."""
        of_ranks = self.gathered(lambda: {name: each.cpu() if self.shared else each for name, each in run().items()})
        found = {}
        for name, layer in self.layers.items():
            planes = [of_rank[name].view(8, -1) for of_rank in of_ranks if name in of_rank]
            if planes:
                found[name] = torch.cat(planes, dim=1).flatten()[: layer.size].to(self.device)
        return found


def deal(layers: Mapping[str, PackedGates], ranks: int) -> list[dict[str, slice]]:
    """Returns which bytes of each layer belong to which rank: as many to each, of successive layers."""
    columns = []
    for limits in _limits(sum(map(byte_count, layers.values())), ranks):
        first, last, of_rank = limits.start, limits.stop, {}
        for name, layer in layers.items():
            width = byte_count(layer)
            start, stop = max(first, 0), min(last, width)
            if start < stop:
                of_rank[name] = slice(start, stop)
            first, last = first - width, last - width
        columns.append(of_rank)
    return columns


def _limits(width: int, ranks: int) -> list[slice]:
    """Where each rank's slice lies among the bytes of all layers side by side."""
    return [slice(width * rank // ranks, width * (rank + 1) // ranks) for rank in range(ranks)]


def byte_count(layer: PackedGates) -> int:
    """Returns how many bytes a sample has in a layer."""
    return -(-layer.size // 8)


def exchange(
    bits: Sequence[Tensor], layers: Mapping[str, PackedGates], labels: Sequence[Tensor]
) -> tuple[list[dict[str, slice]], Tensor, Tensor | None]:
    """Sends each rank its slice of the gates of this rank's samples; all ranks have to call it.

    Memory beside the gates: n d / (8 W) bytes of the slice, and 4 * 32 MB.

    Args:
        bits: Gates of this rank's samples, all layers side by side: uint8 `(n_i, bytes)`, with n_i of 0 or more.
        layers: What is known of the layers.
        labels: Classes of this rank's samples, integers `(n_i,)`, or nothing.

    Returns:
        The bytes of each rank; bits of this rank's slice `(n, own bytes)`, and labels `(n,)`, of all ranks' samples in
        the order of ranks.

    Raises:
        ValueError: The layers of ranks differ.
    """
    rank, size = rank_and_size()
    shapes = {name: (layer.shape, layer.size) for name, layer in layers.items()}
    width = sum(map(byte_count, layers.values()))
    chunks = [chunk for some in bits for chunk in some.split(max(1, _MESSAGE // width))]
    everywhere = all_gather_object((shapes, list(map(len, chunks)), [each.cpu() for each in labels]))
    for number, (other, _, _) in enumerate(everywhere):
        if other != everywhere[0][0]:
            name = next(n for n in (*everywhere[0][0], *other) if everywhere[0][0].get(n) != other.get(n))
            raise ValueError(
                f"layer {name!r} of process {number} has gates of shape {other.get(name, [None])[0]}; expected those "
                f"of process 0, {everywhere[0][0].get(name, [None])[0]}"
            )
    columns, limits = deal(layers, size), _limits(width, size)
    own = limits[rank].stop - limits[rank].start
    lengths = [rows for _, rows, _ in everywhere]
    slices = bits[0].new_empty(sum(map(sum, lengths)), own)
    starts = [sum(map(sum, lengths[:number])) for number in range(size)]
    for turn in range(max(map(len, lengths))):
        chunk = chunks[turn] if turn < len(chunks) else bits[0][:0]
        rows = [of_rank[turn] if turn < len(of_rank) else 0 for of_rank in lengths]
        arrived = all_to_all([chunk[:, limit].flatten() for limit in limits], [count * own for count in rows])
        for number, (count, part) in enumerate(zip(rows, arrived, strict=True)):
            slices[starts[number] : starts[number] + count] = part.view(count, own)
            starts[number] += count
    every_label = [label for _, _, of_rank in everywhere for label in of_rank]
    return columns, slices, torch.cat(every_label).to(slices.device) if every_label else None

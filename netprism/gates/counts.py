"""On how many samples gates are open: all that sums over gates need, in integers, whichever rank has the gates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from netprism.gates.hamming import open_counts
from netprism.gates.slices import GateSlices, byte_count


def histograms(slices: GateSlices, members: Sequence[Tensor | None]) -> dict[str, list[Tensor]]:
    """Returns how many gates of each layer are open on 0, 1, 2, ... of some samples.

    Cost: d additions for each sample and set that it is in, and d increments a set, divided among the ranks. Memory:
    16 bytes for each gate of the largest layer. Gathered: 8 n L bytes for all samples, as many for all classes.

    Args:
        slices: Gates.
        members: Sets of samples, bool `(n,)`; None for all.

    Returns:
        For each set int64 `(size + 1,)` on the CPU, the same on all ranks.
    """
    sizes = [slices.samples if some is None else int(some.sum()) for some in members]

    def own() -> dict[str, list[Tensor]]:
        return {
            name: [
                counts.bincount(minlength=size + 1).cpu()
                for counts, size in zip(counts_of(slices, name, members), sizes, strict=True)
            ]
            for name in slices.parts
        }

    of_ranks = slices.gathered(own)
    found = {}
    for name, layer in slices.layers.items():
        of_slices = [of_rank[name] for of_rank in of_ranks if name in of_rank]
        found[name] = [torch.stack(of_set).sum(0) for of_set in zip(*of_slices, strict=True)]
        for histogram in found[name]:
            histogram[0] -= 8 * byte_count(layer) - layer.size  # closed ones that fill up the last byte
    return found


def counts_of(slices: GateSlices, name: str, members: Iterable[Tensor | None]) -> Iterator[Tensor]:
    """Yields how many samples of each set have each own gate of a layer open, int64 `(8 * bytes,)`."""
    gates = slices.gates(name)
    for some in members:
        yield open_counts(gates if some is None else replace(gates, bits=gates.bits[some]))[0]


def whole_counts(slices: GateSlices, names: Sequence[str], members: Tensor | None) -> dict[str, Tensor]:
    """Returns how many samples of a set have each gate open, int64 `(d,)` for each of some layers."""

    def own() -> Mapping[str, Tensor]:
        return {name: next(counts_of(slices, name, [members])) for name in names if name in slices.parts}

    return slices.whole(own)

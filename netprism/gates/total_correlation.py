"""Total correlation of each layer and of all together; see `netprism.gates.independence`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from netprism.gates.counts import whole_counts
from netprism.gates.independence import gate_variance, has_bias, null_bias, smoothed_cross_entropy
from netprism.gates.pair_sums import PairSums
from netprism.gates.slices import GateSlices

JOINT = "*"  # key of all layers together


def total_correlations(
    slices: GateSlices,
    open_on: Mapping[str, Sequence[Tensor]],
    sums: Mapping[str, PairSums],
    widths: Mapping[str, float],
    members: Sequence[Tensor | None],
    seed: int,
) -> dict[str, tuple[float | None, float | None]]:
    """Returns TC, and TC given the class, of each layer and, as `JOINT`, of all together.

    Cost: 4 n logarithms a layer, as many for the classes, and twice that for `JOINT`; where kernels are narrow
    `null_bias`, with the classes divided among the ranks.

    Args:
        slices: Gates.
        open_on: How many gates of each layer are open on 0, 1, ... of all samples, then of those of each class.
        sums: Sums over pairs of samples of each layer, and of `JOINT`.
        widths: Variance s0^2 of each layer's kernel.
        members: None for all samples, then those of each class, bool `(n,)`.
        seed: Seed of the independent gates where kernels are narrow.

    Returns:
        None where one of the samples has no other one near it, or there are no classes.
    """
    widths = {**widths, JOINT: sum(widths.values())}
    sizes = [len(of_set) - 1 for of_set in next(iter(open_on.values()))]
    found: dict[tuple[str, int], float] = {}
    biased = []
    for name, each in sums.items():
        layers = {key: layer.stands_for for key, layer in slices.layers.items() if name in (key, JOINT)}
        for k, (some, n) in enumerate(zip(members, sizes, strict=True)):
            over_others = each.over_others if some is None else each.over_others_of_class[some]
            if n < 2 or over_others.isinf().any():
                continue
            of_layers = [(gates, open_on[key][k]) for key, gates in layers.items()]
            independent = math.fsum(
                gates * smoothed_cross_entropy(histogram, widths[name]) for gates, histogram in of_layers
            )
            variance = math.fsum(gates * gate_variance(histogram) for gates, histogram in of_layers)
            found[name, k] = independent - float((math.log2(n - 1) - over_others).mean())
            if has_bias(variance, n, widths[name]):
                biased.append((name, k))
    for key, bias in _biases(slices, members, sizes, widths, biased, seed).items():
        found[key] += bias
    return {name: (found.get((name, 0)), _mean_over_classes(found, name, sizes)) for name in sums}


def _mean_over_classes(found: Mapping[tuple[str, int], float], name: str, sizes: Sequence[int]) -> float | None:
    """The mean over samples of what their classes have; None if there are no classes, or one has nothing."""
    classes = range(1, len(sizes))
    if not classes or any((name, k) not in found for k in classes):
        return None
    return sum(sizes[k] * found[name, k] for k in classes) / sizes[0]


def _biases(
    slices: GateSlices,
    members: Sequence[Tensor | None],
    sizes: Sequence[int],
    widths: Mapping[str, float],
    biased: Sequence[tuple[str, int]],
    seed: int,
) -> dict[tuple[str, int], float]:
    """`null_bias` of some layers and sets of samples; the sets are dealt to the ranks."""
    found: dict[tuple[str, int], float] = {}
    for turn, k in enumerate(sorted({k for _, k in biased})):
        wanted = [name for name, number in biased if number == k]
        counts = whole_counts(slices, list(slices.layers) if JOINT in wanted else wanted, members[k])
        if turn % len(slices.columns) != slices.rank:
            continue
        for name in wanted:
            some = [key for key in slices.layers if name in (key, JOINT)]
            stand_for = [
                torch.full_like(counts[key], slices.layers[key].stands_for, dtype=torch.float32) for key in some
            ]
            every_count = torch.cat([counts[key] for key in some])
            found[name, k] = null_bias(every_count, sizes[k], widths[name], torch.cat(stand_for), seed)
    return {key: bias for of_rank in slices.gathered(lambda: found) for key, bias in of_rank.items()} if biased else {}

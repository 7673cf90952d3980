"""Entropies of gating states: H(Sigma), I(X;Sigma;Y) and the total correlation, from pairwise Hamming distances.

With `D_jk = ||sigma_j - sigma_k||^2` between the gates of `n` samples, the kernel bound of Kolchinsky & Tracey is

    H(Sigma) = -1/n sum_j log2[ 1/n sum_k exp(-D_jk / (2 s0^2)) ],    0 <= H <= log2 n bits.

It bounds from above the information about the image that survives Gaussian noise of variance s0^2 on the gates. So it
never exceeds the entropy of the observed patterns: the kernel of two equal patterns is 1, that of others positive. On
real networks all n patterns differ, and H is a soft count of clusters at a resolution of 2 to 8 % of the gates.

The distances of several layers add up. So one matrix per layer gives every layer's entropy, all suffixes (a layer and
those behind it), the joint entropy and the class-conditional ones. Distances are exact integers; kernels are summed in
float64.

Source: Ren et al. 2022, sections 3 and 4, appendices E and F of the first version, https://arxiv.org/abs/2205.01940.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from netprism.checks import check_tensor
from netprism.gates.cost import announce
from netprism.gates.counts import histograms
from netprism.gates.hamming import hamming
from netprism.gates.independence import gate_variance, marginal_entropy
from netprism.gates.packing import PackedGates
from netprism.gates.pair_sums import PairSums, pair_sums
from netprism.gates.slices import GateSlices
from netprism.gates.total_correlation import JOINT, total_correlations

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Gates = Tensor | PackedGates
Bandwidth = Literal["dim", "variance"]
CONV_ALPHA = 0.04
LINEAR_ALPHA = 0.01

_KERNEL_ROWS = 256  # 4 MB of float64 for 2000 samples: stays in the cache


@dataclass  # not frozen: torchmetrics copies what a metric computes field by field
class GateComplexity:
    """Entropies of a network's gates on one set of samples, in bits.

    The dictionaries have one entry per layer, in the order of the calls; `joint_*` is all layers together. Quantities
    that need labels which were not given, and a total correlation that was switched off, are empty or None.

    Attributes:
        entropy: H(Sigma_l), in [0, log2 n]: a soft count of clusters, not the entropy of the patterns.
        suffix_entropy: H(Sigma_l, ..., Sigma_L) with the joint's bandwidth, so that it falls with l.
        conditional: sum_m p_m H(Sigma_l | Y = m).
        class_information: I(X;Sigma_l;Y) = H(Sigma_l) - sum_m p_m H(Sigma_l | Y = m), >= 0.
        suffix_class_information: I(X;{Sigma_l, ..., Sigma_L};Y) with the joint's bandwidth (proposition 2).
        marginal_entropy: C_l of eq. (6), the entropy of independent gates with these activation rates. H + TC = C_l
            holds for the true entropies, and not for these estimates.
        total_correlation: TC(Sigma_l) of the smoothed law: about 0 for independent gates; an estimate, not a bound. A
            layer has none where the bandwidth is so small that a sample has no other one near it.
        conditional_total_correlation: sum_m p_m TC(Sigma_l | Y = m) (eq. 21); none where a class has one sample.
        saturation: H(Sigma_l) / log2 n, in [0, 1]; near 1 it only says that all samples differ.
        open_on: How many gates are open on 0, 1, ..., n of the samples, int64 `(n + 1,)` on the CPU.
    """

    entropy: dict[str, float]
    suffix_entropy: dict[str, float]
    conditional: dict[str, float]
    class_information: dict[str, float]
    suffix_class_information: dict[str, float]
    marginal_entropy: dict[str, float]
    total_correlation: dict[str, float]
    conditional_total_correlation: dict[str, float]
    saturation: dict[str, float]
    open_on: dict[str, Tensor]
    joint_entropy: float
    joint_conditional: float | None
    joint_class_information: float | None
    joint_marginal_entropy: float
    joint_total_correlation: float | None
    joint_conditional_total_correlation: float | None
    joint_saturation: float

    def quantities(self) -> dict[str, float]:
        """The numbers by the names under which they are logged: `entropy` is that of all layers, `entropy/<layer>`."""
        joint = {
            "entropy": self.joint_entropy,
            "saturation": self.joint_saturation,
            "class_information": self.joint_class_information,
            "marginal_entropy": self.joint_marginal_entropy,
            "total_correlation": self.joint_total_correlation,
            "conditional_total_correlation": self.joint_conditional_total_correlation,
        }
        of_layers = (
            "entropy", "saturation", "suffix_entropy", "class_information", "suffix_class_information",
            "marginal_entropy", "total_correlation", "conditional_total_correlation",
        )  # fmt: skip
        layers = {f"{what}/{layer}": value for what in of_layers for layer, value in getattr(self, what).items()}
        return {name: value for name, value in joint.items() if value is not None} | layers

    def plot(self) -> tuple[Figure, list[Axes]]:
        """Returns a figure with each quantity over the layers, and its panels."""
        from netprism.plots import plot_numbers

        return plot_numbers({"gates": self.quantities()})


def transformation_complexity(
    gates: Mapping[str, Gates],
    labels: Tensor | None = None,
    *,
    bandwidth: Bandwidth = "dim",
    alpha: float | Mapping[str, float] | None = None,
    total_correlation: bool = True,
    seed: int = 0,
) -> GateComplexity:
    """Returns all entropies of a network's gates, from one pairwise matrix per layer.

    The bandwidth of a layer with `d` gates is s0^2 = alpha * d ("dim": what the authors ran), or alpha * Var(Sigma_l)
    ("variance": what the text says; it pins the joint entropy at log2 n from the first epoch on). Those of several
    layers add.

    The total correlation is the entropy of independent gates with the same activation rates minus H, both smoothed by
    the kernel, and both leaving the sample itself out; see `netprism.gates.independence`.

    Cost: n^2 d / 2 multiply-adds, d the gates of all L layers. Memory beside the packed gates (n d / 8 bytes): 2 n^2
    (L + 1) bytes, but at most about 1 GB, and n * 33 kB for a run of gates; and 16 for each gate of the
    largest layer. From 10 000 samples on a line of the log says both before it begins.

    Of gates that `record_gates(max_gates=m)` has kept, each stands for d / m gates of its layer: distances, bandwidths
    and sums over gates are scaled to all d. ResNet-8 on 500 photographs of 64 x 64, 16 384 to 65 536 gates in a layer,
    H from 5.9 to 6.6 bits of at most 9.0: with three seeds H, I(X;Sigma;Y) and TC of layers differ from those of all
    gates by at most .005 bits for m = 16 384, .015 for 4096, .05 for 1024 and .12 for 256.

    Args:
        gates: Layer -> bool `(n, ...)` or `PackedGates`, of the same n samples, in the order of the calls.
        labels: Integer classes `(n,)`, for the class-conditional quantities.
        bandwidth: "dim" or "variance".
        alpha: Factor of the bandwidth, one for all layers or one per layer; None: `default_alpha` of each layer.
        total_correlation: Whether to estimate TC, and with labels TC given the class.
        seed: Seed of the independent gates from which the bias of TC is estimated where kernels are narrow.

    Raises:
        ValueError: There is no layer, layers differ in n, labels have another length, the bandwidth is unknown, or an
            alpha is missing or <= 0, or the distances need more memory than is free.
        TypeError: Gates are not bool.

    Example:
        >>> gates = {"relu": torch.tensor([[True, False], [True, True], [False, False], [True, False]])}
        >>> round(transformation_complexity(gates, alpha=0.1).entropy["relu"], 3)
        1.329
    """
    packed = {name: _packed(layer, name) for name, layer in gates.items()}
    _check_samples(packed)
    return complexity_of_slices(GateSlices.undivided(packed), labels, bandwidth, alpha, total_correlation, seed)


def complexity_of_slices(
    slices: GateSlices,
    labels: Tensor | None,
    bandwidth: Bandwidth,
    alpha: float | Mapping[str, float] | None,
    total_correlation: bool,
    seed: int,
) -> GateComplexity:
    """Returns what `transformation_complexity` does, of gates that ranks may have divided; then all have to call it."""
    n, layers = slices.samples, slices.layers
    check_bandwidth(bandwidth, alpha)
    alphas = _alphas(layers, alpha)
    if n == 0:
        raise ValueError(f"layer {next(iter(layers))!r} has no samples")
    classes = None if labels is None else _classes(labels, n).to(slices.device)
    members: list[Tensor | None] = [None]
    if classes is not None and total_correlation:
        members += [classes == number for number in range(int(classes.max()) + 1)]
    open_on = histograms(slices, members)
    widths = {
        name: alphas[name] * layer.stands_for * (layer.size if bandwidth == "dim" else gate_variance(of_sets[0]))
        for (name, layer), of_sets in zip(layers.items(), open_on.values(), strict=True)
    }
    marginals = {name: layer.stands_for * marginal_entropy(open_on[name][0]) for name, layer in layers.items()}
    marginals[JOINT] = math.fsum(marginals.values())
    gates = sum(layer.size for layer in layers.values())
    slices.on_all_ranks(lambda: announce(n, gates, len(layers), slices.device, len(slices.columns)))

    within, behind = pair_sums(slices, widths, classes)
    sums = {**within, JOINT: behind[next(iter(layers))]}
    correlations = total_correlations(slices, open_on, sums, widths, members, seed) if total_correlation else {}
    rows = {name: _row(each, classes, marginals[name], *correlations.get(name, ())) for name, each in sums.items()}
    joint, of_all = rows.pop(JOINT), {name: of_sets[0] for name, of_sets in open_on.items()}
    return _complexity(n, rows, {name: _row(each, classes) for name, each in behind.items()}, of_all, joint)


def check_bandwidth(bandwidth: Bandwidth, alpha: float | Mapping[str, float] | None) -> None:
    """Raises a ValueError where `transformation_complexity` would, before there are gates."""
    if bandwidth not in get_args(Bandwidth):
        raise ValueError(f"bandwidth is {bandwidth!r}; expected {' or '.join(get_args(Bandwidth))}")
    given = alpha.items() if isinstance(alpha, Mapping) else [] if alpha is None else [("every layer", alpha)]
    for name, value in given:
        if not value > 0:
            raise ValueError(f"alpha of {name!r} is {value}; expected a number > 0")


def default_alpha(gates: PackedGates) -> float:
    """Returns the authors' factor of the bandwidth: .04 behind a convolution, .01 behind a linear layer.

    `record_gates` knows which of the two precedes the gates. Where it is unknown, as for plain tensors, gates with
    spatial dimensions count as behind a convolution and flat ones as behind a linear layer.
    """
    flat = len(gates.shape) <= 1
    return LINEAR_ALPHA if gates.preceded_by == "linear" or (gates.preceded_by is None and flat) else CONV_ALPHA


def pairwise_hamming(gates: Gates) -> Tensor:
    """Returns the squared distances between the gates of all pairs of samples: how many gates differ, exactly.

    Cost: n^2 d / 2 integer multiply-adds; memory n^2 int32, and n * 16 kB beside the packed gates.

    Args:
        gates: Gates, bool `(n, d)` or `(n, ...)`, or packed.

    Returns:
        int32 `(n, n)`.
    """
    return hamming(_packed(gates))


def kde_entropy(distances: Tensor, bandwidth: float, labels: Tensor | None = None) -> Tensor:
    """Returns the kernel estimate H in bits: at most so much information survives noise of variance s0^2 on the gates.

    It is at most the entropy of the observed patterns, since the kernel of equal ones is 1: 256 equally likely patterns
    of 100 gates (8 bits) have H = 3.1 bits at s0^2 = .04 * 100, and 7.8 at .01 * 100.

    Cost: n^2 exponentials; memory n * 2 kB beside the distances.

    Args:
        distances: Squared distances `(n, n)`.
        bandwidth: Variance s0^2 of the kernel, >= 0; at 0, samples are either equal or infinitely far apart.
        labels: Integer classes `(n,)`; with them, the conditional entropy sum_m p_m H(Sigma | Y = m) is returned.

    Returns:
        float64 scalar in [0, log2 n]; 0 where all gates are equal.

    Raises:
        ValueError: Distances are not square, negative, not finite or not 0 on the diagonal, the bandwidth is negative,
            or labels have another length.

    Source: A. Kolchinsky, B. D. Tracey, "Estimating Mixture Entropy with Pairwise Distances", Entropy 2017, eq. (10),
    https://arxiv.org/abs/1706.02419.
    """
    n = len(distances)
    if distances.dim() != 2 or distances.shape[1] != n or n == 0:
        raise ValueError(f"distances have shape {tuple(distances.shape)}; expected (n, n), n >= 1")
    if distances.is_floating_point():
        check_tensor("distances", distances)
    if (distances < 0).any():
        raise ValueError(f"a distance is {distances.min().item():g}; expected numbers >= 0")
    if distances.diagonal().any():
        raise ValueError(f"a sample has the distance {distances.diagonal().max().item():g} from itself; expected 0")
    if labels is None:
        return _entropy(_kernel_sums(distances, bandwidth))
    classes = _classes(labels, n).to(distances.device)
    return _conditional_entropy(_kernel_sums(distances, bandwidth, classes), classes)


def _entropy(log2_sums: Tensor) -> Tensor:
    """H from `log2 sum_k exp(-D_jk / (2 s0^2))`."""
    return (math.log2(len(log2_sums)) - log2_sums).mean().clamp_min(0.0)


def _conditional_entropy(log2_sums: Tensor, classes: Tensor) -> Tensor:
    """sum_m p_m H(Sigma | Y = m): class m averages over its n_m samples, and p_m = n_m / n, so one mean over all."""
    class_sizes = classes.bincount()[classes].double()
    return (class_sizes.log2() - log2_sums).mean().clamp_min(0.0)


def _kernel_sums(distances: Tensor, bandwidth: float, classes: Tensor | None = None) -> Tensor:
    """`log2 sum_k exp(-D_jk / (2 s0^2))` over all k, or over those of j's class, float64 `(n,)`."""
    if not bandwidth >= 0:
        raise ValueError(f"bandwidth is {bandwidth}; expected a variance >= 0")
    scale = 0.5 / bandwidth if bandwidth > 1e-300 else math.inf
    parts = []
    for start in range(0, len(distances), _KERNEL_ROWS):
        rows = distances[start : start + _KERNEL_ROWS]
        kernel = rows.double().mul_(-scale).exp_() if scale < math.inf else (rows == 0).double()
        if classes is not None:
            kernel.mul_(classes[start : start + _KERNEL_ROWS, None] == classes)
        parts.append(kernel.sum(1).log2())
    return torch.cat(parts)


@dataclass(frozen=True)
class _Row:
    """One set of layers in `GateComplexity`."""

    entropy: float
    conditional: float | None
    marginal_entropy: float
    total_correlation: float | None
    conditional_total_correlation: float | None

    @property
    def class_information(self) -> float | None:
        return None if self.conditional is None else self.entropy - self.conditional


def _row(
    sums: PairSums,
    classes: Tensor | None,
    marginal: float = 0.0,
    total_correlation: float | None = None,
    conditional_total_correlation: float | None = None,
) -> _Row:
    """Entropies of gates with these sums."""
    return _Row(
        entropy=float(_entropy(sums.over_all)),
        conditional=None if classes is None else float(_conditional_entropy(sums.over_class, classes)),
        marginal_entropy=marginal,
        total_correlation=total_correlation,
        conditional_total_correlation=conditional_total_correlation,
    )


def _complexity(
    n: int, rows: dict[str, _Row], suffix: dict[str, _Row], open_on: dict[str, Tensor], joint: _Row
) -> GateComplexity:
    most = math.log2(n) or math.inf  # one sample has no entropy to be saturated with
    return GateComplexity(
        entropy={name: row.entropy for name, row in rows.items()},
        suffix_entropy={name: suffix[name].entropy for name in rows},
        conditional=_known({name: row.conditional for name, row in rows.items()}),
        class_information=_known({name: row.class_information for name, row in rows.items()}),
        suffix_class_information=_known({name: suffix[name].class_information for name in rows}),
        marginal_entropy={name: row.marginal_entropy for name, row in rows.items()},
        total_correlation=_known({name: row.total_correlation for name, row in rows.items()}),
        conditional_total_correlation=_known({name: row.conditional_total_correlation for name, row in rows.items()}),
        saturation={name: row.entropy / most for name, row in rows.items()},
        open_on=open_on,
        joint_entropy=joint.entropy,
        joint_conditional=joint.conditional,
        joint_class_information=joint.class_information,
        joint_marginal_entropy=joint.marginal_entropy,
        joint_total_correlation=joint.total_correlation,
        joint_conditional_total_correlation=joint.conditional_total_correlation,
        joint_saturation=joint.entropy / most,
    )


def _known(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


def _packed(gates: Gates, name: str | None = None) -> PackedGates:
    if isinstance(gates, PackedGates):
        return gates
    try:
        return PackedGates.pack(gates)
    except (TypeError, ValueError) as error:
        raise type(error)(f"layer {name!r}: {error}" if name else str(error)) from None


def _check_samples(packed: Mapping[str, PackedGates]) -> None:
    """Raises a ValueError unless there are layers, all of as many samples."""
    if not packed:
        raise ValueError("gates are empty; expected at least one layer")
    first, n = next((name, len(layer)) for name, layer in packed.items())
    for name, layer in packed.items():
        if len(layer) != n:
            raise ValueError(f"layer {name!r} has {len(layer)} samples; expected {n}, as layer {first!r} has")


def _alphas(packed: Mapping[str, PackedGates], alpha: float | Mapping[str, float] | None) -> dict[str, float]:
    """The factor of each layer's bandwidth."""
    if alpha is None:
        return {name: default_alpha(layer) for name, layer in packed.items()}
    alphas = {}
    for name in packed:
        if isinstance(alpha, Mapping) and name not in alpha:
            raise ValueError(f"alpha has no layer {name!r}; it has {', '.join(alpha) or 'none'}")
        alphas[name] = alpha[name] if isinstance(alpha, Mapping) else alpha
    return alphas


def _classes(labels: Tensor, n: int) -> Tensor:
    """Labels as classes 0, 1, ... of n samples."""
    labels = torch.as_tensor(labels)
    if labels.shape != (n,):
        raise ValueError(f"labels have shape {tuple(labels.shape)}; expected ({n},), one per sample")
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels are {labels.dtype}; expected integer classes")
    classes: Tensor = labels.unique(return_inverse=True)[1]
    return classes

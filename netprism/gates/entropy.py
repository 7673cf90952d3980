"""Entropies of gating states: H(Sigma), I(X;Sigma;Y) and the total correlation, from pairwise Hamming distances.

With `D_jk = ||sigma_j - sigma_k||^2` between the gates of `n` samples, the kernel bound of Kolchinsky & Tracey is

    H(Sigma) = -1/n sum_j log2[ 1/n sum_k exp(-D_jk / (2 s0^2)) ],    0 <= H <= log2 n bits.

The distances of several layers add up. So one matrix per layer gives every layer's entropy, all suffixes (a layer and
those behind it), the joint entropy and the class-conditional ones. Distances are exact integers; kernels are summed in
float64.

Source: Ren et al. 2022, sections 3 and 4, appendices E and F of the first version, https://arxiv.org/abs/2205.01940.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from netprism.gates.hamming import activation_rates, hamming, hamming_to_independent
from netprism.gates.packing import PackedGates

Gates = Tensor | PackedGates
Bandwidth = Literal["dim", "variance"]
CONV_ALPHA = 0.04
LINEAR_ALPHA = 0.01

# Synthetic samples for TC, at most. ResNet-8 on 1437 digits, TC of .1 to .7 bits, standard deviations: another draw of
# 512 moves it by .0004 to .003 bits, one of 1437 by .0003 to .0016, and another choice of 700 images by .001 to .006.
_SYNTHETIC = 512
_KERNEL_ROWS = 256  # 4 MB of float64 for 2000 samples: stays in the cache


@dataclass  # not frozen: torchmetrics copies what a metric computes field by field
class GateComplexity:
    """Entropies of a network's gates on one set of samples, in bits.

    The dictionaries have one entry per layer, in the order of the calls; `joint_*` is all layers together. Quantities
    that need labels which were not given, and a total correlation that was switched off, are empty or None.

    Attributes:
        entropy: H(Sigma_l), in [0, log2 n].
        suffix_entropy: H(Sigma_l, ..., Sigma_L) with the joint's bandwidth, so that it falls with l.
        conditional: sum_m p_m H(Sigma_l | Y = m).
        class_information: I(X;Sigma_l;Y) = H(Sigma_l) - sum_m p_m H(Sigma_l | Y = m), >= 0.
        total_correlation: TC(Sigma_l), an estimate and not a bound.
        saturation: H(Sigma_l) / log2 n, in [0, 1]; near 1 it only says that all samples differ.
        activation_rates: Fraction of the samples on which each gate is open, float32 `(d_l,)`.
    """

    entropy: dict[str, float]
    suffix_entropy: dict[str, float]
    conditional: dict[str, float]
    class_information: dict[str, float]
    total_correlation: dict[str, float]
    saturation: dict[str, float]
    activation_rates: dict[str, Tensor]
    joint_entropy: float
    joint_conditional: float | None
    joint_class_information: float | None
    joint_total_correlation: float | None
    joint_saturation: float

    def quantities(self) -> dict[str, float]:
        """The numbers by the names under which they are logged: `entropy` is that of all layers, `entropy/<layer>`."""
        joint = {
            "entropy": self.joint_entropy,
            "saturation": self.joint_saturation,
            "class_information": self.joint_class_information,
            "total_correlation": self.joint_total_correlation,
        }
        of_layers = ("entropy", "saturation", "suffix_entropy", "class_information", "total_correlation")
        layers = {f"{what}/{layer}": value for what in of_layers for layer, value in getattr(self, what).items()}
        return {name: value for name, value in joint.items() if value is not None} | layers


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

    Cost: n^2 d / 2 integer multiply-adds, d the gates of all layers; another n m d and m d random numbers for the total
    correlation with m = min(n, 512) synthetic samples. Memory beside the packed gates (n d / 8 bytes): a few n^2
    matrices, and n * 33 kB for a run of gates.

    Args:
        gates: Layer -> bool `(n, ...)` or `PackedGates`, of the same n samples, in the order of the calls.
        labels: Integer classes `(n,)`, for the class-conditional quantities.
        bandwidth: "dim" or "variance".
        alpha: Factor of the bandwidth, one for all layers or one per layer; None: `default_alpha` of each layer.
        total_correlation: Whether to estimate TC, a third of the work.
        seed: Seed of the independent gates that TC compares with.

    Raises:
        ValueError: There is no layer, layers differ in n, labels have another length, the bandwidth is unknown, or an
            alpha is missing or <= 0.
        TypeError: Gates are not bool.

    Example:
        >>> gates = {"relu": torch.tensor([[True, False], [True, True], [False, False], [True, False]])}
        >>> round(transformation_complexity(gates, alpha=0.1).entropy["relu"], 3)
        1.329
    """
    packed = {name: _packed(layer, name) for name, layer in gates.items()}
    n = _sample_count(packed)
    check_bandwidth(bandwidth, alpha)
    alphas = _alphas(packed, alpha)
    rates = {name: activation_rates(layer) for name, layer in packed.items()}
    widths = {
        name: alphas[name] * (layer.size if bandwidth == "dim" else _variance(rates[name]))
        for name, layer in packed.items()
    }
    joint_width = sum(widths.values())
    device = next(iter(packed.values())).bits.device
    classes = None if labels is None else _classes(labels, n).to(device)
    draws = torch.Generator(device).manual_seed(seed)

    rows: dict[str, _Row] = {}
    suffix: dict[str, float] = {}
    behind = torch.zeros(n, n, dtype=torch.int32, device=device)  # summed over the current layer and those behind it
    behind_to_independent = behind.new_zeros(n, min(n, _SYNTHETIC)) if total_correlation else None
    for name in reversed(packed):
        within = hamming(packed[name])
        to_independent = None
        if behind_to_independent is not None:
            to_independent = hamming_to_independent(packed[name], rates[name], draws, behind_to_independent.shape[1])
            behind_to_independent += to_independent
        behind += within
        rows[name] = _row(within, to_independent, widths[name], classes)
        suffix[name] = float(kde_entropy(behind, joint_width))
    joint = _row(behind, behind_to_independent, joint_width, classes)
    return _complexity(n, {name: rows[name] for name in packed}, suffix, rates, joint)


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
    """Returns the kernel estimate H of the entropy of gates, in bits.

    Cost: n^2 exponentials; memory n * 2 kB beside the distances.

    Args:
        distances: Squared distances `(n, n)`.
        bandwidth: Variance s0^2 of the kernel, >= 0; at 0, samples are either equal or infinitely far apart.
        labels: Integer classes `(n,)`; with them, the conditional entropy sum_m p_m H(Sigma | Y = m) is returned.

    Returns:
        float64 scalar in [0, log2 n]; 0 where all gates are equal.

    Raises:
        ValueError: Distances are not square or hold NaN, the bandwidth is negative, or labels have another length.

    Source: A. Kolchinsky, B. D. Tracey, "Estimating Mixture Entropy with Pairwise Distances", Entropy 2017, eq. (10),
    https://arxiv.org/abs/1706.02419.
    """
    n = len(distances)
    if distances.dim() != 2 or distances.shape[1] != n or n == 0:
        raise ValueError(f"distances have shape {tuple(distances.shape)}; expected (n, n), n >= 1")
    if distances.is_floating_point() and distances.isnan().any():
        raise ValueError("distances hold NaN; expected numbers >= 0")
    if labels is None:
        return _entropy(_log2_kernel_sums(distances, bandwidth)[0])
    classes = _classes(labels, n).to(distances.device)
    return _conditional_entropy(_log2_kernel_sums(distances, bandwidth, classes)[1], classes)


def _entropy(log2_sums: Tensor) -> Tensor:
    """H from `log2 sum_k exp(-D_jk / (2 s0^2))`."""
    return (math.log2(len(log2_sums)) - log2_sums).mean().clamp_min(0.0)


def _conditional_entropy(log2_sums: Tensor, classes: Tensor) -> Tensor:
    """sum_m p_m H(Sigma | Y = m): class m averages over its n_m samples, and p_m = n_m / n, so one mean over all."""
    class_sizes = classes.bincount()[classes].double()
    return (class_sizes.log2() - log2_sums).mean().clamp_min(0.0)


def _log2_kernel_sums(distances: Tensor, bandwidth: float, classes: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`log2 sum_k exp(-D_jk / (2 s0^2))` over all k, and over j's class (empty without classes): float64 `(n,)`."""
    if not bandwidth >= 0:
        raise ValueError(f"bandwidth is {bandwidth}; expected a variance >= 0")
    scale = 0.5 / bandwidth if bandwidth > 1e-300 else math.inf
    over_all, over_class = [], []
    for start in range(0, len(distances), _KERNEL_ROWS):
        rows = distances[start : start + _KERNEL_ROWS]
        nearest = rows.amin(1, keepdim=True)  # 0 but for TC, where all of a row's kernels may underflow
        excess = (rows - nearest).double()
        kernel = excess.mul_(-scale).exp_() if scale < math.inf else (excess == 0).double()
        shift = torch.where(nearest[:, 0] == 0, 0.0, nearest[:, 0].double() * (scale / math.log(2)))
        over_all.append(kernel.sum(1).log2() - shift)
        if classes is not None:
            over_class.append(kernel.mul_(classes[start : start + _KERNEL_ROWS, None] == classes).sum(1).log2() - shift)
    return torch.cat(over_all), torch.cat(over_class) if over_class else torch.empty(0)


@dataclass(frozen=True)
class _Row:
    """One set of layers in `GateComplexity`."""

    entropy: float
    conditional: float | None
    total_correlation: float | None

    @property
    def class_information(self) -> float | None:
        return None if self.conditional is None else self.entropy - self.conditional


def _row(within: Tensor, to_independent: Tensor | None, bandwidth: float, classes: Tensor | None) -> _Row:
    over_all, over_class = _log2_kernel_sums(within, bandwidth, classes)
    correlation = None
    if to_independent is not None:
        synthetic = math.log2(to_independent.shape[1] / len(within))  # the two sums have different numbers of terms
        correlation = float((over_all - _log2_kernel_sums(to_independent, bandwidth)[0] + synthetic).mean())
    return _Row(
        entropy=float(_entropy(over_all)),
        conditional=None if classes is None else float(_conditional_entropy(over_class, classes)),
        total_correlation=correlation,
    )


def _complexity(
    n: int, rows: dict[str, _Row], suffix: dict[str, float], rates: dict[str, Tensor], joint: _Row
) -> GateComplexity:
    most = math.log2(n) or math.inf  # one sample has no entropy to be saturated with
    return GateComplexity(
        entropy={name: row.entropy for name, row in rows.items()},
        suffix_entropy={name: suffix[name] for name in rows},
        conditional={name: row.conditional for name, row in rows.items() if row.conditional is not None},
        class_information={
            name: row.class_information for name, row in rows.items() if row.class_information is not None
        },
        total_correlation={
            name: row.total_correlation for name, row in rows.items() if row.total_correlation is not None
        },
        saturation={name: row.entropy / most for name, row in rows.items()},
        activation_rates=rates,
        joint_entropy=joint.entropy,
        joint_conditional=joint.conditional,
        joint_class_information=joint.class_information,
        joint_total_correlation=joint.total_correlation,
        joint_saturation=joint.entropy / most,
    )


def _packed(gates: Gates, name: str | None = None) -> PackedGates:
    if isinstance(gates, PackedGates):
        return gates
    try:
        return PackedGates.pack(gates)
    except (TypeError, ValueError) as error:
        raise type(error)(f"layer {name!r}: {error}" if name else str(error)) from None


def _sample_count(packed: Mapping[str, PackedGates]) -> int:
    """The number of samples that all layers share."""
    if not packed:
        raise ValueError("gates are empty; expected at least one layer")
    first, n = next((name, len(layer)) for name, layer in packed.items())
    for name, layer in packed.items():
        if len(layer) != n:
            raise ValueError(f"layer {name!r} has {len(layer)} samples; expected {n}, as layer {first!r} has")
    if n == 0:
        raise ValueError(f"layer {first!r} has no samples")
    return n


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


def _variance(rates: Tensor) -> float:
    """Var(Sigma) of gates with these rates: the sum over gates of p (1 - p)."""
    p = rates.double()
    return float((p * (1 - p)).sum())


def _classes(labels: Tensor, n: int) -> Tensor:
    """Labels as classes 0, 1, ... of n samples."""
    labels = torch.as_tensor(labels)
    if labels.shape != (n,):
        raise ValueError(f"labels have shape {tuple(labels.shape)}; expected ({n},), one per sample")
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels are {labels.dtype}; expected integer classes")
    classes: Tensor = labels.unique(return_inverse=True)[1]
    return classes

"""Entropies of gating states: H(Sigma), I(X;Sigma;Y) and the total correlation, from pairwise Hamming distances.

With `D_jk = ||sigma_j - sigma_k||^2` between the gates of `n` samples, the kernel bound of Kolchinsky & Tracey is

    H(Sigma) = -1/n sum_j log2[ 1/n sum_k exp(-D_jk / (2 s0^2)) ],    0 <= H <= log2 n bits.

The distances of several layers add up. So one matrix a layer gives every layer's entropy, all suffixes (a layer and
those behind it), the joint entropy and the class-conditional ones. Distances are exact integers; kernels are summed in
float64.

Source: "Understanding, Analyzing, and Optimizing the Complexity of Deep Models", sections 3 and 4, appendices E and F.
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
class Complexity:
    """Entropies of a network's gates on one set of samples, in bits.

    The dictionaries have one entry a layer, in the order of the calls; `joint_*` is all layers together. What needs
    labels, or the total correlation where it was not asked for, is empty or None.

    Attributes:
        entropy: H(Sigma_l), in [0, log2 n].
        suffix_entropy: H(Sigma_l, ..., Sigma_L) with the joint's bandwidth, so that it falls with l.
        conditional: sum_m p_m H(Sigma_l | Y = m).
        class_information: I(X;Sigma_l;Y) = H(Sigma_l) - sum_m p_m H(Sigma_l | Y = m), >= 0.
        total_correlation: TC(Sigma_l): an estimate, not a bound.
        saturation: H(Sigma_l) / log2 n, in [0, 1]; near 1 it says no more than that all samples differ.
        activation_rates: the share of the samples on which each gate is open, float32 `(d_l,)`.
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


def transformation_complexity(
    gates: Mapping[str, Gates],
    labels: Tensor | None = None,
    *,
    bandwidth: Bandwidth = "dim",
    alpha: float | Mapping[str, float] | None = None,
    total_correlation: bool = True,
    seed: int = 0,
) -> Complexity:
    """All entropies of a network's gates, from one pairwise matrix a layer.

    The bandwidth of a layer with `d` gates is s0^2 = alpha * d ("dim": what the authors ran), or alpha * Var(Sigma_l)
    ("variance": what the text says; it pins the joint entropy at log2 n from the first epoch on). Those of several
    layers add.

    Cost: n^2 d / 2 integer multiply-adds, d the gates of all layers; another n m d and m d random numbers for the total
    correlation with m = min(n, 512) synthetic samples. Memory beside the packed gates (n d / 8 bytes): a few n^2
    matrices, and n * 33 kB for a run of gates.

    Args:
        gates: layer -> bool `(n, ...)` or `PackedGates`, of the same n samples, in the order of the calls.
        labels: integer classes `(n,)`, for the class-conditional quantities.
        bandwidth: "dim" or "variance".
        alpha: one for all layers, or one for each; None: 0.04 for gates with spatial dimensions, 0.01 for flat ones.
        total_correlation: whether to estimate TC, a third of the work.
        seed: of the independent gates that TC compares with.

    Raises:
        ValueError: no layer, layers with different n, labels of another length, an unknown bandwidth, alpha missing or
            <= 0.
        TypeError: gates that are not bool.

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
        raise ValueError(f"unknown bandwidth {bandwidth!r}; allowed: {', '.join(get_args(Bandwidth))}")
    given = alpha.items() if isinstance(alpha, Mapping) else [] if alpha is None else [("every layer", alpha)]
    for name, value in given:
        if not value > 0:
            raise ValueError(f"alpha of {name!r} is {value}; expected a number > 0")


def pairwise_hamming(gates: Gates) -> Tensor:
    """Squared distances between the gates of all pairs of samples: how many differ, exactly.

    Cost: n^2 d / 2 integer multiply-adds; memory n^2 int32, and n * 16 kB beside the packed gates.

    Args:
        gates: bool `(n, d)` or `(n, ...)`, or packed.

    Returns:
        int32 `(n, n)`.
    """
    return hamming(_packed(gates))


def kde_entropy(distances: Tensor, bandwidth: float, labels: Tensor | None = None) -> Tensor:
    """Kernel upper bound of the entropy of gates, in bits.

    Cost: n^2 exponentials; memory n * 2 kB beside the distances.

    Args:
        distances: squared distances `(n, n)`.
        bandwidth: the variance s0^2 of the kernel, >= 0; at 0, samples are either equal or infinitely far apart.
        labels: integer classes `(n,)`; with them the conditional entropy sum_m p_m H(Sigma | Y = m).

    Returns:
        float64 scalar in [0, log2 n]; 0 where all gates are equal.

    Raises:
        ValueError: distances that are not square or hold NaN, a negative bandwidth, labels of another length.

    Source: Kolchinsky & Tracey, "Estimating Mixture Entropy with Pairwise Distances", eq. 10.
    """
    n = len(distances)
    if distances.dim() != 2 or distances.shape[1] != n or n == 0:
        raise ValueError(f"distances have shape {tuple(distances.shape)}; expected (n, n), n >= 1")
    if distances.is_floating_point() and distances.isnan().any():
        raise ValueError("NaN among the distances")
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
    """`log2 sum_k exp(-D_jk / (2 s0^2))` over all k, and over the k of j's class (else empty): float64 `(n,)` each."""
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
    """One set of layers in `Complexity`."""

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
        synthetic = math.log2(to_independent.shape[1] / len(within))  # means over as many, sums would not compare
        correlation = float((over_all - _log2_kernel_sums(to_independent, bandwidth)[0] + synthetic).mean())
    return _Row(
        entropy=float(_entropy(over_all)),
        conditional=None if classes is None else float(_conditional_entropy(over_class, classes)),
        total_correlation=correlation,
    )


def _complexity(
    n: int, rows: dict[str, _Row], suffix: dict[str, float], rates: dict[str, Tensor], joint: _Row
) -> Complexity:
    most = math.log2(n) or math.inf  # one sample has no entropy to be saturated with
    return Complexity(
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
        raise ValueError("no layer of gates was given")
    first, n = next((name, len(layer)) for name, layer in packed.items())
    for name, layer in packed.items():
        if len(layer) != n:
            raise ValueError(f"layer {name!r} has {len(layer)} samples, layer {first!r} has {n}")
    if n == 0:
        raise ValueError(f"layer {first!r} has no samples")
    return n


def _alphas(packed: Mapping[str, PackedGates], alpha: float | Mapping[str, float] | None) -> dict[str, float]:
    """The factor of each layer's bandwidth."""
    if alpha is None:
        return {name: CONV_ALPHA if len(layer.shape) > 1 else LINEAR_ALPHA for name, layer in packed.items()}
    alphas = {}
    for name in packed:
        if isinstance(alpha, Mapping) and name not in alpha:
            raise ValueError(f"no alpha for layer {name!r}; there are alphas for {', '.join(alpha) or 'none'}")
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
        raise ValueError(f"labels have shape {tuple(labels.shape)}; expected ({n},), one a sample")
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels are {labels.dtype}; expected integer classes")
    classes: Tensor = labels.unique(return_inverse=True)[1]
    return classes

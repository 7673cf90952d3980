"""What gates with the same activation rates would be if they were independent: the other side of the total correlation.

TC is `sum_i H(sigma_i) - H(Sigma)`, here with both sides smoothed by the kernel of variance s0^2 and the sample itself
left out. Ren et al. estimate the first side from synthetic samples t_k of independent gates. Its mean over the t_k
factorises over the gates, so that it is known without drawing any: with `e = exp(-1 / (2 s0^2))`,

    -1/n sum_j log2 E_t exp(-||s_j - t||^2 / (2 s0^2)) = -1/n sum_j sum_i log2[ p_i + (1 - p_i) e  or  1 - p_i + p_i e ]

for an open or a closed gate s_ji, with `p_i` the activation rate among the other samples. A logarithm of a mean over
n - 1 samples lies below that of the expectation; `null_bias` is by how much, for independent gates.

Source: Ren et al. 2022, eq. (6), (27) and (28) of the first version, https://arxiv.org/abs/2205.01940.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from netprism.gates.hamming import bernoulli, distances_to

_NEGLIGIBLE = 1e-3  # bits
_ROWS = 256  # samples over which the bias is averaged


def marginal_entropy(histogram: Tensor) -> float:
    """Returns C = sum_i H_b(p_i), the entropy of independent gates with these activation rates p_i, in bits.

    Args:
        histogram: How many gates are open on 0, 1, ..., n of n samples, `(n + 1,)`. As below.
    """
    p = _rates(histogram)
    return _sum_over_gates(histogram, torch.special.entr(p) + torch.special.entr(1 - p)) / math.log(2)


def gate_variance(histogram: Tensor) -> float:
    """Returns Var(Sigma) = sum_i p_i (1 - p_i), the variance of all gates."""
    p = _rates(histogram)
    return _sum_over_gates(histogram, p * (1 - p))


def smoothed_cross_entropy(histogram: Tensor, bandwidth: float) -> float:
    """Returns the first side of the total correlation, see above, in bits, of at least 2 samples. Time O(n).

    Args:
        histogram: How many gates are open on 0, 1, ..., n of n samples, `(n + 1,)`.
        bandwidth: Variance s0^2 of the kernel.
    """
    n = len(histogram) - 1
    differ = math.exp(-0.5 / bandwidth) if bandwidth > 1e-300 else 0.0
    least = 5e-324  # a gate that is open once has no kernel left at bandwidths below 1 / 1400
    counts = torch.arange(n + 1, dtype=torch.float64)
    among_others_if_open, among_others = (counts - 1) / (n - 1), counts / (n - 1)
    where_open = among_others_if_open + (1 - among_others_if_open) * differ
    where_closed = 1 - among_others + among_others * differ
    of_open = torch.special.xlogy(counts, where_open.clamp_min(least))
    of_closed = torch.special.xlogy(n - counts, where_closed.clamp_min(least))
    return -_sum_over_gates(histogram, of_open + of_closed) / n / math.log(2)


def has_bias(variance: float, n: int, bandwidth: float) -> bool:
    """Returns whether H of n independent gates is off by so much that `null_bias` has to say how much.

    It is not unless kernels vary much: distances of independent gates have variance v = sum_i p_i (1 - p_i), and the
    relative variance of the kernels is about exp(v / (2 s0^2)^2) - 1. Behind convolutions at the default bandwidth it
    never is.

    Args:
        variance: Variance v of the distances.
        n: Number of samples, at least 2.
        bandwidth: Variance s0^2 of the kernel.
    """
    exponent = variance / max(4 * bandwidth**2, 1e-300)
    return math.expm1(min(exponent, 50.0)) / (2 * (n - 1) * math.log(2)) >= _NEGLIGIBLE


def null_bias(counts: Tensor, n: int, bandwidth: float, stands_for: Tensor, seed: int = 0) -> float:
    """Returns by how much H of n independent gates, each sample left out, exceeds its limit for many samples, in bits.

    Cost: (n + 256) d random numbers and 256 n d multiply-adds.

    Args:
        counts: How many of the samples have each gate open, `(d,)`.
        n: Number of samples, at least 2.
        bandwidth: Variance s0^2 of the kernel.
        stands_for: How many gates there are of each activation rate, `(d,)`.
        seed: Seed of the random numbers.
    """
    p = _of_all_gates(counts.double() / n, stands_for)
    draws = torch.Generator(counts.device).manual_seed(seed)
    rows = min(n, _ROWS)
    own, others = (bernoulli(p.float(), m, draws) for m in (rows, n - 1))
    logs = (-distances_to(own, others).double() / (2 * bandwidth)).logsumexp(1) - math.log(n - 1)
    differ = math.exp(-0.5 / bandwidth)
    limit = torch.where(own.bool(), p + (1 - p) * differ, 1 - p + p * differ).log().sum(1)
    return float((limit - logs).mean()) / math.log(2)


def _rates(histogram: Tensor) -> Tensor:
    n = len(histogram) - 1
    return torch.arange(n + 1, dtype=torch.float64) / n


def _sum_over_gates(histogram: Tensor, values: Tensor) -> float:
    """Sum over gates of a function of the number of samples on which a gate is open, `(n + 1,)`."""
    return math.fsum((histogram * values).tolist())


def _of_all_gates(rates: Tensor, stands_for: Tensor) -> Tensor:
    """The rates, each as often as there are gates of it."""
    until = (torch.ones_like(rates) * stands_for).cumsum(0)
    if torch.equal(until[-1:], until.new_tensor([len(rates)])):
        return rates
    return rates[torch.searchsorted(until, torch.arange(round(float(until[-1])), device=rates.device) + 0.5)]

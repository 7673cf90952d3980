"""The gating entropies typed anew: one loop a sum, in float64, straight from the formulas."""

import math

import numpy as np


def distance(a, b):
    return float(((a.astype(float) - b.astype(float)) ** 2).sum())


def kde_entropy(gates, s2):
    """H = -1/n sum_j log2[1/n sum_k exp(-||s_j - s_k||^2 / 2 s0^2)], bits."""
    n = len(gates)
    total = 0.0
    for j in range(n):
        total += math.log2(sum(math.exp(-distance(gates[j], gates[k]) / (2 * s2)) for k in range(n)) / n)
    return -total / n


def conditional_entropy(gates, labels, s2):
    """sum_m p_m H(Sigma | Y = m), p_m = n_m / n."""
    return sum((labels == m).mean() * kde_entropy(gates[labels == m], s2) for m in np.unique(labels))


def leave_one_out_entropy(gates, s2):
    """-1/n sum_j log2[1/(n - 1) sum_{k != j} exp(-||s_j - s_k||^2 / 2 s0^2)], bits."""
    n = len(gates)
    total = 0.0
    for j in range(n):
        others = sum(math.exp(-distance(gates[j], gates[k]) / (2 * s2)) for k in range(n) if k != j)
        total += math.log2(others / (n - 1))
    return -total / n


def independent_entropy(gates, s2):
    """-1/n sum_j log2 E_t exp(-||s_j - t||^2 / 2 s0^2), t independent with the rates of the samples other than j."""
    n, d = gates.shape
    total = 0.0
    for j in range(n):
        expected = 1.0
        for i in range(d):
            rate = sum(int(gates[k, i]) for k in range(n) if k != j) / (n - 1)
            expected *= sum(
                p * math.exp(-((float(gates[j, i]) - t) ** 2) / (2 * s2)) for t, p in ((1, rate), (0, 1 - rate))
            )
        total += math.log2(expected)
    return -total / n


def sampled_total_correlation(gates, s2, generator):
    """1/n sum_j log2[mean_{k != j} exp(-D(s_j, s_k) / 2 s0^2) / mean_k exp(-D(s_j, t_k) / 2 s0^2)], n - 1 draws."""
    n, d = gates.shape
    draws = generator.random((n - 1, d)) < gates.mean(0)
    total = 0.0
    for j in range(n):
        total += math.log2(np.mean([math.exp(-distance(gates[j], t) / (2 * s2)) for t in draws]))
    return -leave_one_out_entropy(gates, s2) - total / n

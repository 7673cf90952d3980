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


def total_correlation(gates, independent, s2):
    """1/n sum_j log2[sum_k exp(-||s_j - s_k||^2 / 2 s0^2) / sum_k exp(-||s_j - t_k||^2 / 2 s0^2)], bits."""
    n = len(gates)
    total = 0.0
    for j in range(n):
        own = sum(math.exp(-distance(gates[j], gates[k]) / (2 * s2)) for k in range(n))
        other = sum(math.exp(-distance(gates[j], independent[k]) / (2 * s2)) for k in range(n))
        total += math.log2(own / other)
    return total / n

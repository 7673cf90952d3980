"""Formulas of the energy models and their sampler, typed anew: slow, obvious, float64."""

import itertools
import math

import torch


def binary_states(units):
    """All of them, float64 `(2^units, units)`."""
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=units)), dtype=torch.float64)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def log_prior(gates, rates):
    """log q of one sample's flat gates."""
    total = 0.0
    for gate, rate in zip(gates, rates, strict=True):
        p = min(max(rate, 0.001), 0.999)
        total += math.log(1 - p + gate * (2 * p - 1))
    return total


def transition_matrix(states, log_law, slopes, flip):
    """Exact probabilities of one Metropolis-adjusted step: row from, column to; enumerates every pair of states."""
    count, units = states.shape
    propose = torch.ones(count, count, dtype=torch.float64)
    for a, b, i in itertools.product(range(count), range(count), range(units)):
        rate = flip * sigmoid((1 - 2 * states[a, i]) * slopes[a, i])
        propose[a, b] *= rate if states[a, i] != states[b, i] else 1 - rate
    matrix = torch.zeros_like(propose)
    for a, b in itertools.product(range(count), range(count)):
        if a != b:
            ratio = math.exp(log_law[b] - log_law[a]) * propose[b, a] / propose[a, b]
            matrix[a, b] = propose[a, b] * min(1.0, ratio)
    return matrix + torch.diag(1 - matrix.sum(1))


def acceptance_of_halved_slopes(odds, step, samples, generator):
    """Of the proposal sigmoid(-(2s - 1) g / 2 - 1 / (2 step)) on independent units, from samples of their law."""
    states = torch.rand(samples, len(odds), generator=generator, dtype=torch.float64) < odds.sigmoid()
    logit = torch.where(states, -odds, odds) / 2 - 1 / (2 * step)
    flips = torch.rand(logit.shape, generator=generator, dtype=torch.float64) < logit.sigmoid()
    back = torch.where(states ^ flips, -odds, odds) / 2 - 1 / (2 * step)
    forth, return_ = (torch.where(flips, x.sigmoid(), 1 - x.sigmoid()).log().sum(1) for x in (logit, back))
    gain = ((states ^ flips).double() - states.double()) @ odds
    return (gain + return_ - forth).exp().clamp(max=1).mean().item()

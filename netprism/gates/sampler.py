"""Sampling binary states from a log-density, and the log of its normalising constant.

Sources: the sampler is that of H. Sun, H. Dai, B. Dai, H. Zhou, D. Schuurmans, "Discrete Langevin Sampler via
Wasserstein Gradient Flow", AISTATS 2023, https://arxiv.org/abs/2206.14897, with Barker's balancing function. The
constant: R. Neal, "Annealed importance sampling", 2001, https://arxiv.org/abs/physics/9803008.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

LogProb = Callable[[Tensor], Tensor]


def discrete_langevin(
    log_prob: LogProb,
    states: Tensor,
    *,
    steps: int = 5,
    flip: float | Tensor = 0.5,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Moves binary states towards samples of a distribution, all units of a sample at once, Metropolis-adjusted.

    Unit i flips with probability `flip * sigmoid((1 - 2 s_i) g_i)`, g the gradient of the log-density at s. Where the
    units are independent and `log_prob` is linear, g is the exact log-odds: every proposal is accepted, at any number
    of units. The better known proposal, sigmoid((1 - 2 s_i) g_i / 2 - 1 / (2 step)), is not exact even there, and
    of its proposals for 3072 units 3 in 1000 are accepted (`tests/gates/test_energy.py` has both).

    Args:
        log_prob: Log-density up to a constant, float `(n, ...)` in [0, 1] to `(n,)`, differentiable. Between 0 and 1
            it should be as linear as possible: the gradient approximates the difference that a flip makes.
        states: Current states of the chains, bool `(n, ...)`.
        steps: Number of proposals. Each costs one value and gradient of `log_prob`; one more is needed at the start.
        flip: Number in (0, 1); where the distribution is flat, half of it is the fraction of units that flip. A tensor
            is not checked.
        generator: Generator of the random numbers, on the device of `states`.

    Returns:
        The new states, bool `(n, ...)`, and the fraction of proposals accepted, a scalar.

    Example:
        >>> odds = torch.tensor([2.0, -1.0])
        >>> chains = torch.zeros(1000, 2, dtype=torch.bool)
        >>> generator = torch.Generator().manual_seed(0)
        >>> chains, accepted = discrete_langevin(lambda s: s @ odds, chains, steps=20, generator=generator)
        >>> accepted.item(), [round(rate, 1) for rate in chains.float().mean(0).tolist()]  # sigmoid(2), sigmoid(-1)
        (1.0, [0.9, 0.3])
    """
    if isinstance(flip, float | int) and not 0 < flip < 1:
        raise ValueError(f"flip is {flip}; expected a probability in (0, 1)")
    value, rate = _value_and_flip_rate(log_prob, states, flip)
    accepted = torch.zeros((), dtype=torch.float32, device=states.device)
    each = (-1, *[1] * (states.dim() - 1))
    for _ in range(steps):
        flips = uniform(states.shape, states.device, generator) < rate
        proposal = states ^ flips
        new_value, new_rate = _value_and_flip_rate(log_prob, proposal, flip)
        # |stay - rate| is the rate of a unit that flips and 1 - rate of one that stays: a fifth of torch.where's time.
        stay = (~flips).float()
        back_over_forth = (stay - new_rate).abs_().div_((stay - rate).abs_())
        log_ratio = new_value - value + back_over_forth.log_().flatten(1).sum(1)
        accept = uniform(value.shape, value.device, generator).log() < log_ratio
        value = torch.where(accept, new_value, value)
        rate = rate.lerp_(new_rate, accept.float().view(each))
        states = states ^ (flips & accept.view(each))
        accepted += accept.float().mean()
    return states, accepted / steps


def log_partition(
    f: LogProb, odds: Tensor, count: int, *, temperatures: int = 40, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Returns log E_q[exp f], q independent units, by annealed importance sampling from q.

    f is scaled from 0 to 1 in equal steps; after each, one proposal of `discrete_langevin`. exp of the estimate is
    unbiased, so the estimate itself is low in the mean, by about half its squared error.

    Args:
        f: What is added to log q, float `(count * m, d)` to `(count * m,)`; sample i of distribution j is in row
            `i * m + j`.
        odds: Log-odds of the units of m distributions, `(m, d)`.
        count: Number of samples per distribution.
        temperatures: Number of steps; each costs two values and gradients of f.
        generator: Generator of the random numbers, on the device of `odds`.

    Returns:
        The estimate of each distribution, `(m,)`, and its standard error.
    """
    states = uniform((count, *odds.shape), odds.device, generator) < odds.sigmoid()
    rows = states.flatten(0, 1)
    repeated = odds.repeat(count, 1)
    log_weight = odds.new_zeros(len(rows))
    for step in range(temperatures):
        with torch.no_grad():
            log_weight += f(rows.float()) / temperatures
        tempered = partial(_tempered, f, repeated, (step + 1) / temperatures)
        rows, _ = discrete_langevin(tempered, rows, steps=1, generator=generator)
    log_weight = log_weight.view(count, -1)
    relative = (log_weight - log_weight.amax(0)).exp()
    error = relative.std(0, correction=0) / relative.mean(0) / math.sqrt(count)
    return log_weight.logsumexp(0) - math.log(count), error


def _tempered(f: LogProb, odds: Tensor, scale: float, states: Tensor) -> Tensor:
    return scale * f(states) + (states * odds).sum(1)


def value_and_slope(log_prob: LogProb, states: Tensor) -> tuple[Tensor, Tensor]:
    """Returns `log_prob(states)` `(n,)` and its gradient with respect to the states `(n, ...)`."""
    with torch.enable_grad():
        leaf = states.detach().float().requires_grad_()
        value = log_prob(leaf)
        (slope,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), slope


def uniform(shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Returns float32 random numbers in [0, 1)."""
    return torch.rand(shape, dtype=torch.float32, device=device, generator=generator)


def _value_and_flip_rate(log_prob: LogProb, states: Tensor, flip: float | Tensor) -> tuple[Tensor, Tensor]:
    value, slope = value_and_slope(log_prob, states)
    return value, slope.mul_(states.float().mul_(-2).add_(1)).sigmoid_().mul_(flip)

"""Shapley values: the gain when a player joins a game, on average over all orders in which players can join."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

EXACT_PLAYERS = 12  # 4096 coalitions; one player more doubles them
DEFAULT_SAMPLES = 1000  # permutations where there are too many players for all coalitions

Value = Callable[[Tensor], Tensor]


class Estimate(NamedTuple):
    """Shapley values `(L,)` and the standard error of each `(L,)`, both float64."""

    values: Tensor
    standard_error: Tensor


def shapley_values(value: Value, players: int, samples: int | None = None, *, seed: int = 0) -> Tensor:
    """Returns the Shapley value of every player of a game.

    `phi_i = sum over S without i of |S|! (L - |S| - 1)! / L! * (v(S + i) - v(S))`; the sum over players is
    v(all) - v(none), up to rounding in float64, exact or sampled.

    Args:
        value: The function v. It takes coalitions, bool `(m, L)` on the CPU, true for the players in it, and returns
            the value of each, `(m,)`. It is called once for all coalitions that are needed, none of them twice: `2^L`
            if exact, otherwise up to `samples * (L - 1) + 2`.
        players: Number of players L, at least 1.
        samples: Number of permutations to draw. None: exact for up to 12 players, beyond that 1000 permutations.
        seed: Seed of the permutations.

    Returns:
        `(L,)` in float64 on the CPU, in the unit of `value`. `sampled_shapley_values` also gives standard errors.

    Raises:
        ValueError: There are fewer than one player or two samples, or values have another shape or are not finite.

    Source: Shapley 1953, "A Value for n-Person Games", https://doi.org/10.1515/9781400881970-018.

    Example:
        >>> shapley_values(lambda coalitions: coalitions.sum(1) ** 2, players=3).tolist()
        [3.0, 3.0, 3.0]
    """
    if players < 1:
        raise ValueError(f"players is {players}; expected 1 or more")
    if samples is not None or players > EXACT_PLAYERS:
        return sampled_shapley_values(value, players, DEFAULT_SAMPLES if samples is None else samples, seed=seed).values
    members = all_coalitions(players)
    worth = _ask(value, members)
    size = members.sum(dim=1)
    # weights[s] of a coalition with s players: 1 / (L * binomial(L - 1, s))
    weights = torch.tensor([1 / (players * math.comb(players - 1, s)) for s in range(players)], dtype=torch.float64)
    codes = torch.arange(2**players)
    values = torch.empty(players, dtype=torch.float64)
    for player in range(players):
        without = codes[~members[:, player]]
        values[player] = (weights[size[without]] * (worth[without + 2**player] - worth[without])).sum()
    return values


def sampled_shapley_values(value: Value, players: int, samples: int = DEFAULT_SAMPLES, *, seed: int = 0) -> Estimate:
    """Returns Shapley values from random permutations: the mean gain when a player joins those before it.

    The estimate is unbiased. Its error is that of a mean and falls as 1 / sqrt(samples).

    Args:
        value: The function v, as in `shapley_values`.
        players: Number of players L, at least 1.
        samples: Number of permutations, at least 2, drawn with replacement.
        seed: Seed of the permutations.

    Returns:
        `.values` and `.standard_error`, each `(L,)` in float64 on the CPU.

    Raises:
        ValueError: The same as of `shapley_values`.

    Source: Castro, Gomez, Tejada 2009, "Polynomial Calculation of the Shapley Value Based on Sampling", section 3,
    https://doi.org/10.1016/j.cor.2008.04.004.
    """
    if players < 1 or samples < 2:
        raise ValueError(f"players is {players} and samples {samples}; expected 1 or more, and 2 or more")
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(samples, players, generator=generator).argsort(dim=1)
    position = order.argsort(dim=1)
    # (samples, L + 1, L): who is in before the first, the second, ... and after the last player has joined
    prefixes = position.unsqueeze(1) < torch.arange(players + 1).view(1, -1, 1)
    members, place = prefixes.flatten(0, 1).unique(dim=0, return_inverse=True)
    worth = _ask(value, members)[place].view(samples, players + 1)
    gains = worth.diff(dim=1).gather(1, position)
    return Estimate(gains.mean(dim=0), gains.std(dim=0) / math.sqrt(samples))


def all_coalitions(players: int) -> Tensor:
    """Returns bool `(2^L, L)`: coalition k has the players whose bits are set in k.

    Example:
        >>> all_coalitions(2).int().tolist()
        [[0, 0], [1, 0], [0, 1], [1, 1]]
    """
    return (torch.arange(2**players).unsqueeze(1) >> torch.arange(players)) % 2 == 1


def _ask(value: Value, members: Tensor) -> Tensor:
    """The values of coalitions, in float64."""
    worth = torch.as_tensor(value(members)).detach().to("cpu", torch.float64)
    if worth.shape != (len(members),):
        raise ValueError(f"value returned shape {tuple(worth.shape)}; expected ({len(members)},), one per coalition")
    if not worth.isfinite().all():
        first = int((~worth.isfinite()).nonzero()[0])
        coalition = members[first].nonzero().flatten().tolist()
        raise ValueError(f"the value of coalition {coalition} is {float(worth[first])}; expected a finite number")
    return worth

"""The reliable part of a feature: what other networks of the same task have learned, too.

K networks have features f_1, ..., f_K. One wide feature psi is trained to give all of them through linear heads,
g_k(psi) ~ f_k. A linear map h_k brings psi back as well as it can be known from g_k(psi) alone. With the covariance C
of psi over samples and positions, the best one is

    h_k = C g_k^T (g_k C g_k^T)^-1,

so h_k g_k is a projection: it keeps what network k has and drops the rest. Round trips through all networks,

    psi_r = mean_k h_k g_k psi_(r-1),    psi_0 = psi,

keep what all K networks have; of what only j of them have, j / K is left after each. `Phi_k^reli = g_k(psi_R)`.

What is not in the papers. (1) psi is taken about its mean over samples and positions, and the mean is put back: a
constant is no evidence that networks agree, and Phi_k^reli keeps the mean of g_k(psi). (2) Directions of g_k(psi) with
less than 1e-10 of the variance of the largest are left out of the inverse, which is singular where channels are dead
or double. (3) Whether the h_k of round r are those of psi or are fitted anew to psi_(r-1), as the paper's training
does, is no detail. Say two networks' features correlate with c in some direction. With the h_k of psi,

    ((1 + c)/2)^(2R+1) + ((1 - c)/2)^(2R+1)

of its variance is left: .90 at c = .99 and R = 10, .34 at c = .9, .002 at c = .5. Reliable means the same, not similar.
Fitted anew (`refit`), what the two have in common after one round counts as shared in the next, and soon nothing more
is lost: .99, .86 and .39 is left at these c, for any R above 3.

Source: "Disentanglement, Visualization and Analysis of Complex Features in DNNs", section 3.2, eq. 5, appendix C.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

Solver = Literal["closed_form", "sgd"]

_NEGLIGIBLE = 1e-10  # of the largest variance; rounding of float32 features leaves about 1e-14


def reliable_part(
    psi: Tensor,
    heads: Sequence[Tensor],
    rounds: int = 10,
    *,
    solver: Solver = "closed_form",
    refit: bool = False,
    steps: int = 300,
    learning_rate: float = 3e-2,
    batch_size: int = 1024,
    seed: int = 0,
) -> list[Tensor]:
    """g_k(psi_R): the part of each network's feature that all networks share.

    Cost: d^2 n P multiply-adds for the covariance (closed form), and K linear maps of all of psi. Memory: psi in
    float64; the streamed way is `netprism.components.covariance.Covariance`, `round_trips` and `reliable_heads`.

    Args:
        psi: `(n, d)` or `(n, d, positions...)`, the shared feature.
        heads: the K linear maps g_k, `(c_k, d)` each.
        rounds: R >= 0; with 0 this is g_k(psi).
        solver: "closed_form", or "sgd" for h_k trained as in the paper (`learned_round_trips`), which is always refit.
        refit: fit h_k anew to psi_(r-1) in each round.
        steps: of each round, for "sgd"; so are the next three.
        learning_rate: of Adam.
        batch_size: samples times positions of a step.
        seed: of the draws of these.

    Returns:
        K tensors `(n, c_k)` or `(n, c_k, positions...)`, in psi's type.

    Raises:
        ValueError: an unknown solver, fewer than two heads, heads of another width than psi, psi no wider than the
            widest head (it could be inverted, and nothing would be filtered), psi that is not finite.

    Example:
        >>> psi = torch.tensor([[1.0, 1.0, 0.0], [1.0, -1.0, 0.0], [-1.0, 0.0, 1.0], [-1.0, 0.0, -1.0]])
        >>> heads = [torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[1.0, 1.0, 0.0]])]
        >>> [part.flatten().tolist() for part in reliable_part(psi, heads)]
        [[2.0, 0.0, -1.0, -1.0], [2.0, 0.0, -1.0, -1.0]]
    """
    check_solver(solver)
    check_heads(heads, psi.shape[1])
    rows = _rows(psi)
    mean = rows.mean(dim=0)
    centred = rows - mean
    if solver == "sgd":
        trips = learned_round_trips(centred, heads, rounds, steps, learning_rate, batch_size, seed)
    else:
        trips = round_trips(centred.T @ centred / len(rows), heads, rounds, refit)
    parts = []
    for head, chain in zip(heads, reliable_heads(heads, trips), strict=True):
        parts.append(_like(centred @ chain[-1].T + mean @ head.to(rows).T, psi))
    return parts


def round_trips(covariance: Tensor, heads: Sequence[Tensor], rounds: int = 10, refit: bool = False) -> Tensor:
    """mean_k h_k g_k of each round, in closed form.

    Args:
        covariance: C, `(d, d)`, of psi over samples and positions.
        heads: g_k, `(c_k, d)` each.
        rounds: R >= 0.
        refit: fit h_k anew to psi_(r-1) in each round; otherwise all rounds are alike.

    Returns:
        `(R, d, d)` float64, of rounds 1 to R.

    Raises:
        ValueError: a negative number of rounds, a covariance that is not finite.
    """
    _check_rounds(rounds)
    covariance = covariance.double()
    trips: list[Tensor] = []
    for _ in range(rounds):
        if refit or not trips:
            trips.append(mean_trip(heads, best_maps(covariance, heads)))
            covariance = trips[-1] @ covariance @ trips[-1].T
        else:
            trips.append(trips[0])
    return torch.stack(trips) if trips else covariance.new_zeros(0, *covariance.shape)


def best_maps(covariance: Tensor, heads: Sequence[Tensor]) -> list[Tensor]:
    """h_k = C g_k^T (g_k C g_k^T)^-1: the linear maps that bring psi back from g_k(psi) with the least squared error.

    Args:
        covariance: C, `(d, d)`, of psi over samples and positions.
        heads: g_k, `(c_k, d)` each.

    Returns:
        h_k, `(d, c_k)` each, float64; a pseudo-inverse where g_k C g_k^T is singular. Zero where g_k(psi) is constant.

    Raises:
        ValueError: a covariance that is not finite.
    """
    if not covariance.isfinite().all():
        raise ValueError("the covariance of psi has NaN or infinite entries")
    covariance = covariance.double()
    maps = []
    for head in heads:
        across = covariance @ head.to(covariance).T
        own = head.to(covariance) @ across
        maps.append(across @ torch.linalg.pinv((own + own.T) / 2, rtol=_NEGLIGIBLE, hermitian=True))
    return maps


def learned_round_trips(
    psi: Tensor,
    heads: Sequence[Tensor],
    rounds: int = 10,
    steps: int = 300,
    learning_rate: float = 3e-2,
    batch_size: int = 1024,
    seed: int = 0,
) -> Tensor:
    """mean_k h_k g_k of each round, h_k trained: phase r fits sum_k ||h_k g_k psi_(r-1) - psi_(r-1)||^2.

    Each phase goes on from the maps of the one before. It tends to `round_trips(..., refit=True)`, slowly in directions
    of little variance. The paper has one set of maps for all phases; here each round keeps those of its own phase,
    since the last ones no longer know what earlier rounds have filtered. Cost: R * steps steps of Adam.

    Args:
        psi: `(n, d)`, about its mean.
        heads: g_k, `(c_k, d)` each.
        rounds: R >= 0.
        steps: of each phase.
        learning_rate: of Adam; it falls to 0 over each phase as a cosine.
        batch_size: rows of a step.
        seed: of the draws of rows.

    Returns:
        `(R, d, d)`, of rounds 1 to R, in psi's type.

    Raises:
        ValueError: a negative number of rounds.

    Source: appendix C.
    """
    _check_rounds(rounds)
    heads = [head.to(psi) for head in heads]
    maps = [psi.new_zeros(psi.shape[1], len(head), requires_grad=True) for head in heads]
    draws = torch.Generator(psi.device).manual_seed(seed)
    trips = []
    for _ in range(rounds):
        optimizer = torch.optim.Adam(maps, learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            rows = torch.randint(len(psi), (batch_size,), generator=draws, device=psi.device)
            optimizer.zero_grad()
            cycle_loss(psi[rows], heads, [maps]).backward()
            optimizer.step()
            schedule.step()
        trips.append(mean_trip(heads, [h.detach() for h in maps]))
        psi = psi @ trips[-1].T
    return torch.stack(trips) if trips else psi.new_zeros(0, psi.shape[1], psi.shape[1])


def cycle_loss(psi: Tensor, heads: Sequence[Tensor], maps: Sequence[Sequence[Tensor]]) -> Tensor:
    """sum_r sum_k ||h_k g_k psi_(r-1) - psi_(r-1)||^2, a mean over rows; psi_(r-1) is without gradient.

    Args:
        psi: `(n, d)` or `(n, d, positions...)`, about its mean.
        heads: g_k, `(c_k, d)` each.
        maps: for each round the h_k, `(d, c_k)` each.

    Returns:
        A scalar >= 0.

    Source: eq. 5.
    """
    current = psi.movedim(1, -1).flatten(0, -2).detach()
    total = current.new_zeros(())
    for maps_of_round in maps:
        returned = [current @ head.T @ h.T for head, h in zip(heads, maps_of_round, strict=True)]
        total = total + sum(((back - current) ** 2).sum(dim=1).mean() for back in returned)
        current = torch.stack(returned).mean(dim=0).detach()
    return total


def mean_trip(heads: Sequence[Tensor], maps: Sequence[Tensor]) -> Tensor:
    """mean_k h_k g_k: the matrix `(d, d)` of a round."""
    return torch.stack([h @ head.to(h) for head, h in zip(heads, maps, strict=True)]).mean(dim=0)


def reliable_heads(heads: Sequence[Tensor], trips: Tensor) -> list[Tensor]:
    """g_k after r round trips, for r = 0, ..., R: what makes g_k(psi_r) from psi, but for the mean.

    Args:
        heads: g_k, `(c_k, d)` each.
        trips: `(R, d, d)`.

    Returns:
        K tensors `(R + 1, c_k, d)`, in the type of the trips.
    """
    so_far = [torch.eye(trips.shape[-1]).to(trips)]
    for trip in trips:
        so_far.append(trip @ so_far[-1])
    return [head.to(trips) @ torch.stack(so_far) for head in heads]


def check_solver(solver: Solver) -> None:
    """Raises a ValueError for an unknown solver."""
    if solver not in get_args(Solver):
        raise ValueError(f"unknown solver {solver!r}; allowed: {', '.join(get_args(Solver))}")


def check_heads(heads: Sequence[Tensor], channels: int) -> None:
    """Raises a ValueError where heads do not fit psi, or psi is no wider than the widest of them."""
    if len(heads) < 2:
        raise ValueError(f"{len(heads)} network: its features can only be compared with those of at least one other")
    for k, head in enumerate(heads):
        if head.dim() != 2 or head.shape[1] != channels:
            raise ValueError(f"head {k} has shape {tuple(head.shape)}; expected (c, {channels}), psi has {channels}")
        check_width(channels, len(head))


def check_width(channels: int, target: int) -> None:
    """Raises a ValueError where psi is no wider than a target: the head could be inverted."""
    if channels <= target:
        raise ValueError(
            f"psi has {channels} channels, a target {target}: psi must be wider, or its head can be inverted and "
            "everything looks reliable"
        )


def _check_rounds(rounds: int) -> None:
    if rounds < 0:
        raise ValueError(f"rounds is {rounds}; expected a number >= 0")


def _rows(psi: Tensor) -> Tensor:
    """(n, d, positions...) as (n * positions, d) in float64."""
    rows = psi.movedim(1, -1).flatten(0, -2).double()
    if not rows.isfinite().all():
        raise ValueError("psi has NaN or infinite entries")
    return rows


def _like(rows: Tensor, psi: Tensor) -> Tensor:
    """(n * positions, c) as (n, c, positions...) in psi's type."""
    by_position: Tensor = rows.unflatten(0, (psi.shape[0], *psi.shape[2:]))
    return by_position.movedim(-1, 1).to(psi)

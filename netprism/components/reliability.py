"""The reliable part of a feature: what other networks of the same task have learned, too.

K networks have features f_1, ..., f_K. One wide feature psi is trained to give all of them through linear readouts,
g_k(psi) ~ f_k. A linear map h_k brings psi back as well as it can be known from g_k(psi) alone. With the covariance C
of psi over samples and positions, the best one is

    h_k = C g_k^T (g_k C g_k^T)^-1,

so h_k g_k is a projection: it keeps what network k has and drops the rest. Round trips through all networks,

    psi_r = mean_k h_k g_k psi_(r-1),    psi_0 = psi,

keep what all K networks have; of what only j of them have, j / K is left after each. `Phi_k^reli = g_k(psi_R)`.

What is not in the papers. (1) psi is taken about its mean over samples and positions, and the mean is put back: a
constant is no evidence that networks agree, and Phi_k^reli keeps the mean of g_k(psi). (2) Directions of g_k(psi) with
less than 1e-10 of the variance of the largest are left out of the inverse, which is singular where channels are dead
or double. (3) Whether the h_k of round r are those of psi or are fitted again to psi_(r-1), as the paper's training
does, matters. Say two networks' features correlate with c in some direction. Fitted again (`refit`, the default), what
the two have in common after one round counts as shared in the next, and soon nothing more is lost: of its variance .99,
.86 and .39 is left at c = .99, .9 and .5, for any R above 3. With the h_k of psi in all rounds,

    ((1 + c)/2)^(2R+1) + ((1 - c)/2)^(2R+1)

is left: .90, .34 and .002 at R = 10. It tends to 0 with R unless features are identical. The paper's own
training of h_k is in `netprism.components.as_published`.

Source: Ren et al. 2020, section 3.2, eq. (5), appendix C, https://arxiv.org/abs/2006.15920.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_NEGLIGIBLE = 1e-10  # of the largest variance; rounding of float32 features leaves about 1e-14


def reliable_part(psi: Tensor, readouts: Sequence[Tensor], rounds: int = 10, *, refit: bool = True) -> list[Tensor]:
    """Returns g_k(psi_R): the part of each network's feature that all networks share.

    Cost: d^2 n P multiply-adds for the covariance, and K linear maps of all of psi. Memory: psi in float64;
    `netprism.metrics.ReliabilityMetric` takes samples in batches.

    Args:
        psi: The shared feature, `(n, d)` or `(n, d, positions...)`.
        readouts: The K linear maps g_k, `(c_k, d)` each.
        rounds: Number of round trips R >= 0; with 0 the result is g_k(psi).
        refit: Whether h_k is fitted again to psi_(r-1) in each round, as in the paper.

    Returns:
        K tensors `(n, c_k)` or `(n, c_k, positions...)`, in psi's type.

    Raises:
        ValueError: There are fewer than two readouts, one has another width than psi, psi is no wider than the widest
            readout (it could be inverted, and nothing would be filtered), or psi is not finite.

    Example:
        >>> psi = torch.tensor([[1.0, 1.0, 0.0], [1.0, -1.0, 0.0], [-1.0, 0.0, 1.0], [-1.0, 0.0, -1.0]])
        >>> readouts = [torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[1.0, 1.0, 0.0]])]
        >>> [part.flatten().tolist() for part in reliable_part(psi, readouts)]
        [[2.0, 0.0, -1.0, -1.0], [2.0, 0.0, -1.0, -1.0]]
    """
    check_readouts(readouts, psi.shape[1])
    _, centred = centred_rows(psi)
    return parts_after(psi, readouts, round_trips(centred.T @ centred / len(centred), readouts, rounds, refit))


def parts_after(psi: Tensor, readouts: Sequence[Tensor], trips: Tensor) -> list[Tensor]:
    """Returns g_k(psi_R) for given round trips.

    Args:
        psi: The shared feature, `(n, d)` or `(n, d, positions...)`.
        readouts: The K linear maps g_k, `(c_k, d)` each.
        trips: The matrices of rounds 1 to R, `(R, d, d)`.

    Returns:
        K tensors `(n, c_k)` or `(n, c_k, positions...)`, in psi's type.
    """
    mean, centred = centred_rows(psi)
    parts = []
    for readout, chain in zip(readouts, reliable_readouts(readouts, trips), strict=True):
        rows = centred @ chain[-1].to(centred).T + mean @ readout.to(centred).T
        parts.append(rows.unflatten(0, (psi.shape[0], *psi.shape[2:])).movedim(-1, 1).to(psi))
    return parts


def round_trips(covariance: Tensor, readouts: Sequence[Tensor], rounds: int = 10, refit: bool = True) -> Tensor:
    """Returns mean_k h_k g_k of each round, in closed form.

    Args:
        covariance: The covariance C of psi over samples and positions, `(d, d)`.
        readouts: The linear maps g_k, `(c_k, d)` each.
        rounds: Number of round trips R >= 0.
        refit: Whether h_k is fitted again to psi_(r-1) in each round; otherwise all rounds have the same matrix.

    Returns:
        `(R, d, d)` in float64, for rounds 1 to R.

    Raises:
        ValueError: The number of rounds is negative, or the covariance is not finite.
    """
    check_rounds(rounds)
    covariance = covariance.double()
    trips: list[Tensor] = []
    for _ in range(rounds):
        if refit or not trips:
            trips.append(mean_trip(readouts, best_maps(covariance, readouts)))
            covariance = trips[-1] @ covariance @ trips[-1].T
        else:
            trips.append(trips[0])
    return torch.stack(trips) if trips else covariance.new_zeros(0, *covariance.shape)


def best_maps(covariance: Tensor, readouts: Sequence[Tensor]) -> list[Tensor]:
    """Returns h_k = C g_k^T (g_k C g_k^T)^-1: the maps that bring psi back from g_k(psi) with the least squared error.

    Args:
        covariance: The covariance C of psi over samples and positions, `(d, d)`.
        readouts: The linear maps g_k, `(c_k, d)` each.

    Returns:
        h_k, `(d, c_k)` each, in float64; a pseudo-inverse where g_k C g_k^T is singular. Zero where g_k(psi) is
        constant.

    Raises:
        ValueError: The covariance is not finite.
    """
    if not covariance.isfinite().all():
        raise ValueError("the covariance of psi has NaN or infinite entries; expected finite ones")
    covariance = covariance.double()
    maps = []
    for readout in readouts:
        across = covariance @ readout.to(covariance).T
        own = readout.to(covariance) @ across
        maps.append(across @ torch.linalg.pinv((own + own.T) / 2, rtol=_NEGLIGIBLE, hermitian=True))
    return maps


def mean_trip(readouts: Sequence[Tensor], maps: Sequence[Tensor]) -> Tensor:
    """Returns mean_k h_k g_k: the matrix `(d, d)` of a round."""
    return torch.stack([h @ readout.to(h) for readout, h in zip(readouts, maps, strict=True)]).mean(dim=0)


def reliable_readouts(readouts: Sequence[Tensor], trips: Tensor) -> list[Tensor]:
    """Returns g_k after r round trips, for r = 0, ..., R: what makes g_k(psi_r) of psi, up to the mean.

    Args:
        readouts: The linear maps g_k, `(c_k, d)` each.
        trips: The matrices of rounds 1 to R, `(R, d, d)`.

    Returns:
        K tensors `(R + 1, c_k, d)`, in the type of the trips.
    """
    so_far = [torch.eye(trips.shape[-1]).to(trips)]
    for trip in trips:
        so_far.append(trip @ so_far[-1])
    return [readout.to(trips) @ torch.stack(so_far) for readout in readouts]


def centred_rows(psi: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean `(d,)` of psi and psi about it, `(n * positions, d)`, both in float64.

    Raises:
        ValueError: psi is not finite.
    """
    rows = psi.movedim(1, -1).flatten(0, -2).double()
    if not rows.isfinite().all():
        raise ValueError("psi has NaN or infinite entries; expected finite ones")
    mean = rows.mean(dim=0)
    return mean, rows - mean


def check_readouts(readouts: Sequence[Tensor], channels: int) -> None:
    """Refuses readouts that do not fit psi.

    Raises:
        ValueError: There are fewer than two, one has another width, or psi is no wider than the widest of them.
    """
    if len(readouts) < 2:
        raise ValueError(f"the number of networks is {len(readouts)}; expected 2 or more, to compare their features")
    for k, readout in enumerate(readouts):
        if readout.dim() != 2 or readout.shape[1] != channels:
            raise ValueError(
                f"readout {k} has shape {tuple(readout.shape)}; expected (c, {channels}), psi has {channels}"
            )
        check_width(channels, len(readout))


def check_width(channels: int, target: int) -> None:
    """Refuses a psi that is no wider than a target, whose readout could then be inverted.

    Raises:
        ValueError: It is no wider.
    """
    if channels <= target:
        raise ValueError(
            f"the number of psi's channels is {channels}; expected more than the {target} of a target, or its readout "
            "can be inverted and everything looks reliable"
        )


def check_rounds(rounds: int) -> None:
    """Refuses a negative number of rounds.

    Raises:
        ValueError: It is negative.
    """
    if rounds < 0:
        raise ValueError(f"rounds is {rounds}; expected a number >= 0")

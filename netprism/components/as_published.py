"""The round trips of the reliable part, trained by gradient descent as the paper has it, to compare with.

Everything else in this package uses the closed form of `netprism.components.reliability`, to which this training tends.
To compare on a psi and readouts of your own:
`parts_after(psi, readouts, learned_round_trips(psi, readouts))` with `reliable_part(psi, readouts, refit=True)`.

Source: Ren et al. 2020, eq. (5), appendix C, https://arxiv.org/abs/2006.15920.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from netprism.components.reliability import centred_rows, check_readouts, check_rounds, mean_trip


def learned_round_trips(
    psi: Tensor,
    readouts: Sequence[Tensor],
    rounds: int = 10,
    steps: int = 300,
    learning_rate: float = 3e-2,
    batch_size: int = 1024,
    seed: int = 0,
) -> Tensor:
    """Returns mean_k h_k g_k of each round, h_k trained: phase r fits sum_k ||h_k g_k psi_(r-1) - psi_(r-1)||^2.

    Each phase continues from the maps of the one before. The result tends to `round_trips(..., refit=True)`, slowly in
    directions of little variance. The paper has one set of maps for all phases; here each round keeps those of its own
    phase, since the last ones no longer know what earlier rounds have filtered. Cost: R * steps steps of Adam.

    Args:
        psi: The shared feature, `(n, d)` or `(n, d, positions...)`.
        readouts: The K linear maps g_k, `(c_k, d)` each.
        rounds: Number of round trips R >= 0.
        steps: Steps of each phase.
        learning_rate: Learning rate of Adam; it falls to 0 over each phase as a cosine.
        batch_size: Samples times positions per step.
        seed: Seed of their choice.

    Returns:
        `(R, d, d)` in float64, for rounds 1 to R.

    Raises:
        ValueError: The number of rounds is negative, or as of `netprism.components.reliable_part`.

    Source: Ren et al. 2020, appendix C, https://arxiv.org/abs/2006.15920.
    """
    check_rounds(rounds)
    check_readouts(readouts, psi.shape[1])
    _, psi = centred_rows(psi)
    readouts = [readout.to(psi) for readout in readouts]
    maps = [psi.new_zeros(psi.shape[1], len(readout), requires_grad=True) for readout in readouts]
    draws = torch.Generator(psi.device).manual_seed(seed)
    trips = []
    for _ in range(rounds):
        optimizer = torch.optim.Adam(maps, learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            rows = torch.randint(len(psi), (batch_size,), generator=draws, device=psi.device)
            optimizer.zero_grad()
            cycle_loss(psi[rows], readouts, [maps]).backward()
            optimizer.step()
            schedule.step()
        trips.append(mean_trip(readouts, [h.detach() for h in maps]))
        psi = psi @ trips[-1].T
    return torch.stack(trips) if trips else psi.new_zeros(0, psi.shape[1], psi.shape[1])


def cycle_loss(psi: Tensor, readouts: Sequence[Tensor], maps: Sequence[Sequence[Tensor]]) -> Tensor:
    """Returns sum_r sum_k ||h_k g_k psi_(r-1) - psi_(r-1)||^2, a mean over rows; psi_(r-1) is without gradient.

    Args:
        psi: The shared feature about its mean, `(n, d)` or `(n, d, positions...)`.
        readouts: The linear maps g_k, `(c_k, d)` each.
        maps: For each round the h_k, `(d, c_k)` each.

    Returns:
        A scalar >= 0.

    Source: Ren et al. 2020, eq. (5), https://arxiv.org/abs/2006.15920.
    """
    current = psi.movedim(1, -1).flatten(0, -2).detach()
    total = current.new_zeros(())
    for maps_of_round in maps:
        returned = [current @ readout.T @ h.T for readout, h in zip(readouts, maps_of_round, strict=True)]
        total = total + sum(((back - current) ** 2).sum(dim=1).mean() for back in returned)
        current = torch.stack(returned).mean(dim=0).detach()
    return total

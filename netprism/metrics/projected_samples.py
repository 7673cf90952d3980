"""Projected samples, gathered: their distance to the network's outputs, and what their strength says about these."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from netprism.knowledge.sample_projection import Projection, divergence, output_entropy, strength_correlation


class Projected(NamedTuple):
    """What a projection makes of a set of samples, in no particular order.

    Attributes:
        g: projected features `(N, d')`.
        categories: the most likely one by the network's output, `(N,)`.
        divergence: mean KL(P || Q), in nats.
        correlation: Pearson's, of ||g|| and the entropy of P.
    """

    g: Tensor
    categories: Tensor
    divergence: float
    correlation: float


class ProjectedSamples(Metric):
    """KL(P || Q) and the correlation of strength and entropy over all samples of all processes.

    Memory: (d' + 3) float64 a sample, on each process after `compute`.
    """

    full_state_update = False
    rows: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        # One state: g, category, KL and entropy side by side, so that they keep their order and are one message.
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    @torch.no_grad()
    def update(self, projection: Projection, features: Tensor, targets: Tensor) -> None:
        """Adds samples.

        Args:
            projection: as it is now.
            features: f, `(N, ...)`.
            targets: P, `(N, C)`.
        """
        g = projection(features)
        numbers = (
            targets.argmax(1).double(),
            divergence(targets, projection.log_posterior(g)),
            output_entropy(targets),
        )
        self.rows.append(torch.cat([g, torch.stack(numbers, dim=1)], dim=1))

    def compute(self) -> Projected:
        """Over all samples, the same on every process."""
        rows = dim_zero_cat(self.rows)
        g, (categories, divergences, entropies) = rows[:, :-3], rows[:, -3:].unbind(1)
        correlation = strength_correlation(g.norm(dim=1), entropies)
        return Projected(g, categories.long(), divergences.mean().item(), correlation)

"""How well projected samples imitate the network's outputs, over all batches and ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from netprism.knowledge.sample_projection import divergence, output_entropy, strength_correlation
from netprism.plots import plot_directions


class ProjectedSamples(Metric):
    """KL(P || Q), and the correlation of strength and entropy, over all samples of all ranks.

    Memory: (d' + 3) float64 per sample, on each rank after `compute`.

    Args:
        **kwargs: Options of `torchmetrics.Metric`.

    Example:
        >>> metric, g = ProjectedSamples(), torch.tensor([[3.0, 0.0], [0.0, 1.0]])
        >>> p = torch.tensor([[0.75, 0.25], [0.5, 0.5]])
        >>> metric.update(g, torch.full((2, 2), 0.5).log(), p)
        >>> {key: round(float(metric.compute()[key]), 3) for key in ("KL", "strength_uncertainty_corr")}
        {'KL': 0.065, 'strength_uncertainty_corr': -1.0}
    """

    full_state_update = False
    is_differentiable = False
    rows: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # One state: g, category, KL and entropy side by side, so that they keep their order and are one message.
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    @torch.no_grad()
    def update(self, g: Tensor, log_q: Tensor, targets: Tensor) -> None:
        """Adds samples.

        Args:
            g: Projected features `(N, d')`.
            log_q: Log-probabilities of the categories by the projection, log Q, `(N, C)`.
            targets: Softened outputs of the network, P, `(N, C)`.
        """
        numbers = (targets.argmax(1).double(), divergence(targets, log_q), output_entropy(targets))
        self.rows.append(torch.cat([g, torch.stack(numbers, dim=1)], dim=1))

    def compute(self) -> dict[str, Tensor]:
        """Over all samples, the same on every rank and in no particular order.

        Returns:
            `KL`: Mean KL(P || Q), in nats.
            `strength_uncertainty_corr`: Pearson's correlation of ||g|| and the entropy of P.
            `g`: Projected features `(N, d')`.
            `categories`: The most likely category by the network's output, `(N,)`.
        """
        rows = dim_zero_cat(self.rows)
        g, (categories, divergences, entropies) = rows[:, :-3], rows[:, -3:].unbind(1)
        correlation = rows.new_tensor(strength_correlation(g.norm(dim=1), entropies))
        values = {"KL": divergences.mean(), "strength_uncertainty_corr": correlation}
        return {**values, "g": g, "categories": categories.long()}

    def plot(
        self, val: Mapping[str, Tensor] | None = None, ax: Axes | None = None, names: Sequence[str] | None = None
    ) -> tuple[Figure, list[Axes]]:
        """Draws g in the plane in which it differs most, coloured by category: far from the cross is certain.

        Args:
            val: What `compute` has returned; None to compute it.
            ax: Refused: the legend stands beside the panel.
            names: Names of the categories.

        Returns:
            The figure, and its panel.

        Raises:
            ValueError: `ax` is given.
        """
        if ax is not None:
            raise ValueError("ax is given; expected None, since the legend stands beside the panel")
        found = self.compute() if val is None else val
        return plot_directions(found["g"], found["categories"], names)

"""Reliable and unreliable components of a feature, measured over samples in batches and on several ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from netprism.components.reliable_variance import Reliability, reliability_of_covariance
from netprism.metrics._plotted import PlottedMetric
from netprism.metrics.covariance import CovarianceState


class ReliabilityMetric(PlottedMetric, CovarianceState):
    """Measures `netprism.components.Reliability` in one pass, from the covariance of psi, Phi and f together.

    The target is the first network. Cost: D^2 multiply-adds per sample and position, D = L (d + c) + c channels for L
    orders, psi of d and a target of c channels. Memory: 8 D^2 bytes, 100 MB at L = 6, d = 512, c = 64.

    Args:
        orders: The orders l, rising.
        readouts: For each order g_k, `(c_k, d)` each, the target's first; can be set until `compute`.
        rounds: Number of round trips R.
        refit: See `netprism.components.reliability.round_trips`.
        options: Options of `torchmetrics.Metric`.
    """

    def __init__(
        self,
        orders: Sequence[int],
        readouts: Sequence[Sequence[Tensor]],
        rounds: int = 10,
        refit: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.orders, self.readouts, self.rounds, self.refit = tuple(orders), readouts, rounds, refit

    def update(self, psi: Sequence[Tensor], approximations: Sequence[Tensor], feature: Tensor) -> None:
        """Adds samples.

        Args:
            psi: For each order psi^(l), `(N, d, ...)`.
            approximations: For each order Phi^(l), `(N, c, ...)`.
            feature: Tensor f, `(N, c, ...)`.
        """
        self.add(torch.cat([*psi, *approximations, feature], dim=1))

    def compute(self) -> dict[str, Tensor]:
        """Returns all numbers in float64, named as by `Reliability.quantities`: `reliability/4`, ...

        Raises:
            ValueError: There are no samples, the feature is the same for all of them, or a value is not finite.
        """
        self._found = reliability_of_covariance(self.total(), self.orders, self.readouts, self.rounds, self.refit)
        return {key: torch.tensor(value, dtype=torch.float64) for key, value in self._found.quantities.items()}

    def reliability(self) -> Reliability:
        """Returns what `compute` has found, with the maps that make Phi^(l),reli. All ranks have to call it."""
        self.compute()
        return self._found

"""Feature components, measured over samples that come in batches and on several ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from netprism.components.coalitions import Head, coalition_losses, is_affine, summed_losses
from netprism.components.measures import Components, components, components_of_sums, measured_parts, quantities
from netprism.components.shapley import EXACT_PLAYERS, all_coalitions
from netprism.metrics._plotted import PlottedMetric
from netprism.metrics.covariance import CovarianceState

_ELEMENTS = 2**24  # numbers that are stacked at a time: 128 MiB in float64


class ComponentMetric(PlottedMetric, CovarianceState):
    """Measures `netprism.components.Components` of samples that come in batches, on one rank or many.

    State: (2 L + 1)(2 L + 1 + D) float64 for L orders and D feature dimensions, and 2^L + 2 L + 3 sums. Memory of an
    update: 2^24 float64 at a time, or one sample's parts.

    Args:
        orders: The orders l, rising; up to 12 with labels.
        options: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: There are more orders than that, in `update` with labels.
    """

    task: list[Tensor]

    def __init__(self, orders: Sequence[int], **options: Any) -> None:
        super().__init__(**options)
        self.orders = tuple(orders)
        self._affine: bool | None = None
        self.add_state("task", default=[], dist_reduce_fx="cat")  # one vector, see `components_of_sums`

    def update(
        self,
        feature: Tensor,
        approximations: Sequence[Tensor],
        head: Head | None = None,
        labels: Tensor | None = None,
    ) -> None:
        """Adds samples.

        Args:
            feature: Tensor f, `(N, ...)`.
            approximations: Tensors Phi^(l) of rising order, each `(N, ...)`.
            head: Function from features to logits; None to leave out what needs labels.
            labels: Integer classes `(N,)`; None to leave out what needs labels.
        """
        size = max(1, _ELEMENTS // ((2 * len(self.orders) + 1) * max(1, feature[:1].numel())))
        for some, *phis in zip(*(tensor.split(size) for tensor in (feature, *approximations)), strict=True):
            self.add(measured_parts(some, phis))
        if head is None or labels is None or len(labels) == 0:
            return
        parts = components(approximations)
        if len(parts) > EXACT_PLAYERS:
            raise ValueError(f"the number of orders is {len(parts)}; expected up to {EXACT_PLAYERS} with labels")
        if self._affine is None:
            self._affine = is_affine(head, feature)
        members = all_coalitions(len(parts)).to(feature.device)
        coalitions = coalition_losses(head, parts, feature - approximations[-1], labels, members, self._affine)
        logits = [head(tensor) for tensor in (*approximations, feature)]
        hits = torch.stack([(of_part.argmax(1) == labels).sum() for of_part in logits])
        sums = torch.cat([hits.new_tensor([len(labels)]), coalitions, summed_losses(torch.stack(logits), labels), hits])
        self.task = [sum(self.task, start=sums)]

    def compute(self) -> dict[str, Tensor]:
        """Returns all numbers in float64, named as by `netprism.components.measures.quantities`: `significance/4`, ...

        Raises:
            ValueError: There are no samples, the feature is the same for all of them, or a value is not finite.
        """
        width = 1 + 2 ** len(self.orders) + 2 * (len(self.orders) + 1)
        task = dim_zero_cat(self.task).view(-1, width).sum(dim=0) if len(self.task) else None
        self._found = components_of_sums(self.orders, self.total(), task)
        return {
            key: torch.tensor(value, dtype=torch.float64) for key, value in quantities({"train": self._found}).items()
        }

    def components(self) -> Components:
        """Returns what `compute` has found, as numbers in float64. All ranks have to call it."""
        self.compute()
        return self._found

    def reset(self) -> None:
        """Forgets the samples and the head."""
        super().reset()
        self._affine = None

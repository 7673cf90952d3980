"""Knowledge points per image, over all batches and ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from netprism.knowledge.points import KnowledgePointCounts
from netprism.metrics._plotted import PlottedMetric


class KnowledgePointMetric(PlottedMetric):
    """Mean number of knowledge points per image and layer, of reliable ones, and the fraction that is reliable.

    Memory: two integers per layer.

    Args:
        layers: Names of the layers.
        options: Options of `torchmetrics.Metric`.

    Example:
        >>> mask = torch.tensor([[True, True, False], [True, True, False]])
        >>> counts = KnowledgePointCounts(mask, mask & torch.tensor([True, False, False]), mask.long(), mask.float())
        >>> metric = KnowledgePointMetric(["conv"])
        >>> metric.update({"conv": counts})
        >>> {key: float(value) for key, value in metric.compute().items()}
        {'points/conv': 2.0, 'reliable/conv': 1.0, 'ratio/conv': 0.5}
    """

    full_state_update = False
    is_differentiable = False
    points: Tensor
    reliable: Tensor
    images: Tensor

    def __init__(self, layers: Sequence[str], **options: Any) -> None:
        super().__init__(**options)
        self.layers = list(layers)
        for name, shape in (("points", len(self.layers)), ("reliable", len(self.layers)), ("images", 1)):
            self.add_state(name, default=torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, counts: Mapping[str, KnowledgePointCounts]) -> None:
        """Adds the knowledge points of each layer on the same images."""
        for number, layer in enumerate(self.layers):
            self.points[number] += counts[layer].mask.sum()
            self.reliable[number] += counts[layer].reliable.sum()
        self.images += len(counts[self.layers[0]].mask)

    def compute(self) -> dict[str, Tensor]:
        """Over all images, in float64; `ratio/<layer>` is NaN where a layer has no knowledge points."""
        points, reliable = self.points.double(), self.reliable.double()
        values = {"points": points / self.images, "reliable": reliable / self.images, "ratio": reliable / points}
        return {f"{key}/{layer}": values[key][number] for number, layer in enumerate(self.layers) for key in values}

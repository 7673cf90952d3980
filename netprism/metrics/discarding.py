"""What layers discard of their input, over images that come in batches and on several ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from netprism.discarding.concentration import concentration
from netprism.metrics._plotted import PlottedMetric


class DiscardingMetric(PlottedMetric):
    """Means of entropy maps over images, and how far they are concentrated on the background.

    The states are sums. Images whose mask is all or nothing do not count for concentration.

    Args:
        layers: Names of the layers.
        quantity: Name of the entropy, "SID" or "RU".
        options: Options of `torchmetrics.Metric`.

    Example:
        >>> metric = DiscardingMetric(["conv"])
        >>> metric.update({"conv": torch.full((2, 3, 4, 4), -3.0)})
        >>> {name: value.item() for name, value in metric.compute().items()}
        {'SID/conv': -3.0}
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = None
    entropy: Tensor
    images: Tensor
    contrast: Tensor
    masked: Tensor
    with_masks: Tensor

    def __init__(self, layers: Sequence[str], quantity: str = "SID", **options: Any) -> None:
        super().__init__(**options)
        self.layers, self.quantity = list(layers), quantity
        for state in ("entropy", "contrast", "masked"):  # masked: the images that count for concentration
            zeros = torch.zeros(len(self.layers), dtype=torch.float64)
            self.add_state(state, default=zeros, dist_reduce_fx="sum")
        for state in ("images", "with_masks"):
            self.add_state(state, default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, entropy_maps: Mapping[str, Tensor], masks: Tensor | None = None) -> None:
        """Adds images.

        Args:
            entropy_maps: Layer -> H_i in nats, `(N, ...)`.
            masks: Where the objects are, bool `(N, 1, H, W)`, for the concentration.
        """
        for i, layer in enumerate(self.layers):
            entropy = entropy_maps[layer].double()
            self.entropy[i] += entropy.flatten(1).mean(1).sum()
            if masks is not None:
                each = concentration(entropy, masks)
                self.contrast[i] += each.nansum()
                self.masked[i] += each.isfinite().sum()
        count = len(entropy_maps[self.layers[0]])
        self.images += count
        self.with_masks += 0 if masks is None else count

    def compute(self) -> dict[str, Tensor]:
        """The means in nats: `<quantity>/<layer>`, and `concentration/<layer>` where there were masks.

        It is NaN where no mask has both object and background.
        """
        means = self.entropy / self.images
        values = {f"{self.quantity}/{layer}": mean for layer, mean in zip(self.layers, means, strict=True)}
        if self.with_masks:
            contrasts = zip(self.layers, self.contrast / self.masked, strict=True)
            values |= {f"concentration/{layer}": value for layer, value in contrasts}
        return values

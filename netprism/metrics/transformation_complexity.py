"""`netprism.gates.transformation_complexity` as a metric that sees its samples in batches and on several ranks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from netprism.gates.entropy import Bandwidth, Complexity, Gates, transformation_complexity
from netprism.gates.packing import PackedGates


class TransformationComplexity(Metric):
    """Entropies of gating states over all samples of all ranks; see `netprism.gates.transformation_complexity`.

    Samples must meet in pairs, so the state is the gates themselves, one bit each: `compute` gathers n * d / 8 bytes on
    every rank. Every rank has to update at least once; one without a sample does so with gates of no rows.

    Args:
        bandwidth: "dim" or "variance".
        alpha: factor of the bandwidth, one for all layers or one for each; None: by the shape of a layer's gates.
        total_correlation: whether to estimate TC.
        seed: of the independent gates that TC compares with.

    Example:
        >>> metric = TransformationComplexity()
        >>> metric.update({"relu": torch.tensor([[True, False], [True, True]])}, labels=torch.tensor([0, 1]))
        >>> metric.update({"relu": torch.tensor([[False, True]])}, labels=torch.tensor([1]))
        >>> round(metric.compute().joint_entropy, 3)
        1.585
    """

    full_state_update = False
    bits: list[Tensor]
    labels: list[Tensor]

    def __init__(
        self,
        bandwidth: Bandwidth = "dim",
        alpha: float | Mapping[str, float] | None = None,
        total_correlation: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.bandwidth, self.alpha, self.total_correlation, self.seed = bandwidth, alpha, total_correlation, seed
        self.shapes: dict[str, tuple[int, ...]] = {}
        # One state for all layers: their bytes side by side, so that a gather is one message.
        self.add_state("bits", default=[], dist_reduce_fx="cat")
        self.add_state("labels", default=[], dist_reduce_fx="cat")

    def update(self, gates: Mapping[str, Gates], labels: Tensor | None = None) -> None:
        """Adds samples.

        Args:
            gates: layer -> bool `(n, ...)` or packed; the same layers and shapes in every call.
            labels: integer classes `(n,)`, in every call or in none.

        Raises:
            ValueError: other layers or shapes than before, or labels of another length.
        """
        packed = {
            name: layer if isinstance(layer, PackedGates) else PackedGates.pack(layer) for name, layer in gates.items()
        }
        shapes = {name: layer.shape for name, layer in packed.items()}
        if self.shapes and shapes != self.shapes:
            name = next(n for n in (*self.shapes, *shapes) if self.shapes.get(n) != shapes.get(n))
            raise ValueError(f"layer {name!r} has gates of shape {shapes.get(name)}, before {self.shapes.get(name)}")
        self.shapes = shapes
        bits = torch.cat([layer.bits for layer in packed.values()], dim=1)
        if labels is not None:
            labels = torch.as_tensor(labels)
            if labels.shape != (len(bits),):
                raise ValueError(f"labels have shape {tuple(labels.shape)}; expected ({len(bits)},), one a sample")
            self.labels.append(labels.to(bits.device, torch.int64))
        self.bits.append(bits)

    def reset(self) -> None:
        """Forgets the samples, and the layers that they had."""
        super().reset()
        self.shapes = {}

    def compute(self) -> Complexity:
        """The entropies over all samples, the same on every rank."""
        bits = dim_zero_cat(self.bits)
        labels = dim_zero_cat(self.labels) if len(self.labels) else None  # a list, or a tensor after a gather
        widths = [-(-torch.Size(shape).numel() // 8) for shape in self.shapes.values()]
        gates = {
            name: PackedGates(layer, shape)
            for (name, shape), layer in zip(self.shapes.items(), bits.split(widths, dim=1), strict=True)
        }
        return transformation_complexity(
            gates,
            labels,
            bandwidth=self.bandwidth,
            alpha=self.alpha,
            total_correlation=self.total_correlation,
            seed=self.seed,
        )

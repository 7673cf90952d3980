"""`netprism.gates.transformation_complexity` as a metric that sees its samples in batches and on several ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from netprism.gates.entropy import Bandwidth, GateComplexity, Gates, complexity_of_slices
from netprism.gates.packing import PackedGates
from netprism.gates.slices import GateSlices, deal, exchange
from netprism.metrics._plotted import PlottedMetric


class TransformationComplexity(PlottedMetric):
    """Entropies of gating states over all samples of all ranks; see `netprism.gates.transformation_complexity`.

    Samples must meet in pairs, so the state is the gates themselves, one bit each. No rank ever has all of them: in
    `compute` each of W ranks gets its slice of the gates of all samples, n d / (8 W) bytes beside those of its own
    samples, and does its part of the work on pairs. Every rank has to update at least once; a rank without a sample
    does so with gates of no rows.

    Args:
        bandwidth: "dim" or "variance".
        alpha: Factor of the bandwidth, one for all layers or one per layer; None: `default_alpha` of each layer.
        total_correlation: Whether to estimate TC.
        seed: Seed of the independent gates that TC compares with.
        options: Options of `torchmetrics.Metric`, such as `sync_on_compute`; no `process_group`.

    Example:
        >>> metric = TransformationComplexity()
        >>> metric.update({"relu": torch.tensor([[True, False], [True, True]])}, labels=torch.tensor([0, 1]))
        >>> metric.update({"relu": torch.tensor([[False, True]])}, labels=torch.tensor([1]))
        >>> round(metric.compute()["entropy"].item(), 3)
        1.585
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = None
    bits: list[Tensor]
    labels: list[Tensor]

    def __init__(
        self,
        bandwidth: Bandwidth = "dim",
        alpha: float | Mapping[str, float] | None = None,
        total_correlation: bool = True,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if options.get("process_group") is not None:
            raise ValueError("process_group is given; expected None: all ranks share the work")
        super().__init__(**options)
        self.bandwidth, self.alpha, self.total_correlation, self.seed = bandwidth, alpha, total_correlation, seed
        # Without samples: shapes, and what precedes the gates. They outlive a reset: of a group of metrics with equal
        # states, `MetricCollection` updates only the first one again.
        self.layers: dict[str, PackedGates] = {}
        # One state for all layers: their bytes side by side, so that a gather is one message.
        self.add_state("bits", default=[], dist_reduce_fx="cat")
        self.add_state("labels", default=[], dist_reduce_fx="cat")

    def update(self, gates: Mapping[str, Gates], labels: Tensor | None = None) -> None:
        """Adds samples.

        Args:
            gates: Layer -> bool `(n, ...)` or packed; the same layers and shapes in every call.
            labels: Integer classes `(n,)`, in every call or in none.

        Raises:
            ValueError: Layers or shapes differ from those of the first call, or the labels have another length.
        """
        packed = {
            name: layer if isinstance(layer, PackedGates) else PackedGates.pack(layer) for name, layer in gates.items()
        }
        before, now = ({name: layer.shape for name, layer in d.items()} for d in (self.layers, packed))
        if self.bits and now != before:
            name = next(n for n in (*before, *now) if before.get(n) != now.get(n))
            raise ValueError(f"layer {name!r} has gates of shape {now.get(name)}; expected {before.get(name)}")
        self.layers = {name: layer.first(0) for name, layer in packed.items()}
        bits = torch.cat([layer.bits for layer in packed.values()], dim=1)
        if labels is not None:
            labels = torch.as_tensor(labels)
            if labels.shape != (len(bits),):
                raise ValueError(f"labels have shape {tuple(labels.shape)}; expected ({len(bits)},), one per sample")
            self.labels.append(labels.to(bits.device, torch.int64))
        self.bits.append(bits)

    def complexity(self) -> GateComplexity:
        """The entropies over all samples of all ranks with the activation rates; every rank has to call it."""
        self.compute()
        return self._result

    def compute(self) -> dict[str, Tensor]:
        """The entropies over all samples in bits, the same on every rank; names as in `GateComplexity.quantities`."""
        if not self.bits:
            raise ValueError("the metric has no samples; expected a call of update() before")
        columns = self._columns if self._is_synced else deal(self.layers, 1)
        labels = torch.cat(self.labels) if self.labels else None
        self._result = complexity_of_slices(
            GateSlices.of_columns(self.bits, self.layers, columns),
            labels,
            self.bandwidth,
            self.alpha,
            self.total_correlation,
            self.seed,
        )
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in self._result.quantities().items()}

    def _sync_dist(self, *_: Any, **__: Any) -> None:
        """Fetches this rank's slice of the gates of all ranks' samples, and all labels, instead of all gates."""
        self._columns, bits, labels = exchange(self.bits, self.layers, self.labels)
        self.bits, self.labels = [bits], [] if labels is None else [labels]

    def _copy_state_dict(self) -> dict[str, Tensor | list[Any]]:
        """What `unsync` restores: the same tensors, since nothing changes one in place. A copy would double them."""
        return {"bits": list(self.bits), "labels": list(self.labels)}

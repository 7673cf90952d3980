"""The disentangled feature that `FeatureComponents` measures: the module's own, or one distilled next to a training."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch import distributed as dist

from netprism.callbacks._monitor_data import MonitorData
from netprism.callbacks._view import View, check_finite
from netprism.components.distillation import DisentangledFeature, Distiller, HasDisentangledFeature
from netprism.components.network_split import SplitNetwork
from netprism.metrics import ComponentMetric


def disentangled_feature(
    view: View,
    data: MonitorData,
    distiller: Distiller,
    layer: str | None,
    head: list[str] | None,
    steps: int,
    learning_rate: float,
) -> DisentangledFeature:
    """Returns the feature with the nets of the module, or with those of the distiller after `steps` more steps.

    A dry run takes two steps at most.

    Raises:
        ValueError: The feature is not finite, or the network has no such layer.
    """
    if isinstance(view.pl_module, HasDisentangledFeature):
        return view.pl_module.disentangled_feature()
    layer = view.layers([layer or view.default_layers(data)[-1]])[0]
    cut = SplitNetwork(view.model, layer, head, relative_to=view.network)
    steps = min(steps, 2) if view.is_dry_run else steps
    nets = distiller.distil(_pairs(view, cut, data, steps), steps, learning_rate)
    return DisentangledFeature(distiller.orders, cut, lambda x: nets(x.float()))


def take_nets_of_rank_0(distiller: Distiller) -> None:
    """Gives all ranks the nets of rank 0: on a GPU theirs differ by rounding."""
    if dist.is_available() and dist.is_initialized():
        for tensor in (distiller.state_dict() or {}).values():
            dist.broadcast(tensor, src=0)


@torch.no_grad()
def measured(view: View, disentangled: DisentangledFeature, data: MonitorData, split: str) -> ComponentMetric:
    """Returns the metric with this rank's batches."""
    metric = ComponentMetric(disentangled.orders).to(view.device)
    for i, batch in enumerate(view.batches(data, split)):
        with view.precision():
            if i == 0 and batch.labels is not None:
                disentangled.cut.find_head(batch.inputs)
            feature, approximations = disentangled.parts(batch.inputs)
            check_finite({disentangled.cut.layer: feature}, view.name)
            metric.update(feature, approximations, disentangled.head, batch.labels)
    return metric


def parts_of_images(view: View, disentangled: DisentangledFeature, data: MonitorData, count: int) -> dict[str, Tensor]:
    """Returns the first images `(n, ...)`, their feature `(n, ...)`, and Phi^(l) `(orders, n, ...)`, all on the CPU."""
    x = view.load(data, 0, count).inputs
    with view.precision():
        feature, approximations = disentangled.parts(x)
    shown = {"images": x.float(), "feature": feature, "approximations": torch.stack(approximations)}
    return {name: tensor.cpu() for name, tensor in shown.items()}


def _pairs(view: View, cut: SplitNetwork, data: MonitorData, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and their features, batch after batch and from the start again; on every rank the same."""
    for step in view.progress(range(steps), "distillation"):
        x = view.load(data, step % len(data.batches)).inputs
        with torch.no_grad(), view.precision():
            feature = cut.feature(x).float()
        check_finite({cut.layer: feature}, view.name)  # otherwise the nets would never recover
        yield x.float(), feature

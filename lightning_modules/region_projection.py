"""The projection of a trained network's regional features, for several layers at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn
from torch import distributed as dist
from torch.optim import Optimizer
from torchmetrics import MeanMetric

from netprism.distributed import all_gather_rows
from netprism.figures import knowledge as figures
from netprism.knowledge.importance import network_similarity, region_features, shared_importance
from netprism.knowledge.points import knowledge_points
from netprism.knowledge.region_projection import RegionProjector, align_loss, matching_regions, similarity_loss
from netprism.knowledge.sample_projection import Projection, fit_projection
from netprism.loggers import publish
from netprism.taps import tap

Batch = Sequence[Tensor]


@dataclass(frozen=True)
class _Seen:
    """What the teacher makes of images: regions {layer: (N, R, K)}, sample features `(N, d)`, logits `(N, C)`."""

    regions: dict[str, Tensor]
    samples: Tensor
    logits: Tensor


class RegionProjection(LightningModule):
    """Projects the regional features of layers of a frozen network into the space of its sample features' categories.

    Each batch passes the network once. Then the sample features are projected anew, from where the last batch left
    them, and the regions of each layer make `updates` steps, each on `compared` images of the batch. So a batch should
    be as large as memory allows, best all images (some hundreds are enough), and two or three epochs do. Each
    of several processes takes the batches of all, with the result of one process with a batch as large; only the
    importance of regions, which takes longest, is shared out.

    | key, once per epoch | meaning | unit | range | better |
    | --- | --- | --- | --- | --- |
    | `knowledge/similarity/<layer>` | L_similarity, mean of the steps | nats | 0 up | lower |
    | `knowledge/align/<layer>` | L_align, mean of the steps | 1 | -1 to 1 | lower |
    | `knowledge/importance_corr/<layer>` | Pearson's of importance and ||h|| in an image, mean | 1 | -1 to 1 | higher |
    | `knowledge/test_points/<layer>` | knowledge points, mean of the validation images | regions | 0 to R | |
    | `knowledge/test_reliable/<layer>` | those of the true class | regions | 0 to R | higher |
    | `knowledge/test_ratio/<layer>` | reliable / all, NaN where there is none | 1 | 0 to 1 | higher |

    Strengths are scaled so that their mean over the training images is that of the reference layer. At the end of the
    training `<log_dir>/figures/` has the regional features with an ellipsoid a class, and the film of the epochs.

    The network is not among the hyper-parameters, so give it when loading a checkpoint:
    `RegionProjection.load_from_checkpoint(path, teacher=..., weights_only=True)`; `forward` gives h.

    Args:
        teacher: the trained network, which returns logits; it is kept in eval mode and gets no gradient.
        input_shape: (C, H, W) of the images.
        layers: names of its layers with feature maps (K, H, W).
        reference: the layer whose mean strength all get; None: the last of `layers`.
        head: the layer whose input is the sample feature; None: the last fully connected layer.
        max_grid: rows and columns of regions; larger maps are averaged to so many.
        alpha: weight of L_align.
        kappa_max: concentration of regions without noise.
        temperature: T, of the softened outputs.
        tau: the least confidence of a knowledge point, at least 1 / C.
        updates: steps on a batch.
        compared: images in a step, and those that each is compared with in a step of its regions' importance.
        optimizer: parameters to optimiser, one for each layer; None: Adam with learning rate 0.03.

    Raises:
        ValueError: no layer, an unknown layer or reference; numbers out of range; no fully connected layer; what
            `netprism.knowledge.importance` and `netprism.knowledge.sample_projection` refuse.

    Source: "Visualizing the Emergence of Intermediate Visual Patterns in DNNs", section 3.3.
    """

    strengths: Tensor

    def __init__(
        self,
        teacher: nn.Module,
        input_shape: tuple[int, int, int],
        layers: list[str],
        reference: str | None = None,
        head: str | None = None,
        max_grid: int = 8,
        alpha: float = 0.1,
        kappa_max: float = 1000.0,
        temperature: float = 4.0,
        tau: float = 0.4,
        updates: int = 100,
        compared: int = 100,
        optimizer: OptimizerCallable | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["teacher", "optimizer"])
        self.automatic_optimization = False
        self.layers = list(dict.fromkeys(layers))
        self.reference = reference or (self.layers[-1] if self.layers else None)
        if not self.layers or self.reference not in self.layers or updates < 1 or compared < 3:
            found = f"layers {self.layers}, reference {reference!r}, updates {updates}, compared {compared}"
            raise ValueError(f"{found}: expected one of at least one layer, and at least 1 and 3")
        self.teacher = teacher.eval().requires_grad_(False)
        self.head = head or _last_linear(teacher)
        self.max_grid, self.alpha, self.kappa_max = max_grid, alpha, kappa_max
        self.temperature, self.tau, self.updates, self.compared = temperature, tau, updates, compared
        self.optimizer = optimizer
        seen = self._look(torch.zeros(1, *input_shape, device=next(iter(teacher.parameters())).device))
        dimensions = min(3, seen.samples.shape[1], seen.logits.shape[1])
        self.sample_projection = Projection(seen.samples.shape[1], seen.logits.shape[1], dimensions)
        self.maps = nn.ModuleList(RegionProjector(seen.regions[layer].shape[2], dimensions) for layer in self.layers)
        self.register_buffer("strengths", torch.ones(len(self.layers)))
        self.counts = nn.ModuleList(MeanMetric(nan_strategy="disable") for _ in range(2 * len(self.layers)))
        self.frames: list[figures.Frame] = []

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, C, H, W) to {layer: h (N, R, d')}, scaled to the mean strength of the reference layer."""
        return self._scaled(self._look(images))

    def train(self, mode: bool = True) -> RegionProjection:
        """Switches the projections; the teacher stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def configure_optimizers(self) -> list[Optimizer]:
        """An optimiser for each layer, so that each is projected as if it were alone."""
        return [
            torch.optim.Adam(m.parameters(), lr=0.03) if self.optimizer is None else self.optimizer(m.parameters())
            for m in self.maps
        ]

    def training_step(self, batch: Batch) -> None:
        """Steps of the projections of all layers on the batches of all processes."""
        # Images, and not features, whose last bit depends on the batch they are in: L-BFGS makes much of it.
        images, labels = all_gather_rows(batch[0]), all_gather_rows(batch[1])
        seen = self._look(images)
        initial = self.sample_projection if self.sample_projection.scale > 0 else None
        dimensions = len(self.sample_projection.matrix)
        fitted = fit_projection(
            seen.samples, seen.logits, dimensions=dimensions, temperature=self.temperature, initial=initial
        )
        self.sample_projection.load_state_dict(fitted.state_dict())
        optimizers = self.optimizers()
        for number, layer in enumerate(self.layers):
            optimizer = optimizers[number] if isinstance(optimizers, list) else optimizers
            values = self._descend(number, layer, seen, cast(Optimizer, optimizer))
            named = {f"knowledge/{what}/{layer}": value for what, value in values.items()}
            self.log_dict(named, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(seen.logits))
        projected = {layer: h.detach() for layer, h in self._scaled(seen).items()}
        directions = fitted.directions.to(seen.samples)
        frame = figures.frame(self.current_epoch, projected, labels, directions, range(len(directions)))
        self.frames = figures.thinned([*(old for old in self.frames if old["epoch"] < self.current_epoch), frame])

    def _descend(self, number: int, layer: str, seen: _Seen, optimizer: Optimizer) -> dict[str, Tensor]:
        """The steps of one layer on a batch; returns what to log."""
        region_map, regions = cast(RegionProjector, self.maps[number]), seen.regions[layer]
        if region_map.scale == 0:
            region_map.set_scale(regions)
        g = self.sample_projection(seen.samples).detach().to(regions)
        w = shared_importance(regions, seen.logits, temperature=self.temperature, others=self.compared)
        similarity, matches = network_similarity(seen.logits, self.temperature).to(regions), matching_regions(regions)
        total = torch.zeros(2, device=regions.device)
        for _ in range(self.updates):
            b = torch.randperm(len(regions))[: self.compared].to(regions.device)
            h = region_map(regions[b])
            similar = similarity_loss(h, matches[b][:, b], w[b], similarity[b][:, b], kappa_max=self.kappa_max)
            aligned = align_loss(h, g[b], w[b])
            # not backward(): DDP counts those, one a batch
            (slope,) = torch.autograd.grad(similar + self.alpha * aligned, region_map.matrix)
            region_map.matrix.grad = _mean_of_processes(slope)
            optimizer.step()
            total += torch.stack([similar, aligned]).detach()
        strengths = region_map(regions).detach().norm(dim=2)
        self.strengths[number] = strengths.mean()
        similar, aligned = total / self.updates
        return {"similarity": similar, "align": aligned, "importance_corr": _mean_correlation(strengths, w)}

    def on_validation_epoch_start(self) -> None:
        """Begins to count."""
        for count in self.counts:
            cast(MeanMetric, count).reset()

    def validation_step(self, batch: Batch) -> None:
        """Counts the knowledge points of a batch, once there are projections."""
        if self.trainer.sanity_checking or self.sample_projection.scale == 0:
            return
        directions, priors = self.sample_projection.directions, self.sample_projection.priors
        for number, h in enumerate(self(batch[0]).values()):
            found = knowledge_points(
                h, directions.to(h), priors.to(h), batch[1], tau=self.tau, kappa_max=self.kappa_max
            )
            cast(MeanMetric, self.counts[2 * number]).update(found.mask.sum(dim=1).float())
            cast(MeanMetric, self.counts[2 * number + 1]).update(found.reliable.sum(dim=1).float())

    def on_validation_epoch_end(self) -> None:
        """Logs the counts over all images of all processes."""
        if self.trainer.sanity_checking or self.sample_projection.scale == 0:
            return
        values = [cast(MeanMetric, count).compute() for count in self.counts]
        for layer, points, reliable in zip(self.layers, values[::2], values[1::2], strict=True):
            found = {"points": points, "reliable": reliable, "ratio": reliable / points}
            self.log_dict({f"knowledge/test_{what}/{layer}": value for what, value in found.items()}, sync_dist=True)

    on_test_epoch_start, test_step, on_test_epoch_end = (
        on_validation_epoch_start, validation_step, on_validation_epoch_end
    )  # fmt: skip

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the frames of the film."""
        checkpoint["region_frames"] = self.frames

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on with the film."""
        self.frames = checkpoint["region_frames"]

    def on_train_end(self) -> None:
        """Draws the regional features, into the run's folder and to W&B."""
        publish(self.trainer, self._draw)

    def _draw(self, folder: Path) -> list[Path]:
        return figures.draw_projected(self.frames, folder, "knowledge")

    def _scaled(self, seen: _Seen) -> dict[str, Tensor]:
        reference = self.strengths[self.layers.index(cast(str, self.reference))]
        factors = torch.where(self.strengths > 0, reference / self.strengths, 1.0)
        return {
            layer: factor * region_map(seen.regions[layer])
            for layer, region_map, factor in zip(self.layers, self.maps, factors, strict=True)
        }

    @torch.no_grad()
    def _look(self, images: Tensor) -> _Seen:
        with tap(self.teacher, self.layers) as features, tap(self.teacher, [self.head], inputs=True) as samples:
            logits = self.teacher(images)
        regions = {layer: region_features(features[layer], self.max_grid) for layer in self.layers}
        return _Seen(regions, samples[self.head].flatten(1), logits)


def _mean_of_processes(slope: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(slope)
        slope /= dist.get_world_size()
    return slope


def _mean_correlation(strengths: Tensor, importance: Tensor) -> Tensor:
    """Pearson's correlation of two `(N, R)` in each image, mean of those where both vary; NaN where there is none."""
    a, b = (values - values.mean(dim=1, keepdim=True) for values in (strengths, importance))
    lengths = a.norm(dim=1) * b.norm(dim=1)
    varies = lengths > 0
    correlation: Tensor = ((a * b).sum(dim=1)[varies] / lengths[varies]).mean()
    return correlation


def _last_linear(net: nn.Module) -> str:
    names = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        raise ValueError(f"{type(net).__name__} has no fully connected layer: name the layer of the logits, head=")
    return str(names[-1])

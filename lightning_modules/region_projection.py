"""The projection of a trained network's regional features, for several layers at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from netprism.distributed import all_gather_rows
from netprism.figures import knowledge as figures
from netprism.figures.projection import class_names
from netprism.knowledge.epoch_projection import EpochProjection, NetworkFeatures, check_layers, network_features
from netprism.knowledge.importance import row_correlations
from netprism.knowledge.points import check_tau
from netprism.lightning_modules._base import TeacherModule
from netprism.loggers import publish
from netprism.metrics.knowledge_points import KnowledgePointMetric
from netprism.taps import last_linear

Batch = Sequence[Tensor]


class RegionProjection(TeacherModule):
    """Projects the regional features of layers of a frozen network into the space of its sample features' categories.

    Each batch passes the network once. Then the sample features are projected, from where the last batch ended, and the
    regions of each layer are fitted to the minimum, as by the callback `KnowledgePoints`: with the same images, seed
    and steps both count the same knowledge points. A batch should be as large as memory allows, best all images (some
    hundreds are enough), and two or three epochs do. Several ranks gather their images and give the result of one rank;
    only the comparison of regions is distributed over them.

    | key, once per epoch | meaning | unit | range | better |
    | --- | --- | --- | --- | --- |
    | `knowledge/similarity/<layer>` | L_similarity, at the end of the fit | nat | 0 up | lower |
    | `knowledge/align/<layer>` | L_align, at the end of the fit | 1 | -1 to 1 | lower |
    | `knowledge/importance_corr/<layer>` | Pearson's of importance and ||h|| in an image, mean | 1 | -1 to 1 | higher |
    | `knowledge/points/<layer>` | knowledge points, mean of the training images | region | 0 to R | |
    | `knowledge/reliable/<layer>` | those of the true class | region | 0 to R | higher |
    | `knowledge/ratio/<layer>` | reliable / all, NaN where there is none | 1 | 0 to 1 | higher |

    The last three of the validation images are `knowledge/test/points/<layer>`, ... Strengths are scaled so that their
    mean over the training images is that of the reference layer. At the end of the training, `<log_dir>/figures/` has
    the regional features with an ellipsoid per class, and the film of the epochs, with strengths before that scaling.

    The network is not among the hyper-parameters, so give it when loading a checkpoint:
    `RegionProjection.load_from_checkpoint(path, teacher=..., weights_only=True)`; `forward` gives h.

    Args:
        teacher: The trained network; it is kept in eval mode and gets no gradient.
        layers: Names of its layers with feature maps (K, H, W).
        input_shape: Shape (C, H, W) of the images; None for the data module's `shape`.
        reference_layer: The layer whose mean strength all layers get; None for the last of `layers`.
        logits_layer: The layer of the logits, whose input is the sample feature; None for the last fully connected one.
        max_grid: Largest number of rows and of columns of regions; larger maps are averaged to it.
        align_weight: Weight of L_align.
        kappa_max: Concentration of regions without noise.
        temperature: Temperature T of the softened outputs.
        tau: The least confidence of a knowledge point, at least 1 / C.
        steps: Largest number of L-BFGS steps per batch and layer.
        num_compared: Number of images of a random group that each is compared with.
        seed: Seed of the fits.

    Raises:
        ValueError: There is no layer, or a layer or the reference layer is unknown; a number is out of range; there is
            no fully connected layer; logits are already probabilities, features are constant or not finite.

    Source: Li et al. 2021, sections 3.3 and 3.4, https://arxiv.org/abs/2111.03505.
    """

    def __init__(
        self,
        teacher: nn.Module,
        layers: list[str],
        input_shape: tuple[int, int, int] | None = None,
        reference_layer: str | None = None,
        logits_layer: str | None = None,
        max_grid: int = 8,
        align_weight: float = 1.0,
        kappa_max: float = 1000.0,
        temperature: float = 4.0,
        tau: float = 0.4,
        steps: int = 100,
        num_compared: int = 20,
        seed: int = 0,
    ) -> None:
        super().__init__(teacher, input_shape)
        self.save_hyperparameters(ignore=["teacher"])
        self.automatic_optimization = False
        self.layers = check_layers(layers, reference_layer)
        if steps < 1 or num_compared < 2:
            raise ValueError(f"steps is {steps} and num_compared is {num_compared}; expected at least 1 and 2")
        check_tau(tau)
        self.logits_layer, self.max_grid = logits_layer or last_linear(self.teacher), max_grid
        self._make = partial(
            EpochProjection, reference_layer=reference_layer, tau=tau, steps=steps, num_compared=num_compared,
            align_weight=align_weight, kappa_max=kappa_max, temperature=temperature, seed=seed,
        )  # fmt: skip
        self.train_points, self.test_points = (KnowledgePointMetric(self.layers) for _ in range(2))
        self.frames: list[figures.Frame] = []
        if input_shape is not None:
            self.configure_model()

    def build(self, input_shape: tuple[int, ...]) -> None:
        """Makes the projections."""
        self.projection = self._make(self._features(self.example(input_shape)))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps images (N, C, H, W) to {layer: h (N, R, d')}, scaled to the mean strength of the reference layer."""
        projected: dict[str, Tensor] = self.projection(self._features(images))
        return projected

    def configure_optimizers(self) -> Optimizer:
        """Returns an optimiser that changes nothing: its steps count the batches, each of which has fits of its own."""
        return torch.optim.SGD(self.projection.parameters(), lr=0.0)

    def training_step(self, batch: Batch) -> None:
        """Fits the projections of all layers to the batches of all ranks together."""
        # Images, and not features, whose last bit depends on the batch they are in: L-BFGS amplifies it.
        images, labels = all_gather_rows(batch[0]), all_gather_rows(batch[1])
        features = self._features(images)
        self.projection.fit_samples(features)
        projected = {}
        for layer in self.layers:
            projected[layer], importance = self.projection.fit_regions(layer, features)
            similarity, align = self.projection.projector(layer).losses
            correlation = row_correlations(projected[layer].norm(dim=2), importance).mean()
            values = {"similarity": similarity, "align": align, "importance_corr": correlation}
            named = {f"knowledge/{key}/{layer}": value for key, value in values.items()}
            self.log_dict(named, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(labels))
        # Every rank counts all images, which leaves means and ratios unchanged.
        self.train_points.update(self.projection.count(features, labels))
        directions = self.projection.samples.directions.float()
        names = class_names(range(len(directions)), self.trainer)
        frame = figures.frame(self.current_epoch, projected, labels, directions, names)
        self.frames = figures.with_frame(self.frames, frame)
        self.optimizers().step()  # type: ignore[union-attr]  # without a step Lightning saves no checkpoint

    def on_train_epoch_end(self) -> None:
        """Logs the knowledge points of the training images."""
        self._report(self.train_points, "")

    def validation_step(self, batch: Batch) -> None:
        """Counts the knowledge points of a batch, once there are projections."""
        if self._is_fitted:
            self.test_points.update(self.projection.count(self._features(batch[0]), batch[1]))

    def on_validation_epoch_end(self) -> None:
        """Logs the knowledge points of all validation images."""
        if self._is_fitted:
            self._report(self.test_points, "test/")

    test_step, on_test_epoch_end = validation_step, on_validation_epoch_end

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the frames of the film."""
        checkpoint["region_frames"] = self.frames

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continues the film."""
        self.frames = checkpoint["region_frames"]

    def on_train_end(self) -> None:
        """Draws the regional features, into the run's folder and to W&B."""
        publish(self.trainer, self._draw)

    def _draw(self, folder: Path) -> list[Path]:
        return figures.draw_projected(self.frames, folder, "knowledge")

    @property
    def _is_fitted(self) -> bool:
        return not self.trainer.sanity_checking and bool(self.projection.samples.scale > 0)

    def _report(self, metric: KnowledgePointMetric, infix: str) -> None:
        values = {f"knowledge/{infix}{key}": value for key, value in metric.compute().items()}
        metric.reset()
        self.log_dict(values, sync_dist=True)  # the same on all ranks; otherwise Lightning warns

    def _features(self, images: Tensor) -> NetworkFeatures:
        run = partial(self.teacher, images)
        return network_features(self.teacher, run, self.layers, self.logits_layer, max_grid=self.max_grid)

"""Knowledge points of layers, epoch by epoch."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from netprism.callbacks._class_images import collect_features, first_images, images_of_classes
from netprism.callbacks._monitor import Monitor, check_at_least
from netprism.callbacks._monitor_data import MonitorData
from netprism.callbacks._view import View
from netprism.figures import knowledge as figures
from netprism.figures.projection import class_names
from netprism.knowledge.epoch_projection import EpochProjection, NetworkFeatures, check_layers
from netprism.knowledge.points import KnowledgePointCounts, check_tau, usual_tau
from netprism.knowledge.sample_projection import output_entropy, soft_targets, strength_correlation
from netprism.metrics.knowledge_points import KnowledgePointMetric


class KnowledgePoints(Monitor):
    """Counts the regions of images that decide for a category by themselves, and those that decide correctly.

    Sample features (the input of the last fully connected layer) and regional features of some layers are projected
    into three dimensions (two with two classes). The sample projection starts from the one before and is rotated onto
    it; that of regions starts from the samples' directions and runs to its minimum. The regions' strengths in all
    layers are scaled to the mean of a reference layer.

    | key | meaning | unit | range | better |
    | --- | --- | --- | --- | --- |
    | `knowledge/points/<layer>` | knowledge points, mean of the images | region | 0 to R | |
    | `knowledge/reliable/<layer>` | those of the true class | region | 0 to R | higher |
    | `knowledge/ratio/<layer>` | reliable / all, NaN where there is none | 1 | 0 to 1 | higher |
    | `knowledge/strength_uncertainty_corr` | Pearson's, ||g|| and softened output's entropy | 1 | -1 to 1 | lower |

    At the end of the training, `<log_dir>/figures` gets curves of the counts, knowledge points outlined on images, the
    reliable ones followed from layer to layer, regional features with an ellipsoid per class, and a film of the epochs.

    Cost per measurement and layer, N images of R regions with K channels in groups of B = `num_compared` + 1: K N B R^2
    multiply-adds to compare regions, distributed over the ranks, and about 50 N B R for each of 15 to 60 evaluations of
    the projection's loss. In all 1.2 to 1.7 % of an epoch of ResNet-20 on 50 000 images, see docs/scaling.md. Memory:
    45 N B R bytes.

    Args:
        layers: Names of layers with feature maps (K, H, W); a vector is one region. None: see `View.default_layers`.
        images_per_class: Training images per class; all if there are fewer, with a warning.
        classes: Number of classes, drawn at random where there are more; all if there are fewer, with a warning.
        tau: The least confidence of a knowledge point, at least 1 / classes; None for .4, or .6 of two classes.
        reference_layer: The layer whose mean strength all get; None for the last of `layers`.
        logits_layer: The layer of the logits; None for the last fully connected one that runs.
        max_grid: Largest number of rows and of columns of regions; larger maps are averaged to it.
        steps: Largest number of L-BFGS steps for the projection of a layer's regions; most end before.
        num_compared: Images of a random group that each is compared with; the paper has 100, drawn in each step.
        name: Prefix of the logged keys.
        options: The other options are those of `Monitor`, without `num_images` and `test_data`.

    Source: Li et al. 2021, section 3, https://arxiv.org/abs/2111.03505.
    """

    def __init__(
        self,
        layers: list[str] | None = None,
        images_per_class: int = 50,
        classes: int = 10,
        tau: float | None = None,
        reference_layer: str | None = None,
        logits_layer: str | None = None,
        max_grid: int = 8,
        steps: int = 100,
        num_compared: int = 20,
        name: str = "knowledge",
        **options: Any,
    ) -> None:
        check_at_least(images_per_class=(images_per_class, 1), classes=(classes, 2), max_grid=(max_grid, 1))
        check_at_least(steps=(steps, 1), num_compared=(num_compared, 2))
        check_tau(usual_tau(classes) if tau is None else tau)
        options |= {"num_images": images_per_class * classes, "test_data": None}
        super().__init__(name, **options)
        self.layers = [] if layers is None else check_layers(layers, reference_layer)  # []: not found yet
        self.reference_layer, self.logits_layer, self.max_grid = reference_layer, logits_layer, max_grid
        self.images_per_class, self.classes, self.tau = images_per_class, classes, tau
        self.steps, self.num_compared = steps, num_compared
        self.chosen: tuple[MonitorData, list[int]] | None = None  # images, and their classes
        self.projection: EpochProjection | None = None
        self._state: dict[str, Tensor] = {}  # state of a projection that is not made yet
        self.frames: list[figures.Frame] = []  # frames of the film
        self.images: Tensor | None = None  # first images, to draw on
        self.last: dict[str, tuple[tuple[int, int], KnowledgePointCounts]] = {}  # rows and columns, knowledge points

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forgets the data of another trainer and, in a training from the start, the measurements."""
        super().setup(trainer, pl_module, stage)
        self.chosen = None
        if stage == "fit" and trainer.global_step == 0:
            self.projection, self._state, self.frames = None, {}, []

    def measure(self, view: View, epoch: int) -> dict[str, float]:
        """The table above."""
        choice = self.classes, self.images_per_class, self.batch_size, self.seed
        data, categories = self.chosen = self.chosen or images_of_classes(view, self._given["train"], *choice)
        self.layers = view.layers(self.layers or view.default_layers(data, "maps"))
        features, labels = collect_features(view, data, categories, self.layers, self.logits_layer, self.max_grid)
        projection = self.projection = self.projection or self._make(view, features)
        try:
            g = projection.fit_samples(features).float()
        except ValueError as error:  # the network has collapsed; it has no knowledge points, and may recover
            rank_zero_warn(f"{self.name}: no categories in epoch {epoch} ({error})")
            none = {"points/": 0.0, "reliable/": 0.0, "ratio/": math.nan}
            return {"strength_uncertainty_corr": math.nan} | {k + name: none[k] for k in none for name in self.layers}
        h = {layer: projection.fit_regions(layer, features)[0] for layer in view.progress(self.layers, "layers")}
        found = projection.count(features, labels)
        self.images = first_images(view, data, figures.IMAGES)
        self.last = {layer: (features.grid(layer), found[layer]) for layer in self.layers}
        directions, names = projection.samples.directions.float(), class_names(categories, data.dataset, view.trainer)
        self.frames = figures.with_frame(self.frames, figures.frame(epoch, h, labels, directions, names))
        correlation = strength_correlation(g.norm(dim=1), output_entropy(soft_targets(features.logits)))
        counts = KnowledgePointMetric(self.layers).to(view.device)(found)  # no sum: each rank has all images
        return {"strength_uncertainty_corr": correlation} | {key: float(value) for key, value in counts.items()}

    def draw(self, trainer: pl.Trainer) -> None:
        """Draws the figures into the run's folder and to W&B."""
        if self.frames:
            drawn = self.history, self.frames, self.images, self.last
            self.publish(trainer, lambda folder: figures.draw(*drawn, folder, self.name))

    def state_dict(self) -> dict[str, Any]:
        """What has been measured, what the figures show, and the projections to start from."""
        state = self.projection.state_dict() if self.projection else self._state
        last = {layer: (grid, dict(vars(found))) for layer, (grid, found) in self.last.items()}
        drawn = {"frames": self.frames, "images": self.images, "last": last}
        return super().state_dict() | drawn | {"projection": {k: v.cpu() for k, v in state.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues where a run was stopped."""
        super().load_state_dict(state_dict)
        self.projection, self._state, self.frames = None, state_dict["projection"], state_dict["frames"]
        self.images = state_dict["images"]
        self.last = {layer: (grid, KnowledgePointCounts(**v)) for layer, (grid, v) in state_dict["last"].items()}

    def _make(self, view: View, features: NetworkFeatures) -> EpochProjection:
        tau = usual_tau(len(self.chosen[1]) if self.chosen else self.classes) if self.tau is None else self.tau
        given: dict[str, Any] = {"tau": tau, "num_compared": self.num_compared, "seed": self.seed}
        made = EpochProjection(features, self.reference_layer, steps=2 if view.is_dry_run else self.steps, **given)
        if self._state:
            made.load_state_dict(self._state)
        return made.to(view.device)

"""Knowledge points of layers, epoch by epoch."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import Dataset

from netprism.callbacks._monitor import Monitor, OnError
from netprism.callbacks._view import View, callable_and_network, check_finite
from netprism.callbacks._monitor_data import MonitorData, inputs_and_labels, monitor_data
from netprism.callbacks._region_data import Seen, gathered, images_of_classes, last_linear, sides_of
from netprism.distributed import all_gather_object, run_on_all_ranks
from netprism.figures import knowledge as figures
from netprism.knowledge.importance import region_features, shared_importance
from netprism.knowledge.points import KnowledgePoints as Points
from netprism.knowledge.points import knowledge_points
from netprism.knowledge.region_projection import fit_region_projection
from netprism.knowledge.sample_projection import (
    Projection,
    descend,
    lbfgs,
    output_entropy,
    rotation_onto,
    soft_targets,
    strength_correlation,
)
from netprism.loggers import is_dry_run
from netprism.taps import tap


class KnowledgePoints(Monitor):
    """Counts the regions of images that decide for a category by themselves, and those that decide rightly.

    After each epoch sample features (what goes into the last fully connected layer) and the regional features of some
    layers are projected into three dimensions (two with two classes), anew from where the epoch before left them, and
    turned to lie on it. The regions' strengths in all layers are scaled to the mean strength of a reference layer.

    | key | meaning | unit | range | better |
    | --- | --- | --- | --- | --- |
    | `knowledge/points/<layer>` | knowledge points, mean of the images | regions | 0 to R | |
    | `knowledge/reliable/<layer>` | those of the true class | regions | 0 to R | higher |
    | `knowledge/ratio/<layer>` | reliable / all, NaN where there is none | 1 | 0 to 1 | higher |
    | `knowledge/strength_uncertainty_corr` | Pearson's, ||g|| and softened output's entropy | 1 | -1 to 1 | lower |

    At the end of the training figures go to `<log_dir>/figures`: counts over epochs, knowledge points outlined on
    images, regional features of each layer with an ellipsoid a class, and the film of the epochs as a GIF and a page.

    Cost of a measurement and layer, N images of R regions with K channels: `others` * 40 K N R^2 multiply-adds for the
    importance, shared by the processes, K N^2 R^2 for the matches, and some 50 B^2 R d' for each of `steps` (B = 64):
    a tenth of the epoch of ResNet-20 on 50 000 images, hence every fifth epoch by default; see docs/scaling.md.
    Memory: 4 K N R bytes, 2 N^2 R bytes for the matches, and 100 MB. Layers of more than `max_grid` x `max_grid`
    positions are averaged to so many.

    Args:
        layers: names of layers with feature maps (K, H, W); a vector is one region, which is said.
        images_per_class: training images of each class; all if there are fewer, which is said.
        classes: how many classes, drawn at random where there are more; all if there are fewer, which is said.
        tau: the least confidence of a knowledge point, at least 1 / classes.
        every_n_epochs: measure after every n-th epoch, and after the last one unless EarlyStopping makes it the last.
        measure_untrained: also measure before the first step, logged as epoch -1.
        reference: the layer whose mean strength all get; None: the last of `layers`.
        head: the layer that makes the logits; None: the last `nn.Linear`.
        max_grid: rows and columns of regions, at most.
        steps: of Adam on the projection of a layer's regions.
        others: images that each is compared with in a step of its regions' importance. The paper has 100; counts and
            ratios of six seeds spread as much with 20, at a fifth of the cost.
        batch_size: images in a forward pass.
        seed: of the choice of classes and images, and of the fits.
        name: prefix of the keys; give each of several instances its own.
        on_error: "raise" or "warn": whether an error ends the training, or costs this measurement and a line.
        train_data: a map-style data set to use in place of the trainer's training data.
        unpack: batch -> (inputs, integer labels); by default the first two items, or the usual keys of a dict.

    Raises:
        ValueError: no layer, an unknown reference, numbers out of range; later, an unknown layer (with the list of
            layers), images without labels, fewer than three images or two classes, features that are not finite.

    Source: "Visualizing the Emergence of Intermediate Visual Patterns in DNNs", section 3.
    """

    def __init__(
        self,
        layers: list[str],
        images_per_class: int = 50,
        classes: int = 10,
        tau: float = 0.4,
        every_n_epochs: int = 5,
        measure_untrained: bool = True,
        reference: str | None = None,
        head: str | None = None,
        max_grid: int = 8,
        steps: int = 100,
        others: int = 20,
        batch_size: int = 128,
        seed: int = 0,
        name: str = "knowledge",
        on_error: OnError = "raise",
        train_data: Dataset[Any] | None = None,
        unpack: Callable[[Any], tuple[Any, Tensor | None]] = inputs_and_labels,
    ) -> None:
        super().__init__(
            name, batch_size=batch_size, seed=seed, every_n_epochs=every_n_epochs, measure_untrained=measure_untrained,
            on_error=on_error, train_data=train_data, unpack=unpack,
        )  # fmt: skip
        least = {"images_per_class": 1, "classes": 2, "max_grid": 1, "steps": 1, "others": 2, "batch_size": 1}
        for option, low in least.items():
            if locals()[option] < low:
                raise ValueError(f"{option} is {locals()[option]}; expected a number >= {low}")
        if not 0 < tau < 1:
            raise ValueError(f"tau is {tau}; expected more than 0 and less than 1")
        self.layers = list(dict.fromkeys([layers] if isinstance(layers, str) else layers))
        if not self.layers or (reference is not None and reference not in self.layers):
            raise ValueError(
                f"layers are {self.layers} and reference {reference!r}; expected one of at least one layer"
            )
        self.reference, self.head = reference or self.layers[-1], head
        self.images_per_class, self.classes, self.tau = images_per_class, classes, tau
        self.max_grid, self.steps, self.others = max_grid, steps, others
        self.batch_size, self.seed, self.train_data, self.unpack = batch_size, seed, train_data, unpack
        self.categories: list[int] = []  # the chosen classes
        self.projection: dict[str, Tensor] = {}  # of the samples, its state after the last measurement
        self.matrices: dict[str, Tensor] = {}  # Lambda of each layer, likewise
        self.frames: list[figures.Frame] = []  # of the film
        self.images: Tensor | None = None  # the first ones, to draw on
        self.last: dict[str, tuple[tuple[int, int], Points]] = {}  # of each layer: rows and columns, knowledge points
        self.sides: dict[str, tuple[int, int]] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forgets the data of another trainer and, in a training from the start, the measurements."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and trainer.global_step == 0:
            self.projection, self.matrices, self.frames, self.sides = {}, {}, [], {}

    def measure(self, view: View, epoch: int) -> dict[str, float]:
        """The table above."""
        self._view, trainer, pl_module = view, view.trainer, view.pl_module
        data = run_on_all_ranks(partial(self._choose, trainer))
        own = run_on_all_ranks(partial(self._look, trainer, pl_module, data))
        self.sides = all_gather_object(self.sides)[0]  # a rank without images has seen no layer
        seen = run_on_all_ranks(partial(gathered, own, self.categories, pl_module.device))
        try:
            projection = self._project(seen, trainer.is_global_zero)
        except ValueError as error:  # a network whose features have collapsed trains on, and has no knowledge points
            rank_zero_warn(f"{self.name}: no categories in epoch {epoch} ({error})")
            return self._nothing()
        samples = projection(seen.samples).detach().float()
        entropies = output_entropy(soft_targets(seen.logits))
        values = {"strength_uncertainty_corr": strength_correlation(samples.norm(dim=1), entropies)}
        projected = {
            layer: self._project_regions(trainer, layer, seen, samples)
            for layer in self._view.progress(self.layers, "layers")
        }
        strength = float(projected[self.reference].norm(dim=2).mean()) or None
        directions, priors = projection.directions.float(), projection.priors.float()
        points: dict[str, Points] = {}
        for layer, h in projected.items():
            found = knowledge_points(h, directions, priors, seen.labels, strength=strength, tau=self.tau)
            values[f"points/{layer}"] = found.points / len(h)
            values[f"reliable/{layer}"] = found.reliable_points / len(h)
            values[f"ratio/{layer}"] = found.ratio
            points[layer] = found
        self.last = {layer: (self.sides[layer], found) for layer, found in points.items()}
        frame = figures.frame(epoch, projected, seen.labels, directions, self.categories)
        self.frames = figures.thinned([*(old for old in self.frames if old["epoch"] < epoch), frame])
        return values

    def draw(self, trainer: pl.Trainer) -> None:
        """Draws the figures, into the run's folder and to W&B."""
        if self.frames:
            self.publish(
                trainer,
                lambda folder: figures.draw(self.history, self.frames, self.images, self.last, folder, self.name),
            )

    def state_dict(self) -> dict[str, Any]:
        """What has been measured, and where the projections go on."""
        return super().state_dict() | {
            "projection": self.projection, "matrices": self.matrices, "frames": self.frames
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where a run was stopped."""
        super().load_state_dict(state_dict)
        self.projection, self.matrices = state_dict["projection"], state_dict["matrices"]
        self.frames = state_dict["frames"]

    def _choose(self, trainer: pl.Trainer) -> MonitorData:
        """The images, the same ones in every epoch."""
        known = self._data.get("train")
        if known is None:
            data = monitor_data(trainer, "train", sys.maxsize, self.batch_size, self.seed, self.train_data)
            assert data is not None  # only "test" may be missing
            each = min(self.images_per_class, 3) if is_dry_run(trainer) else self.images_per_class
            known, self.categories = images_of_classes(data, self.classes, each, self.batch_size, self.name)
            self._data["train"] = known
        return known

    def _look(self, trainer: pl.Trainer, pl_module: pl.LightningModule, data: MonitorData) -> dict[int, Seen]:
        """What the network makes of this process's batches."""
        _, network = callable_and_network(pl_module)
        head = self.head or last_linear(network)
        seen = {}
        for number in self._view.progress(data.shard(trainer.global_rank, trainer.world_size), "images"):
            inputs, labels = self.unpack(data.load(number))
            if labels is None:
                raise ValueError("a batch has no integer labels")
            with (
                tap(network, self.layers, detach=True) as features,
                tap(network, [head], detach=True) as logits,
                tap(network, [head], detach=True, inputs=True) as samples,
            ):
                self._view.forward(inputs)
            if number == 0 and isinstance(inputs, Tensor) and inputs.ndim == 4:
                self.images = inputs[: figures.IMAGES].detach().float().cpu()
            self._note_sides(features)
            check_finite(features, self.name)
            regions = {layer: region_features(features[layer].float(), self.max_grid).cpu() for layer in self.layers}
            seen[number] = Seen(regions, samples[head].flatten(1).float().cpu(), logits[head].float().cpu(), labels)
        return seen

    def _note_sides(self, features: dict[str, Tensor]) -> None:
        if self.sides:
            return
        self.sides = {layer: sides_of(features[layer], self.max_grid) for layer in self.layers}
        for layer in (layer for layer, sides in self.sides.items() if sides == (1, 1)):
            rank_zero_warn(f"{self.name}: layer {layer!r} has one region, the whole image")

    def _project(self, seen: Seen, is_first: bool) -> Projection:
        """The sample projection, from where the last one was, and turned onto it.

        `descend` adds up over processes. Nothing added to all that there is leaves it as it is in one process, to the
        bit; the halves of two would be added in another order, and L-BFGS makes much of little differences.
        """
        if not seen.samples.isfinite().all():  # here and not in `descend`, where those without a share would wait
            raise ValueError("sample features have values that are NaN or infinite")
        size, categories = seen.samples.shape[1], seen.logits.shape[1]
        projection = Projection(size, categories, min(3, size, categories)).to(seen.samples.device)
        if self.projection:
            projection.load_state_dict(self.projection)
            projection.scale.copy_(seen.samples.double().norm(dim=1).mean())
        before = projection.directions
        share = slice(None) if is_first else slice(0)
        targets = soft_targets(seen.logits)
        descend(projection, seen.samples[share], targets[share], lbfgs([projection.matrix]))
        if self.projection:
            projection.rotate(rotation_onto(projection.directions, before))
        self.projection = {key: value.cpu() for key, value in projection.state_dict().items()}
        return projection

    def _project_regions(self, trainer: pl.Trainer, layer: str, seen: Seen, samples: Tensor) -> Tensor:
        """H `(N, R, 3)` of a layer. Each process estimates the importance of its share of the images."""
        regions = seen.regions[layer]
        importance = shared_importance(regions, seen.logits, others=self.others, seed=self.seed)
        start, steps = self.matrices.get(layer), 2 if is_dry_run(trainer) else self.steps
        fit = partial(fit_region_projection, regions, samples, importance, seen.logits)
        fitted = run_on_all_ranks(partial(fit, start=start, steps=steps, seed=self.seed))
        matrix: Tensor = trainer.strategy.broadcast(fitted.matrix.detach())  # sums on a GPU may differ in the last bit
        fitted.matrix.copy_(matrix)
        self.matrices[layer] = matrix.cpu()
        projected: Tensor = fitted(regions)
        return projected

    def _nothing(self) -> dict[str, float]:
        counts = {f"{key}/{layer}": 0.0 for key in ("points", "reliable") for layer in self.layers}
        return {"strength_uncertainty_corr": math.nan} | counts | {f"ratio/{layer}": math.nan for layer in self.layers}

"""An attack on the network, epoch by epoch, and what becomes of the regions of images."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_warn

from netprism.callbacks._along_attack import along_attack
from netprism.callbacks._class_images import collect_features, images_of_classes
from netprism.callbacks._monitor import Monitor, check_at_least
from netprism.callbacks._monitor_data import MonitorData
from netprism.callbacks._view import View
from netprism.figures import attack as figures
from netprism.interventions.pixels import Pixels
from netprism.interventions.regions import region_changes
from netprism.knowledge.epoch_projection import EpochProjection
from netprism.knowledge.points import check_tau


class AttackedRegions(Monitor):
    """Attacks the network with projected gradient descent, and follows regional features along the attack.

    Regional features are projected as those of `KnowledgePoints`, fitted anew in each measurement on the images before
    the attack. A region is important if its feature decides for a class with a confidence above `tau`.

    | key | meaning | unit | range | better |
    | --- | --- | --- | --- | --- |
    | `attack/accuracy` | fraction of correct images under the attack | 1 | 0 to 1 | higher |
    | `attack/clean_accuracy` | the same without the attack | 1 | 0 to 1 | higher |
    | `attack/cosine/<layer>` | cosine of a region's feature before and after, mean | 1 | -1 to 1 | higher |
    | `attack/strength/<layer>` | relative change of the mean strength of regions | 1 | -1 up | |
    | `attack/redirected/<layer>` | important regions that become so for another class | region | 0 to R | lower |
    | `attack/damaged/<layer>` | the same, by way of a step where they are not important | region | 0 to R | lower |
    | `attack/created/<layer>` | unimportant regions that become important | region | 0 to R | lower |
    | `attack/lost/<layer>` | important regions that become unimportant | region | 0 to R | lower |
    | `attack/utility/<layer>` | p(true class) before, of regions important for the wrong one after | 1 | 0 to 1 | |
    | `attack/new/<layer>` | fraction of these regions with at most `tau` before | 1 | 0 to 1 | |

    Numbers of regions are means over the images; the last two are NaN where no image is taken for a wrong class. At the
    end of the training `<log_dir>/figures` gets curves along the attack, the four kinds of regions on images, and
    histograms of p(true class).

    Cost per measurement: `steps` passes forward and back and `steps` + 1 forward, and the fit of `KnowledgePoints`.

    Args:
        layers: Names of layers with feature maps; None: see `View.default_layers`.
        eps: Largest change of a pixel in [0, 1].
        steps: Number of steps of the attack, each of eps / 10.
        images_per_class: Training images per class.
        classes: Number of classes, drawn at random where there are more.
        tau: The least confidence of an important region, at least 1 / classes.
        pixels: The range of the images; None for `mean` and `std` of the data module, or [0, 1] where it has none.
        logits_layer: The layer of the logits; None for the last fully connected one that runs.
        max_grid: Largest number of rows and of columns of regions.
        name: Prefix of the logged keys.
        options: The other options are those of `Monitor`, without `num_images` and `test_data`.

    Source: Li et al. 2021, figures 7 and 8, https://arxiv.org/abs/2111.03505; Madry et al. 2018,
    https://arxiv.org/abs/1706.06083.
    """

    def __init__(
        self,
        layers: list[str] | None = None,
        eps: float = 1 / 255,
        steps: int = 20,
        images_per_class: int = 20,
        classes: int = 10,
        tau: float = 0.4,
        pixels: Pixels | None = None,
        logits_layer: str | None = None,
        max_grid: int = 8,
        every_n_epochs: int = 5,
        measure_untrained: bool = False,
        name: str = "attack",
        **options: Any,
    ) -> None:
        check_at_least(steps=(steps, 1), images_per_class=(images_per_class, 1), classes=(classes, 2))
        if not 0 < eps < math.inf:
            raise ValueError(f"eps is {eps}; expected a number > 0")
        check_tau(tau)
        options |= {"num_images": images_per_class * classes, "test_data": None}
        super().__init__(name, every_n_epochs=every_n_epochs, measure_untrained=measure_untrained, **options)
        self.layers, self.logits_layer, self.max_grid = layers or [], logits_layer, max_grid
        self.eps, self.steps, self.tau, self.pixels = eps, steps, tau, pixels
        self.images_per_class, self.classes = images_per_class, classes
        self.chosen: tuple[MonitorData, list[int]] | None = None  # images, and their classes
        self.shown: figures.Shown = {}  # what the pictures need

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forgets the data of another trainer and, in a training from the start, the measurements."""
        super().setup(trainer, pl_module, stage)
        self.chosen = None

    def measure(self, view: View, epoch: int) -> dict[str, float]:
        """The table above."""
        choice = self.classes, self.images_per_class, self.batch_size, self.seed
        data, categories = self.chosen = self.chosen or images_of_classes(view, self._given["train"], *choice)
        self.layers = view.layers(self.layers or view.default_layers(data, "maps"))
        logits_layer = self.logits_layer or view.logits_layer(data)
        features, _ = collect_features(view, data, categories, self.layers, logits_layer, self.max_grid)
        steps = 2 if view.is_dry_run else 100
        projection = EpochProjection(features, tau=self.tau, steps=steps, seed=self.seed).to(view.device)
        try:
            projection.fit_samples(features)
        except ValueError as error:  # the network has collapsed; it may recover
            rank_zero_warn(f"{self.name}: no categories in epoch {epoch} ({error})")
            return {}
        for layer in self.layers:
            projection.fit_regions(layer, features)
        reading: dict[str, Any] = {"layers": self.layers, "logits_layer": logits_layer, "max_grid": self.max_grid}
        reading["categories"] = categories
        attack: dict[str, Any] = {"eps": self.eps, "steps": self.steps, "pixels": self.pixels}
        look = partial(along_attack, view, projection, **reading, **attack)
        rows = {key: value.to(view.device) for key, value in view.collect(data, look, "attack").items()}
        mu, pi = projection.samples.directions, projection.samples.priors
        options: dict[str, Any] = {"classes": (rows["true"], rows["wrong"]), "tau": self.tau}
        found = {
            layer: region_changes(path := rows[f"path/{layer}"], mu.to(path), pi.to(path), **options)
            for layer in self.layers
        }
        self.shown = figures.shown(found, {layer: features.grid(layer) for layer in self.layers}, rows)
        values = {"accuracy": float(rows["after"].mean()), "clean_accuracy": float(rows["before"].mean())}
        for layer, regions in found.items():
            values |= {f"cosine/{layer}": float(regions.cosine[-1]), f"strength/{layer}": float(regions.strength[-1])}
            values |= {f"{kind}/{layer}": count for kind, count in (regions.counts() | regions.before()).items()}
        return values

    def draw(self, trainer: pl.Trainer) -> None:
        """Draws the figures into the run's folder and to W&B."""
        if shown := self.shown:
            self.publish(trainer, lambda folder: figures.draw(self.history, shown, folder, self.name))

    def state_dict(self) -> dict[str, Any]:
        """What has been measured, and what the figures show."""
        return super().state_dict() | {"shown": self.shown}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues where a run was stopped."""
        super().load_state_dict(state_dict)
        self.shown = state_dict["shown"]

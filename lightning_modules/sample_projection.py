"""The projection of a trained network's sample features, for several layers at once."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import Optimizer

from netprism.distributed import all_gather_rows
from netprism.figures import projection as figures
from netprism.knowledge.sample_projection import SampleProjector, lbfgs, projection_step, rank_zero_rows, soft_targets
from netprism.lightning_modules._base import Batch, TeacherModule
from netprism.loggers import publish
from netprism.metrics.projected_samples import ProjectedSamples
from netprism.taps import last_linear, tap

BEFORE_LAST = "before_last"  # the input of the last fully connected layer


class SampleProjection(TeacherModule):
    """Projects the sample features of layers of a frozen network: direction and strength imitate the network's outputs.

    Each batch passes the network once; then the projection of each layer makes `steps` steps on it. With the default
    optimiser, L-BFGS with about 200 evaluations per step, a batch should hold all images (`data.init_args.batch_size`),
    and two or three epochs are enough. With smaller batches take Adam: directions and priors of the categories are then
    averages over about an epoch. Several ranks gather their images and give the result of one rank, without speed-up.

    | key, once per epoch | meaning | unit | range | better |
    | --- | --- | --- | --- | --- |
    | `knowledge/KL/<layer>` | mean KL(P || Q) of outputs and projection | nat | 0 up | lower |
    | `knowledge/strength_uncertainty_corr/<layer>` | correlation of strength and entropy of P | 1 | -1 to 1 | lower |

    The same quantities of the validation images are `knowledge/test/KL/<layer>` and
    `knowledge/test/strength_uncertainty_corr/<layer>`. P are the outputs softened by `temperature`, and the correlation
    is Pearson's. Each value is over all images of all ranks; those of the training images are taken after the steps on
    their batch. At the end of the training, `<log_dir>/figures/` has `projection_<layer>.png` and a page to turn,
    `.html`, of the validation images, where `dimensions` is 3.

    The network is not among the hyper-parameters, so give it when loading a checkpoint:
    `SampleProjection.load_from_checkpoint(path, teacher=..., weights_only=True)`, then `projection("before_last")`.

    Args:
        teacher: The trained network, which returns logits; it is kept in eval mode and gets no gradient.
        layers: Names of its layers, whose outputs are flattened; `before_last`, the default, is the input of its last
            fully connected layer.
        input_shape: Shape (C, H, W) of the images; None for the data module's `shape`.
        dimensions: Dimension d' of the projection.
        temperature: Temperature T of the softened outputs.
        kappa_max: Concentration of features without noise.
        center: Subtract the mean of the features, that of the first batch.
        steps: Steps of the optimiser per batch.
        optimizer: Function from parameters to an optimiser, called for each layer; None for L-BFGS. In a config: a
            class path with its `init_args`.

    Raises:
        ValueError: There is no layer, or `teacher` does not have it, or has no fully connected layer; logits are
            already probabilities, features are constant or not finite.

    Source: Li et al. 2021, section 3.2, https://arxiv.org/abs/2111.03505.
    """

    def __init__(
        self,
        teacher: nn.Module,
        layers: list[str] | None = None,
        input_shape: tuple[int, int, int] | None = None,
        dimensions: int = 3,
        temperature: float = 4.0,
        kappa_max: float = 10.0,
        center: bool = True,
        steps: int = 1,
        optimizer: OptimizerCallable | None = None,
    ) -> None:
        super().__init__(teacher, input_shape)
        self.save_hyperparameters(ignore=["teacher", "optimizer"])
        self.automatic_optimization = False
        self.layers = tuple(dict.fromkeys([BEFORE_LAST] if layers is None else layers))
        if not self.layers or steps < 1:
            raise ValueError(f"layers is {list(self.layers)} and steps is {steps}; expected at least one of each")
        self.dimensions, self.temperature, self.kappa_max, self.center = dimensions, temperature, kappa_max, center
        self.steps, self.optimizer = steps, optimizer
        self.last_layer = last_linear(self.teacher) if BEFORE_LAST in self.layers else None
        self.projections = nn.ModuleList()
        self.train_samples = nn.ModuleList(ProjectedSamples() for _ in self.layers)
        self.test_samples = nn.ModuleList(ProjectedSamples() for _ in self.layers)
        self._scatters: dict[str, figures.Scatter] = {}
        if input_shape is not None:
            self.configure_model()

    def build(self, input_shape: tuple[int, ...]) -> None:
        """Makes the projections."""
        features, logits = self._pass(self.example(input_shape))
        for layer in self.layers:
            size = features[layer][0].numel()
            self.projections.append(
                SampleProjector(size, logits.shape[1], self.dimensions, self.kappa_max, self.center)
            )

    def projection(self, layer: str = BEFORE_LAST) -> SampleProjector:
        """Returns the projection of a layer.

        Raises:
            ValueError: There is none.
        """
        if layer not in self.layers:
            raise ValueError(f"layer is {layer!r}; expected one of {', '.join(self.layers)}")
        found: SampleProjector = self.projections[self.layers.index(layer)]  # type: ignore[assignment]
        return found

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps images (N, C, H, W) to {layer: g (N, d')}."""
        features, _ = self._pass(images)
        return {layer: self.projection(layer)(features[layer]) for layer in self.layers}

    def configure_optimizers(self) -> list[Optimizer]:
        """Returns an optimiser per layer, so that each is projected as if it were alone."""
        make = self.optimizer or lbfgs
        return [make([projection.matrix]) for projection in self.projections]  # type: ignore[list-item]

    def training_step(self, batch: Batch) -> None:
        """Makes the steps of all projections on the batches of all ranks together."""
        # Images, and not sums: the last bit of a sum depends on how the images are distributed over the ranks, and
        # L-BFGS amplifies it to 1e-3.
        features, targets = self._prepared(all_gather_rows(self.images(batch)))
        own = rank_zero_rows()
        memory = 1 - 1 / self.trainer.num_training_batches  # about an epoch; none where there is one batch
        for layer, optimizer, samples in zip(self.layers, self._optimizers(), self.train_samples, strict=True):
            projection = self.projection(layer)
            past = memory * projection.sums
            for _ in range(self.steps):
                projection_step(projection, features[layer][own], targets[own], optimizer, past)
            self._update(samples, layer, features[layer][own], targets[own])

    def validation_step(self, batch: Batch) -> None:
        """Adds a batch to the validation images."""
        if not self.trainer.sanity_checking:  # nothing is fitted yet
            self.test_step(batch)

    def test_step(self, batch: Batch) -> None:
        """Adds a batch to the test images."""
        features, targets = self._prepared(self.images(batch))
        for layer, samples in zip(self.layers, self.test_samples, strict=True):
            self._update(samples, layer, features[layer], targets)

    def predict_step(self, batch: Batch) -> dict[str, Tensor]:
        """Returns {layer: g (N, d')} of the images of a batch."""
        projected: dict[str, Tensor] = self(self.images(batch))
        return projected

    def on_train_epoch_end(self) -> None:
        """Logs the quantities of the training images."""
        self._report(self.train_samples, "")

    def on_validation_epoch_end(self) -> None:
        """Logs the quantities of the validation images, and keeps these for the pictures."""
        if not self.trainer.sanity_checking:
            self._report(self.test_samples, "test/")

    def on_test_epoch_end(self) -> None:
        """Logs the quantities of the test images."""
        self._report(self.test_samples, "test/")

    def on_train_end(self) -> None:
        """Draws the validation images of the last epoch, into the run's folder and to W&B."""
        publish(self.trainer, self._draw)

    def _draw(self, folder: Path) -> list[Path]:
        return [
            path
            for layer, scatter in self._scatters.items()
            for path in figures.draw(scatter, folder / f"projection_{layer}")
        ]

    def _optimizers(self) -> list[Optimizer]:
        optimizers = self.optimizers()
        return cast(list[Optimizer], optimizers if isinstance(optimizers, list) else [optimizers])

    def _update(self, samples: nn.Module, layer: str, features: Tensor, targets: Tensor) -> None:
        projection = self.projection(layer)
        g = projection(features).detach()
        cast(ProjectedSamples, samples).update(g, projection.log_posterior(g), targets)

    def _report(self, metrics: nn.ModuleList, infix: str) -> None:
        for layer, samples in zip(self.layers, cast(list[ProjectedSamples], list(metrics)), strict=True):
            values = samples.compute()
            samples.reset()
            g, categories = values.pop("g"), values.pop("categories")
            named = {f"knowledge/{infix}{key}/{layer}": value for key, value in values.items()}
            self.log_dict(named, prog_bar=True, sync_dist=True)  # the same on all ranks; otherwise Lightning warns
            if infix and g.shape[1] == 3:
                title = "{}: KL {:.3f} nats, correlation {:.2f}".format(layer, *map(float, values.values()))
                directions = self.projection(layer).directions
                names = figures.class_names(range(len(directions)), self.trainer)
                self._scatters[layer] = figures.Scatter(g, categories, directions, title, names)

    def _prepared(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Features of the layers, and softened outputs."""
        features, logits = self._pass(images)
        return features, soft_targets(logits, self.temperature)

    @torch.no_grad()
    def _pass(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Features of the layers, and logits."""
        named = [layer for layer in self.layers if layer != BEFORE_LAST]
        last = [] if self.last_layer is None else [self.last_layer]
        with (
            tap(self.teacher, named, detach=True) as features,
            tap(self.teacher, last, detach=True, inputs=True) as before,
        ):
            logits = self.teacher(images)
        if last:
            features[BEFORE_LAST] = before[last[0]]
        return features, logits

"""The projection of a trained network's sample features, for several layers at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import Optimizer

from netprism.distributed import all_gather_rows, is_rank_zero
from netprism.figures import projection as figures
from netprism.knowledge.sample_projection import Projection, descend, lbfgs, soft_targets
from netprism.loggers import publish
from netprism.metrics.projected_samples import ProjectedSamples
from netprism.taps import tap

Batch = Tensor | Sequence[Tensor]  # images, or images and what belongs to them

BEFORE_LAST = "before_last"  # what goes into the last fully connected layer


class SampleProjection(LightningModule):
    """Projects the sample features of layers of a frozen network so that direction and strength mimic its outputs.

    Each batch passes the network once; then the projection of each layer makes `updates` steps on it. With the default
    optimiser, L-BFGS with about 200 evaluations a step, a batch should be all images (`data.init_args.batch_size`) and
    two or three epochs are enough. With smaller batches take Adam: categories' directions and priors then are averages
    over about an epoch. Several processes gather their images, and find what one finds, as fast as that.

    | key, once per epoch | meaning | unit | range | better |
    | --- | --- | --- | --- | --- |
    | `knowledge/KL/<layer>` | mean KL(P || Q) of outputs and projection | nats | 0 to infinity | lower |
    | `knowledge/strength_uncertainty_corr/<layer>` | Pearson's, of strength and entropy of P | 1 | -1 to 1 | lower |
    | `knowledge/test_KL/<layer>`, `knowledge/test_strength_uncertainty_corr/<layer>` | of validation images | | | |

    P are the outputs softened by `temperature`. Each value is over all images of all processes; those of the training
    images are taken after the steps on their batch. At the end of the training `<log_dir>/figures/` has
    `projection_<layer>.png` and a page to turn, `.html`, of the validation images, where `dimensions` is 3.

    The network is not among the hyper-parameters, so give it when loading a checkpoint:
    `SampleProjection.load_from_checkpoint(path, teacher=..., weights_only=True)`, then `projection("before_last")`.

    Args:
        teacher: the trained network, which returns logits; it is kept in eval mode and gets no gradient.
        input_shape: (C, H, W) of the images.
        layers: names of its layers, whose outputs are flattened; `before_last`, the default, is what goes into its last
            fully connected layer.
        dimensions: d', of the projection.
        temperature: T, of the softened outputs.
        kappa_max: concentration of features without noise.
        updates: steps of the optimiser on a batch.
        optimizer: parameters to optimiser; one for each layer. In a config: a class path with its `init_args`.

    Raises:
        ValueError: no layer, one that `teacher` does not have; no fully connected layer; what `netprism.knowledge`
            refuses: probabilities for logits, constant features, values that are not finite.

    Source: "Visualizing the Emergence of Intermediate Visual Patterns in DNNs", section 3.2.
    """

    def __init__(
        self,
        teacher: nn.Module,
        input_shape: tuple[int, int, int],
        layers: list[str] | None = None,
        dimensions: int = 3,
        temperature: float = 4.0,
        kappa_max: float = 10.0,
        updates: int = 1,
        optimizer: OptimizerCallable | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["teacher", "optimizer"])
        self.automatic_optimization = False
        self.layers = tuple(dict.fromkeys([BEFORE_LAST] if layers is None else layers))
        if not self.layers or updates < 1:
            raise ValueError(f"layers are {list(self.layers)} and updates {updates}: expected at least one of each")
        self.teacher = teacher.eval().requires_grad_(False)
        self.temperature, self.updates, self.optimizer = temperature, updates, optimizer
        device = next(iter(teacher.parameters())).device
        features, logits = self._pass(torch.zeros(1, *input_shape, device=device))
        self.projections = nn.ModuleList(
            Projection(features[layer][0].numel(), logits.shape[1], dimensions, kappa_max) for layer in self.layers
        )
        self.train_samples = nn.ModuleList(ProjectedSamples() for _ in self.layers)
        self.test_samples = nn.ModuleList(ProjectedSamples() for _ in self.layers)
        self._scatters: dict[str, figures.Scatter] = {}

    def projection(self, layer: str = BEFORE_LAST) -> Projection:
        """The projection of a layer.

        Raises:
            ValueError: there is none.
        """
        if layer not in self.layers:
            raise ValueError(f"there is no projection of layer {layer!r}, only of {', '.join(self.layers)}")
        found: Projection = self.projections[self.layers.index(layer)]  # type: ignore[assignment]
        return found

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, C, H, W) to {layer: g (N, d')}."""
        features, _ = self._pass(images)
        return {layer: self.projection(layer)(features[layer]) for layer in self.layers}

    def train(self, mode: bool = True) -> SampleProjection:
        """Switches the projections; the teacher stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def configure_optimizers(self) -> list[Optimizer]:
        """An optimiser for each layer, so that each is projected as if it were alone."""
        make = self.optimizer or lbfgs
        return [make([projection.matrix]) for projection in self.projections]  # type: ignore[list-item]

    def training_step(self, batch: Batch) -> None:
        """Steps of all projections on a batch, of several processes on the images of all."""
        # Images, and not sums: their last bit depends on how they are shared, and L-BFGS makes 1e-3 of that. The first
        # process has the whole batch, the others nothing to add.
        features, targets = self._prepared(all_gather_rows(_images(batch)))
        share = slice(None) if is_rank_zero() else slice(0)
        memory = 1 - 1 / self.trainer.num_training_batches  # about an epoch; none where the batch is all there is
        for layer, optimizer, samples in zip(self.layers, self._optimizers(), _all(self.train_samples), strict=True):
            projection = self.projection(layer)
            past = memory * projection.sums
            for _ in range(self.updates):
                descend(projection, features[layer][share], targets[share], optimizer, past)
            samples.update(projection, features[layer][share], targets[share])

    def validation_step(self, batch: Batch) -> None:
        """Adds a batch to the validation images."""
        if not self.trainer.sanity_checking:  # nothing is fitted yet
            self._evaluate(batch)

    def test_step(self, batch: Batch) -> None:
        """Adds a batch to the test images."""
        self._evaluate(batch)

    def predict_step(self, batch: Batch) -> dict[str, Tensor]:
        """{layer: g (N, d')} of the images of a batch."""
        projected: dict[str, Tensor] = self(_images(batch))
        return projected

    def on_train_epoch_end(self) -> None:
        """Logs what the projections make of the training images."""
        self._report(self.train_samples, "")

    def on_validation_epoch_end(self) -> None:
        """Logs what they make of the validation images, and keeps these for the pictures."""
        if not self.trainer.sanity_checking:
            self._report(self.test_samples, "test_")

    def on_test_epoch_end(self) -> None:
        """Logs what they make of the test images."""
        self._report(self.test_samples, "test_")

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

    def _evaluate(self, batch: Batch) -> None:
        features, targets = self._prepared(batch)
        for layer, samples in zip(self.layers, _all(self.test_samples), strict=True):
            samples.update(self.projection(layer), features[layer], targets)

    def _report(self, meters: nn.ModuleList, split: str) -> None:
        for layer, samples in zip(self.layers, _all(meters), strict=True):
            projected = samples.compute()
            samples.reset()
            values = {"KL": projected.divergence, "strength_uncertainty_corr": projected.correlation}
            named = {f"knowledge/{split}{what}/{layer}": value for what, value in values.items()}
            self.log_dict(named, prog_bar=True, sync_dist=True)  # the same on all processes; else Lightning warns
            if split and projected.g.shape[1] == 3:
                title = f"{layer}: KL {projected.divergence:.3f} nats, correlation {projected.correlation:.2f}"
                directions = self.projection(layer).directions
                self._scatters[layer] = figures.Scatter(projected.g, projected.categories, directions, title)

    def _prepared(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        features, logits = self._pass(_images(batch))
        return features, soft_targets(logits, self.temperature)

    @torch.no_grad()
    def _pass(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """What the layers and the teacher make of images."""
        named = [layer for layer in self.layers if layer != BEFORE_LAST]
        last = _last_linear(self.teacher) if BEFORE_LAST in self.layers else None
        with (
            tap(self.teacher, named, detach=True) as features,
            tap(self.teacher, [last] if last else [], detach=True, inputs=True) as before,
        ):
            logits = self.teacher(images)
        if last:
            features[BEFORE_LAST] = before[last]
        return features, logits


def _images(batch: Batch) -> Tensor:
    return batch if isinstance(batch, Tensor) else batch[0]


def _all(meters: nn.ModuleList) -> list[ProjectedSamples]:
    return cast(list[ProjectedSamples], list(meters))


def _last_linear(net: nn.Module) -> str:
    names = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        raise ValueError(f"{type(net).__name__} has no fully connected layer: name the layers")
    return str(names[-1])

"""Decoders that rebuild the input of a trained network from its features, for the reconstruction uncertainty."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric

from netprism.checks import check_optimizer
from netprism.discarding.decoder import Decoder
from netprism.figures import reconstruction as figures
from netprism.lightning_modules._base import (
    REMEDIES_AND_CLIPPING,
    Batch,
    TeacherModule,
    check_finite,
    optimizer_and_schedule,
)
from netprism.loggers import publish
from netprism.module_names import key_of_layer
from netprism.taps import tap

_SHOWN = 8  # images in the picture


class InputDecoder(TeacherModule):
    """Trains a decoder for each of several layers of a frozen network, with one pass of the network per batch.

    The decoders share only the batches: each is trained as if it were the only one.

    | key, once per epoch | meaning | unit | range | better |
    | --- | --- | --- | --- | --- |
    | `train/mse/<layer>`, also `val/`, `test/` | mean squared error of a pixel of a channel | input^2 | 0 up | lower |
    | `train/loss`, also `val/`, `test/` | its sum over the layers | input^2 | 0 up | lower |

    Where the inputs have variance 1, an error of 1 is that of a constant. Each value is over all images of all
    ranks; those of `train` are measured while the weights change.

    At the end of the training `<log_dir>/figures/reconstruction.png` shows images and their reconstructions from the
    layers.

    The network is not among the hyper-parameters, so give it when loading a checkpoint:
    `InputDecoder.load_from_checkpoint(path, teacher=..., weights_only=True)`, then `decoder("layer1")`.

    Args:
        teacher: The trained network; it stays in eval mode and gets no gradient.
        layers: Names of its layers with an output (N, C, H, W) or (N, d).
        input_shape: Shape (C, H, W) of an image; None: the data module's `shape`.
        width: Number of channels of a decoder at the size of the image, see `netprism.discarding.Decoder`.
        blocks: Number of residual blocks of a decoder.
        optimizer: Function from parameters to an optimiser; in a config, a class path with its `init_args`. The paper
            uses Adam with learning rate .01, five epochs, batches of 16.
        scheduler: Function from an optimiser to a learning-rate schedule; in a config, a class path with its
            `init_args`. It is stepped after each epoch; ReduceLROnPlateau follows `val/loss`.

    Raises:
        ValueError: There is no layer, or one that `teacher` does not have or whose output has another form; images have
            another shape; the training loss is not finite.

    Source: Ma et al. 2019, section 3.2, https://openreview.net/forum?id=BygG3hEYvB.
    """

    def __init__(
        self,
        teacher: nn.Module,
        layers: list[str],
        input_shape: tuple[int, int, int] | None = None,
        width: int = 32,
        blocks: int = 6,
        optimizer: OptimizerCallable = torch.optim.Adam,
        scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(teacher, input_shape)
        self.save_hyperparameters(ignore=["teacher", "optimizer", "scheduler"])
        if not layers:
            raise ValueError("layers is []; expected at least one layer of the teacher")
        self.layers, self.width, self.blocks = tuple(dict.fromkeys(layers)), width, blocks
        check_optimizer(optimizer)
        self.optimizer, self.scheduler = optimizer, scheduler
        self.decoders = nn.ModuleDict()
        self.train_meters, self.val_meters, self.test_meters = (_meters(self.layers) for _ in range(3))
        self._shown = torch.empty(0)
        if input_shape is not None:
            self.configure_model()

    def decoder(self, layer: str) -> Decoder:
        """Returns the decoder of a layer.

        Raises:
            ValueError: There is none.
        """
        if layer not in self.layers or not self.decoders:
            known = (
                f"one of {', '.join(self.layers)}" if self.decoders else "none before the training, without input_shape"
            )
            raise ValueError(f"layer is {layer!r}; expected {known}")
        return cast(Decoder, self.decoders[key_of_layer(layer)])

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Returns the features {layer: (N, ...)} of images (N, C, H, W), without gradients."""
        with torch.no_grad(), tap(self.teacher, self.layers, detach=True) as features:
            self.teacher(images)
        return features

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, C, H, W) to {layer: images rebuilt from it}."""
        features = self.features(images)
        return {layer: self.decoder(layer)(features[layer]) for layer in self.layers}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser of the decoders and, if there is one, its schedule."""
        return optimizer_and_schedule(self.optimizer(self.decoders.parameters()), self.scheduler)

    def training_step(self, batch: Batch) -> Tensor:
        """Mean squared error of a batch, summed over the layers."""
        loss = self._step(batch, "train", self.train_meters)
        check_finite(self, "train/loss", loss, REMEDIES_AND_CLIPPING)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the means; the picture shows images of the first one."""
        self._step(batch, "val", self.val_meters)
        if batch_idx == 0:
            self._shown = self.images(batch)[:_SHOWN].detach()

    def test_step(self, batch: Batch) -> None:
        """Adds a batch to the means."""
        self._step(batch, "test", self.test_meters)

    def predict_step(self, batch: Batch) -> dict[str, Tensor]:
        """The images of a batch, rebuilt from each layer."""
        rebuilt: dict[str, Tensor] = self(self.images(batch))
        return rebuilt

    def on_train_end(self) -> None:
        """Draws images beside their reconstructions, into the run's folder and to W&B."""
        if len(self._shown):
            training = self.training
            with torch.no_grad():
                rebuilt = self.eval()(self._shown)
            self.train(training)
            publish(self.trainer, lambda folder: [figures.draw(self._shown, rebuilt, folder / "reconstruction.png")])

    def build(self, input_shape: tuple[int, ...]) -> None:
        """Makes the decoders."""
        shapes = {layer: tuple(f.shape[1:]) for layer, f in self.features(self.example(input_shape)).items()}
        for layer in self.layers:
            shape = cast(tuple[int, int, int], input_shape)
            self.decoders[key_of_layer(layer)] = Decoder(shapes[layer], shape, self.width, self.blocks)
        self.hparams["feature_shapes"] = {layer: list(shapes[layer]) for layer in self.layers}

    def _step(self, batch: Batch, stage: str, meters: nn.ModuleDict) -> Tensor:
        images = self.images(batch)
        if list(images.shape[1:]) != list(self.hparams["input_shape"]):
            raise ValueError(
                f"images are {tuple(images.shape[1:])}; expected input_shape, {self.hparams['input_shape']}"
            )
        rebuilt = self(images).items()
        errors = {f"mse/{layer}": (copies - images).square().flatten(1).mean(1) for layer, copies in rebuilt}
        errors["loss"] = torch.stack(list(errors.values())).sum(0)
        for name, values in errors.items():
            meter = cast(MeanMetric, meters[key_of_layer(name)])
            meter.update(values.detach())
            on_bar = name == "loss"
            self.log(f"{stage}/{name}", meter, on_step=False, on_epoch=True, prog_bar=on_bar, batch_size=len(images))
        loss: Tensor = errors["loss"].mean()
        return loss


def _meters(layers: Iterable[str]) -> nn.ModuleDict:
    """Means over all images of all processes."""
    names = ["loss", *(f"mse/{layer}" for layer in layers)]
    # A NaN stays one; "disable" also switches weights off (torchmetrics 1.9).
    return nn.ModuleDict({key_of_layer(name): MeanMetric(nan_strategy="disable") for name in names})

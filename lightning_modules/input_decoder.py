"""Decoders that rebuild the input of a trained network from its features, what the reconstruction uncertainty needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric

from netprism.discarding.decoder import Decoder
from netprism.figures import reconstruction as figures
from netprism.loggers import publish
from netprism.taps import tap

Batch = Tensor | Sequence[Tensor]  # images, or images and what belongs to them

_SHOWN = 8  # images in the picture


class InputDecoder(LightningModule):
    """Trains a decoder for each of several layers of a frozen network, with one pass of the network per batch.

    The decoders share nothing but the batches: each is trained as if it were alone.

    | key, once per epoch | meaning | unit | range | better |
    | --- | --- | --- | --- | --- |
    | `train/mse/<layer>`, also `val/`, `test/` | mean squared error of a pixel of a channel | input^2 | 0 up | lower |
    | `train/loss`, also `val/`, `test/` | its sum over the layers | input^2 | 0 up | lower |

    Where the inputs have variance 1, an error of 1 is that of a constant. Each value is over all images of all
    processes; those of `train` are taken while the weights still change.

    At the end of the training `<log_dir>/figures/reconstruction.png` shows images and what the layers keep of them.

    The network is not among the hyper-parameters, so give it when loading a checkpoint:
    `InputDecoder.load_from_checkpoint(path, teacher=..., weights_only=True)`, then `decoder("layer1")`.

    Args:
        teacher: the trained network; it is kept in eval mode and gets no gradient.
        layers: names of its layers, of those with an output (N, C, H, W) or (N, d).
        input_shape: (C, H, W) of an image; None: the data module's `shape`.
        width: channels of a decoder at the size of the image, see :class:`netprism.nets.Decoder`.
        blocks: residual blocks of a decoder.
        optimizer: parameters to optimiser. In a config: a class path with its `init_args`. The paper takes Adam with
            learning rate .01, five epochs, batches of 16.
        scheduler: optimiser to learning-rate schedule, in a config likewise. Stepped after each epoch;
            ReduceLROnPlateau follows `val/loss`.

    Raises:
        ValueError: no layer, one that `teacher` does not have or whose output has another form, images of another
            shape, and a training loss that is not finite.

    Source: "Quantifying Layerwise Information Discarding of Neural Networks and Beyond", section 3.2.
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
        super().__init__()
        self.save_hyperparameters(ignore=["teacher", "optimizer", "scheduler"])
        if not layers:
            raise ValueError("layers is empty: name at least one layer of the teacher")
        self.teacher = teacher.eval().requires_grad_(False)
        self.layers, self.width, self.blocks = tuple(dict.fromkeys(layers)), width, blocks
        self.optimizer, self.scheduler = optimizer, scheduler
        self.decoders = nn.ModuleDict()
        self.train_meters, self.val_meters, self.test_meters = (_meters(self.layers) for _ in range(3))
        self._shown = torch.empty(0)
        if input_shape is not None:
            self._build(input_shape)

    def configure_model(self) -> None:
        """Makes the decoders, once the shape of an image is known."""
        if not self.decoders:
            shape = getattr(self.trainer.datamodule, "shape", None)  # type: ignore[attr-defined]  # of a connector
            if shape is None:
                raise ValueError("the data module has no `shape` of an image: give input_shape=(C, H, W)")
            self._build(shape)

    def decoder(self, layer: str) -> Decoder:
        """The decoder of a layer.

        Raises:
            ValueError: there is none.
        """
        if layer not in self.layers or not self.decoders:
            known = ", ".join(self.layers) if self.decoders else "none before the training, for want of input_shape"
            raise ValueError(f"there is no decoder of layer {layer!r}; there are {known}")
        return cast(Decoder, self.decoders[_key(layer)])

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """What the layers of the teacher make of images (N, C, H, W), without gradients."""
        with torch.no_grad(), tap(self.teacher, self.layers, detach=True) as features:
            self.teacher(images)
        return features

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, C, H, W) to {layer: images rebuilt from it}."""
        features = self.features(images)
        return {layer: self.decoder(layer)(features[layer]) for layer in self.layers}

    def train(self, mode: bool = True) -> InputDecoder:
        """Switches the decoders; the teacher stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser of the decoders and, if there is one, its schedule."""
        optimizer = self.optimizer(self.decoders.parameters())
        if self.scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler(optimizer), "monitor": "val/loss"}}

    def training_step(self, batch: Batch) -> Tensor:
        """Mean squared error of a batch, summed over the layers."""
        loss = self._step(batch, "train", self.train_meters)
        if not loss.isfinite():
            where = f"epoch {self.current_epoch}, step {self.global_step}"
            remedies = "a smaller learning rate, trainer.gradient_clip_val or trainer.precision=32"
            raise ValueError(f"train/loss is {loss.item()} in {where}: try {remedies}")
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the means; the first one's images are those of the picture."""
        self._step(batch, "val", self.val_meters)
        if batch_idx == 0:
            self._shown = _images(batch)[:_SHOWN].detach()

    def test_step(self, batch: Batch) -> None:
        """Adds a batch to the means."""
        self._step(batch, "test", self.test_meters)

    def predict_step(self, batch: Batch) -> dict[str, Tensor]:
        """The images of a batch, rebuilt from each layer."""
        rebuilt: dict[str, Tensor] = self(_images(batch))
        return rebuilt

    def on_train_end(self) -> None:
        """Draws images beside what each layer keeps of them, into the run's folder and to W&B."""
        if len(self._shown):
            training = self.training
            with torch.no_grad():
                rebuilt = self.eval()(self._shown)
            self.train(training)
            publish(self.trainer, lambda folder: [figures.draw(self._shown, rebuilt, folder / "reconstruction.png")])

    def _build(self, input_shape: tuple[int, int, int]) -> None:
        device = next((parameter.device for parameter in self.teacher.parameters()), self.device)
        features = self.features(torch.zeros(1, *input_shape, device=device))
        shapes = {layer: tuple(features[layer].shape[1:]) for layer in self.layers}
        for layer, shape in shapes.items():
            self.decoders[_key(layer)] = Decoder(shape, input_shape, self.width, self.blocks)
        self.hparams["input_shape"] = tuple(input_shape)

    def _step(self, batch: Batch, stage: str, meters: nn.ModuleDict) -> Tensor:
        images = _images(batch)
        if list(images.shape[1:]) != list(self.hparams["input_shape"]):
            raise ValueError(f"images are {tuple(images.shape[1:])}, not input_shape = {self.hparams['input_shape']}")
        rebuilt = self(images).items()
        errors = {f"mse/{layer}": (copies - images).square().flatten(1).mean(1) for layer, copies in rebuilt}
        errors["loss"] = torch.stack(list(errors.values())).sum(0)
        for name, values in errors.items():
            meter = cast(MeanMetric, meters[_key(name)])
            meter.update(values.detach())
            on_bar = name == "loss"
            self.log(f"{stage}/{name}", meter, on_step=False, on_epoch=True, prog_bar=on_bar, batch_size=len(images))
        loss: Tensor = errors["loss"].mean()
        return loss


def _images(batch: Batch) -> Tensor:
    return batch if isinstance(batch, Tensor) else batch[0]


def _key(name: str) -> str:
    """A name as a key of a ModuleDict, which allows no dots."""
    return name.replace(".", "|")


def _meters(layers: Iterable[str]) -> nn.ModuleDict:
    """Means over all images of all processes."""
    names = ["loss", *(f"mse/{layer}" for layer in layers)]
    # A NaN stays one; "disable" also switches weights off (torchmetrics 1.9).
    return nn.ModuleDict({_key(name): MeanMetric(nan_strategy="disable") for name in names})

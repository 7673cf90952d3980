"""Training of a variational auto-encoder whose code is classified."""

from __future__ import annotations

import math

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from netprism.figures import reconstruction as figures
from netprism.lightning_modules._base import REMEDIES_AND_CLIPPING, check_finite, optimizer_and_schedule
from netprism.loggers import publish
from netprism.nets.vae import VAE, Coded

Batch = tuple[Tensor, Tensor]
_SHOWN = 8


class VariationalAutoEncoder(LightningModule):
    """Trains encoder, decoder and classifier together: reconstruction + KL divergence + cross-entropy.

    | key, once per epoch, also `val/` and `test/` | meaning | unit | range | better |
    | --- | --- | --- | --- | --- |
    | `train/loss` | the sum that is minimised | nats | | lower |
    | `train/mse` | mean squared error of a number of an image | 1 | 0 up | lower |
    | `train/kl` | KL divergence of the code from N(0, 1), per image | nats | 0 up | |
    | `train/accuracy` | fraction of correct images | 1 | 0 to 1 | higher |

    Values are over all images of all ranks. In validation and test the code is its mean. At the end of the training,
    `<log_dir>/figures/reconstruction.png` shows images and their reconstructions.

    Args:
        net: A `netprism.nets.VAE` or `ConvVAE`; its shape and its number of classes are those of the data.
        noise: Standard deviation of a number of an image around its reconstruction: the squared error of an image is
            divided by 2 noise^2.
        kl_weight: Weight of the KL divergence.
        class_weight: Weight of the cross-entropy; 0 for a plain variational auto-encoder.
        optimizer: Function from parameters to an optimiser; in a config, a class path with its `init_args`.
        scheduler: Function from an optimiser to a learning-rate schedule, stepped after each epoch.

    Raises:
        ValueError: A number is out of range, images are of another shape, or the training loss is not finite.

    Source: Kingma and Welling 2014, https://arxiv.org/abs/1312.6114; Higgins et al. 2017 for the weight.
    """

    def __init__(
        self,
        net: VAE,
        noise: float = 0.5,
        kl_weight: float = 1.0,
        class_weight: float = 1.0,
        optimizer: OptimizerCallable = torch.optim.Adam,
        scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("kl_weight", kl_weight), ("class_weight", class_weight)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value}; expected a number >= 0")
        if not 0 < noise < math.inf:
            raise ValueError(f"noise is {noise}; expected a number > 0")
        self.save_hyperparameters(ignore=["net", "optimizer", "scheduler"])
        self.net, self.noise, self.kl_weight, self.class_weight = net, noise, kl_weight, class_weight
        self.optimizer, self.scheduler = optimizer, scheduler
        self.train_meters = _meters("train/")
        self.val_meters, self.test_meters = self.train_meters.clone("val/"), self.train_meters.clone("test/")
        self._shown = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, num_classes)."""
        logits: Tensor = self.net(x)
        return logits

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser of all parameters and, if there is one, its schedule."""
        return optimizer_and_schedule(self.optimizer(self.parameters()), self.scheduler)

    def training_step(self, batch: Batch) -> Tensor:
        """The loss of a batch, a scalar in nats."""
        loss = self._step(batch, self.train_meters)
        check_finite(self, "train/loss", loss, REMEDIES_AND_CLIPPING)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the means; the picture shows images of the first one."""
        self._step(batch, self.val_meters)
        if batch_idx == 0:
            self._shown = batch[0][:_SHOWN].detach()

    def test_step(self, batch: Batch) -> None:
        """Adds a batch to the means."""
        self._step(batch, self.test_meters)

    def on_train_end(self) -> None:
        """Draws images beside their reconstructions, into the run's folder and to W&B."""
        if len(self._shown):
            training = self.training
            with torch.no_grad():
                rebuilt = {"code": self.net.eval().coded(self._shown).rebuilt}
            self.train(training)
            publish(self.trainer, lambda folder: [figures.draw(self._shown, rebuilt, folder / "reconstruction.png")])

    def _step(self, batch: Batch, meters: MetricCollection) -> Tensor:
        images, labels = batch
        if tuple(images.shape[1:]) != tuple(self.net.shape):
            shape = tuple(images.shape[1:])
            raise ValueError(
                f"images are {shape}; expected {tuple(self.net.shape)}, the shape of {type(self.net).__name__}"
            )
        coded: Coded = self.net.coded(images)
        squared = (coded.rebuilt - images).square().flatten(1)
        kl = divergence(coded.mean, coded.log_variance)
        losses = squared.sum(1) / (2 * self.noise**2) + self.kl_weight * kl
        if self.class_weight:
            losses = losses + self.class_weight * F.cross_entropy(coded.logits, labels, reduction="none")
        found = {"loss": losses, "mse": squared.mean(1), "kl": kl}
        for name, values in found.items():
            meters[name].update(values.detach())
        meters["accuracy"].update(coded.logits, labels)
        self.log_dict(meters, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(labels))
        return losses.mean()


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Returns KL(N(mean, exp(log_variance)) || N(0, 1)) of each row, in nats: (N, latent) to (N,).

    Source: Kingma and Welling 2014, appendix B.

    Example:
        >>> divergence(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2))
        tensor([0.5000])
    """
    return (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2


def _meters(prefix: str) -> MetricCollection:
    """Means over all images of all processes; a NaN stays one."""
    means = {name: MeanMetric(nan_strategy="disable") for name in ("loss", "mse", "kl")}
    accuracy = MulticlassAccuracy(average="micro", validate_args=False)
    return MetricCollection({**means, "accuracy": accuracy}, prefix=prefix, compute_groups=False)

"""The plain training that the monitors look into: a network that learns to tell classes apart."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from pytorch_lightning.utilities import rank_zero_info
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from netprism.checks import check_optimizer
from netprism.lightning_modules._base import REMEDIES_AND_CLIPPING, check_finite, optimizer_and_schedule
from netprism.nets import fit_to
from netprism.nets.fitting import fit_to_state, heads_of, output_layer, outputs_of, wrong_size
from netprism.nets.known import auxiliary_weight as usual_auxiliary_weight

Batch = tuple[Tensor, Tensor]


class Classifier(LightningModule):
    """Trains any network with the cross-entropy of its logits.

    | key, once per epoch | meaning | unit | range | better |
    | --- | --- | --- | --- | --- |
    | `train/loss`, `val/loss`, `test/loss` | mean cross-entropy | nats | 0 to infinity | lower |
    | `train/accuracy`, `val/accuracy`, `test/accuracy` | fraction of correct images | 1 | 0 to 1 | higher |

    Each value is over all images of all ranks; those of `train` are measured in train mode, while the weights change.

    Checkpoints hold no pickled objects. The network is not among the hyper-parameters, so give it when loading one:
    `Classifier.load_from_checkpoint(path, net=..., weights_only=True)`.

    With a data module that has `num_classes` and `shape`, as netprism's, any network is fitted to them: a last layer of
    another width is replaced, a first one adapted, see :func:`netprism.nets.fit_to`; a line says so.

    Where a network returns the logits of auxiliary heads in train mode, as torchvision's GoogLeNet and Inception v3 do,
    their cross-entropies are added with `auxiliary_weight` to what is trained, and not to `train/loss`.

    Args:
        net: Network from images (N, ...) to logits (N, num_classes).
        num_classes: Number of classes; labels are 0 to num_classes - 1. None for the data module's `num_classes`, or
            else the number of outputs of the network.
        optimizer: Function from parameters to an optimiser; in a config, a class path with its `init_args`.
        scheduler: Function from an optimiser to a learning-rate schedule; in a config, a class path with its
            `init_args`. It is stepped after each epoch; ReduceLROnPlateau follows `val/loss`.
        auxiliary_weight: Weight of the loss of each auxiliary head; None for .4 in Inception v3 and .3 in others.

    Raises:
        ValueError: The labels of a batch are out of range, its logits are not (N, num_classes), the training loss is
            not finite, or the network does not run on images of the data's size; the error has one on which it does.
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int | None = None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        scheduler: LRSchedulerCallable | None = None,
        auxiliary_weight: float | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["net", "optimizer", "scheduler"])
        check_optimizer(optimizer)
        self.net, self.num_classes, self.optimizer, self.scheduler = net, num_classes, optimizer, scheduler
        self.auxiliary_weight = usual_auxiliary_weight(net) if auxiliary_weight is None else auxiliary_weight
        if num_classes is None and (last := output_layer(net)) is not None:
            self.num_classes = outputs_of(last[1])
        self.train_meters = _meters(prefix="train/")
        self.val_meters = self.train_meters.clone(prefix="val/")
        self.test_meters = self.train_meters.clone(prefix="test/")

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, ...) to logits (N, num_classes); in train mode to all that the network returns."""
        logits: Tensor = self.net(x)
        return logits

    def configure_model(self) -> None:
        """Fits the network to the data module. Lightning calls this before a training, a test and a prediction."""
        shape, classes = self._shape_and_classes_of_data()
        classes = self.hparams["num_classes"] or classes
        if classes is None:
            return
        for change in fit_to(self.net, classes, shape):
            rank_zero_info(f"{type(self).__name__}: {type(self.net).__name__} is fitted to the data: {change}")
        self.num_classes = self.hparams["num_classes"] = classes

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:  # noqa: ANN401
        """Loads weights; without `strict`, a network that is not fitted to the data yet is fitted to these weights.

        So Lightning hands back what forked processes have trained.
        """
        if not strict:
            fit_to_state(self.net, {k.removeprefix("net."): v for k, v in state_dict.items() if k.startswith("net.")})
        return super().load_state_dict(state_dict, strict, assign)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser of all parameters and, if there is one, its schedule."""
        return optimizer_and_schedule(self.optimizer(self.parameters()), self.scheduler)

    def training_step(self, batch: Batch) -> Tensor:
        """Cross-entropy of a batch, a scalar in nats."""
        loss = self._step(batch, self.train_meters)
        check_finite(self, "train/loss", loss, REMEDIES_AND_CLIPPING)
        return loss

    def validation_step(self, batch: Batch) -> None:
        """Adds a batch to `val/loss` and `val/accuracy`."""
        self._step(batch, self.val_meters)

    def test_step(self, batch: Batch) -> None:
        """Adds a batch to `test/loss` and `test/accuracy`."""
        self._step(batch, self.test_meters)

    def predict_step(self, batch: Batch) -> Tensor:
        """Logits (N, num_classes) of the images of a batch."""
        logits: Tensor = self(batch[0])
        return logits

    def _shape_and_classes_of_data(self) -> tuple[Sequence[int] | None, int | None]:
        try:
            datamodule = self.trainer.datamodule  # type: ignore[attr-defined]  # set in one of Lightning's connectors
        except RuntimeError:  # no trainer yet, in load_from_checkpoint
            return None, None
        return getattr(datamodule, "shape", None), getattr(datamodule, "num_classes", None)

    def _step(self, batch: Batch, meters: MetricCollection) -> Tensor:
        images, labels = batch
        self._check_labels(labels)
        logits, auxiliary = heads_of(self._outputs(images))
        self._check_logits(logits, len(labels))
        assert isinstance(logits, Tensor)
        losses = F.cross_entropy(logits, labels, reduction="none")
        meters.update(value=losses.detach(), preds=logits, target=labels)
        self.log_dict(meters, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(labels))
        loss = losses.mean()
        for head in auxiliary:
            loss = loss + self.auxiliary_weight * F.cross_entropy(head, labels)
        return loss

    def _outputs(self, images: Tensor) -> object:
        try:
            return self(images)
        except (RuntimeError, AssertionError, ValueError) as error:
            if (wrong := wrong_size(self.net, images.shape[1:], error)) is None:
                raise
            raise wrong from error

    def _check_labels(self, labels: Tensor) -> None:
        low, high = labels.aminmax()
        if self.num_classes is not None and (low < 0 or high >= self.num_classes):
            allowed = f"0 to {self.num_classes - 1} with num_classes={self.num_classes}"
            raise ValueError(f"labels of a batch are {low} to {high}: they must be {allowed}")

    def _check_logits(self, logits: object, batch_size: int) -> None:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        if self.num_classes is None and isinstance(logits, Tensor) and logits.dim() > 1:
            self.num_classes = logits.shape[1]
        expected = (batch_size, self.num_classes)
        if found != expected:
            raise ValueError(
                f"{type(self.net).__name__} returned {found}, not (images, num_classes) = {expected} logits"
            )


def _meters(prefix: str) -> MetricCollection:
    """Loss and accuracy over all images of all processes.

    The loss is a metric, too: Lightning's own mean over processes, `sync_dist=True`, is wrong when these have seen
    different numbers of images, since it rounds their mean number down (2.6.6; 5 % too much with 11 and 10).
    """
    loss = MeanMetric(nan_strategy="disable")  # a NaN stays one; this also switches weights off (torchmetrics 1.9)
    # Labels are checked in _check_labels, which takes two numbers from a batch where torchmetrics would sort it.
    accuracy = MulticlassAccuracy(average="micro", validate_args=False)  # needs no number of classes
    return MetricCollection({"loss": loss, "accuracy": accuracy}, prefix=prefix, compute_groups=False)

"""Which part of what a network has learned have other networks of the same task learned, too?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from netprism.components.disentangler import FEW_ORDERS
from netprism.components.distillation import mimic_losses
from netprism.components.network_split import SplitNetwork
from netprism.components.reliable_nets import ReliableNets
from netprism.components.reliable_variance import Reliability
from netprism.figures import reliability as figures
from netprism.lightning_modules._base import Batch, TeacherModule, check_finite
from netprism.loggers import publish
from netprism.metrics import ReliabilityMetric

_SHOWN = 6  # images in the picture


class ReliableDisentangler(TeacherModule):
    """Trains for each order a wide net psi with a linear readout per network, and Phi^(l) of the first network.

    The first network is the target, the others are what it is compared with: strong networks of the same task. From
    psi, its readouts and Phi^(l) follow the reliable part of Phi^(l) and its fraction of the variance, see
    `netprism.components`. All orders learn in one training; each network runs once per batch. The nets of different
    orders have no parameter in common, so that one Adam does the same as one per order.

    | key, once per epoch | meaning | unit | range | better |
    | --- | --- | --- | --- | --- |
    | `train/loss` | sum of the following two, over orders | of f, squared | 0 up | lower |
    | `train/shared_loss/<order>` | sum over networks of mean (f_k - g_k(psi))^2 | of f, squared | 0 up | lower |
    | `train/mimic_loss/<order>` | mean (f_1 - Phi^(l))^2 | of f, squared | 0 up | lower |
    | `reliability/test/reliability/<order>` | rho^(l),reli = Var[Phi^(l),reli] / Var[Phi^(l)] | 1 | 0 to about 1 | |
    | `reliability/test/reliability` | mean over the orders | 1 | 0 to about 1 | |
    | `reliability/test/reliable_significance/<order>` | Var[new in Phi^(l),reli] / Var[f] | 1 | 0 up | |
    | `reliability/test/unreliable_significance/<order>` | Var[new in Phi^(l),unreli] / Var[f] | 1 | 0 up | |
    | `reliability/test/unexplained/<order>` | Var[f_1 - g_1(psi)] / Var[f_1] | 1 | 0 up | lower |
    | `reliability/test/unexplained` | mean over the orders | 1 | 0 up | lower |

    Means are over images and elements; "new" is what an order adds to the next shallower one; `unexplained` tells how
    far psi has learned. `test/` is of validation images in a training, and of test images in `trainer.test`. At the end
    `<log_dir>/figures` has `reliability.json` and `reliability.csv` with all numbers of the last validation, and the
    pictures `reliability_{curves,rounds,parts}.png`.

    Cost: a step trains two disentangler nets per order. A validation adds (L (512 r + c) + c)^2 multiply-adds per image
    and position in float64, see `netprism.metrics.ReliabilityMetric`.

    Args:
        teachers: K >= 2 networks from images (N, ...) to logits, the target first. They are set to eval mode here,
            never trained, and part of the checkpoints.
        layer: Layer of the features, one for all networks or one for each, see `netprism.components.SplitNetwork`. The
            features may differ in channels, not in height and width.
        orders: Numbers of ReLUs l, rising, each 3m + 1.
        width: The factor r; psi has 512 r channels, and needs more than any of the features. With fewer than the sum of
            their channels, networks that share nothing can seem to.
        skip: Whether the nets are residual; otherwise they are stacked.
        rounds: Number of round trips R.
        refit: Whether the maps are fitted again in each round.
        input_shape: Shape (C, H, W) of an image; None for the data module's `shape`.
        optimizer: Function from parameters to optimiser; None for Adam with learning rate 1e-3.
        lr_final_factor: Factor by which the learning rate falls over the training, exponentially.

    Raises:
        ValueError: An option is impossible, a layer unknown (with the list of layers), features have different sizes,
            psi is too narrow, a feature constant, or a loss not finite.

    Source: Ren et al. 2020, section 3.2, https://arxiv.org/abs/2006.15920. The learning rate falls from 1e-3 to 1e-5 as
    its authors had it.
    """

    def __init__(
        self,
        teachers: list[nn.Module],
        layer: str | list[str],
        orders: Sequence[int] = FEW_ORDERS,
        width: float = 1.0,
        skip: bool = True,
        rounds: int = 10,
        refit: bool = True,
        input_shape: tuple[int, ...] | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_final_factor: float = 0.01,
    ) -> None:
        super().__init__(teachers, input_shape)
        layers = [layer] * len(teachers) if isinstance(layer, str) else list(layer)
        if len(teachers) < 2 or len(layers) != len(teachers):
            raise ValueError(
                f"there are {len(teachers)} teachers and {len(layers)} layers; expected 2 or more, and a layer for each"
            )
        self.save_hyperparameters(ignore=["teachers", "optimizer"])
        self.orders = tuple(orders)
        self.width, self.skip = width, skip
        self.optimizer, self.lr_final_factor = optimizer, lr_final_factor
        self.cuts = [SplitNetwork(teacher, name) for teacher, name in zip(teachers, layers, strict=True)]
        self.metric = ReliabilityMetric(self.orders, [], rounds, refit)  # of readouts that are still to be made
        self.reliable_nets: ReliableNets | None = None
        self.found: Reliability | None = None  # of the last validation or test
        self.history: list[dict[str, float]] = []
        self._shown = torch.empty(0)
        if input_shape is not None:
            self.configure_model()

    def build(self, input_shape: tuple[int, ...]) -> None:
        """Makes the nets."""
        shapes = [feature.shape[1:] for feature in self._features(self.example(input_shape))]
        self.reliable_nets = ReliableNets(input_shape, shapes, self.orders, self.width, self.skip)

    @property
    def nets(self) -> ReliableNets:
        """The wide nets with their readouts, and the target's own disentangler nets."""
        if self.reliable_nets is None:
            raise RuntimeError("the nets are made when the training begins; give input_shape to have them at once")
        return self.reliable_nets

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Maps images (N, ...) to Phi^(l) and Phi^(l),reli of the target, one of each for each order, (N, c, ...).

        Raises:
            RuntimeError: The round trips have not been measured yet, by a validation or a test.
        """
        psi, approximations = self.nets(x)
        return approximations, self.nets.reliable(psi)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Makes one optimiser of all nets, and its schedule."""
        parameters = self.nets.parameters()
        optimizer = torch.optim.Adam(parameters, 1e-3) if self.optimizer is None else self.optimizer(parameters)
        total = self.trainer.estimated_stepping_batches
        if total == float("inf"):
            raise ValueError("the number of steps is infinite; expected trainer.max_epochs or trainer.max_steps")
        schedule = LambdaLR(optimizer, lambda step: self.lr_final_factor ** min(1.0, step / max(1, total)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: Batch) -> Tensor:
        """Returns the sum over orders of all losses of a batch."""
        images = self.images(batch)
        features = self._features(images)
        psis, approximations = self.nets(images)
        losses: dict[str, Tensor] = {}
        for order, psi, net in zip(self.orders, psis, self.nets.wide, strict=True):
            errors = [F.mse_loss(mimic, f) for mimic, f in zip(net.mimics(psi), features, strict=True)]
            losses[f"train/shared_loss/{order}"] = torch.stack(errors).sum()
        for order, loss in zip(self.orders, mimic_losses(approximations, features[0]), strict=True):
            losses[f"train/mimic_loss/{order}"] = loss
        for key, value in losses.items():
            check_finite(self, key, value)
        total = torch.stack(list(losses.values())).sum()
        self.log_dict(
            {key: value.detach() for key, value in {"train/loss": total, **losses}.items()},
            on_step=False, on_epoch=True, sync_dist=True, batch_size=len(images),
        )  # fmt: skip
        return total

    def on_validation_epoch_start(self) -> None:
        """Forgets the images of the last validation; in the first batch, DDP itself takes rank 0's buffers to all."""
        self.metric.reset()
        self.metric.readouts = [net.readout_matrices for net in self.nets.wide]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch; the first one's images are those of the picture."""
        images = self.images(batch)
        psi, approximations = self.nets(images)
        self.metric.update(psi, approximations, self._features(images)[0])
        if batch_idx == 0:
            self._shown = images[:_SHOWN].detach()

    def on_validation_epoch_end(self) -> None:
        """Logs the reliability over all images of all processes, and keeps it for the curves."""
        found = self._measure()
        if not self.trainer.sanity_checking:
            rho = {f"reliability/{o}": value for o, value in zip(self.orders, found.reliability, strict=True)}
            self.history = [row for row in self.history if row["epoch"] < self.current_epoch]
            self.history.append({"epoch": self.current_epoch, **rho})

    on_test_epoch_start, test_step = on_validation_epoch_start, validation_step

    def on_test_epoch_end(self) -> None:
        """Logs the reliability over all images of all processes."""
        self._measure()

    def on_train_end(self) -> None:
        """Writes tables and pictures of the last validation into the run's folder, the pictures to W&B as well."""
        if self.found is not None:
            publish(self.trainer, self._report)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the curves."""
        checkpoint["reliability_history"] = self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continues with the curves."""
        self.history = checkpoint["reliability_history"]

    @torch.no_grad()
    def _features(self, x: Tensor) -> list[Tensor]:
        return [cut.feature(x) for cut in self.cuts]

    @torch.no_grad()
    def _measure(self) -> Reliability:
        self.found = found = self.metric.reliability()
        self.nets.weights.copy_(found.weights)
        self.nets.biases.copy_(found.biases)
        values = {f"reliability/test/{key}": value for key, value in found.quantities.items()}
        # The ranks agree already: a maximum keeps the value bitwise, where a mean may round.
        self.log_dict(values, sync_dist=True, reduce_fx="max")
        return found

    def _report(self, folder: Path) -> list[Path]:
        assert self.found is not None
        training = self.training
        with torch.no_grad():
            approximations, reliable = self.eval()(self._shown)
            feature = self._features(self._shown)[0]
        self.train(training)
        drawn = figures.draw(self.found, self.history, self._shown, feature, approximations, reliable, folder)
        return drawn + figures.write_tables(self.found, folder)

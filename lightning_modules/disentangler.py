"""Distils a feature of a trained network into nets of rising depth: how much of it can l ReLUs reproduce?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from netprism.components.disentangler import ORDERS, Disentanglers, check_orders
from netprism.components.distillation import DisentangledFeature, mimic_losses
from netprism.components.network_split import SplitNetwork
from netprism.lightning_modules._base import Batch, TeacherModule, check_finite
from netprism.metrics import ComponentMetric


class Disentangler(TeacherModule):
    """Trains a disentangler net of each order to mimic the feature of one layer: Phi^(l), all in one training.

    The teacher runs once per batch for all orders. Their losses have no parameter in common, so one optimiser with a
    group of parameters and a schedule for each order does the same as one optimiser per order, as long as it treats
    each parameter by itself, as SGD and Adam do; do not clip the common norm.

    Warm start: the orders start one after the other, evenly over the first part of the training, each from the net that
    the next shallower one is then, block by block, with a new optimiser state. So every order has had the same number
    of training steps, counting those of the nets that it was initialised from. In the residual form it starts as the
    same function, and its component at 0. An order that has not started counts as the next shallower one.

    | key, once per epoch | meaning | unit | range | better |
    | --- | --- | --- | --- | --- |
    | `train/loss/<order>` | mean over images and elements of (f - Phi^(l))^2 | of f, squared | 0 up | lower |
    | `train/loss` | sum over the orders that have started | of f, squared | 0 up | lower |
    | `val/loss/<order>`, `val/loss` | of validation images, summed over all orders | of f, squared | 0 up | lower |
    | `val/unexplained` | mean over orders of E||f - Phi^(l)||^2 / Var[f] | 1 | 0 up | lower |
    | `val/significance/<order>` | Var[Phi^(l) - that of the next shallower] / Var[f] | 1 | 0 up | |

    `trainer.test` logs the keys of `val` as those of `test`.

    `netprism.callbacks.FeatureComponents` logs the components themselves: their significance, and what needs the head,
    effectiveness, over-fitting and accuracy. It also draws them.

    Args:
        teacher: Network from images (N, ...) to logits. It is set to eval mode here, never trained, and part of the
            checkpoints.
        layer: Layer of the feature, see `netprism.components.SplitNetwork`.
        orders: Numbers of ReLUs l, rising, each 3m + 1.
        width: The factor r: stages of 128 r, 256 r and 512 r channels.
        skip: Whether the nets are residual; otherwise they are stacked.
        warm_start: Whether each order starts from the next shallower one; otherwise all start at once, at random.
        warm_start_fraction: Fraction of the training after which the deepest order starts, 0 to 1.
        input_shape: Shape (C, H, W) of an image; None for the data module's `shape`.
        head: Names of the modules behind the layer, where they are not found; see `SplitNetwork`.
        optimizer: Function from parameters to optimiser; None for Adam with learning rate 1e-3.
        lr_final_factor: Factor by which each order's learning rate falls over its steps, exponentially.

    Raises:
        ValueError: An option is impossible, a layer unknown (with the list of layers), the feature constant, or a loss
            not finite.

    Source: Ren et al. 2020, section 3.1, https://arxiv.org/abs/2006.15920. The learning rate falls from 1e-3 to 1e-5 as
    its authors had it.
    """

    def __init__(
        self,
        teacher: nn.Module,
        layer: str,
        orders: Sequence[int] = ORDERS,
        width: float = 1.0,
        skip: bool = True,
        warm_start: bool = True,
        warm_start_fraction: float = 0.5,
        input_shape: tuple[int, ...] | None = None,
        head: list[str] | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_final_factor: float = 0.01,
    ) -> None:
        super().__init__(teacher, input_shape)
        if not 0 <= warm_start_fraction < 1:
            raise ValueError(f"warm_start_fraction is {warm_start_fraction}; expected a number >= 0 and < 1")
        if not 0 < lr_final_factor <= 1:
            raise ValueError(f"lr_final_factor is {lr_final_factor}; expected a number > 0 and <= 1")
        self.save_hyperparameters(ignore=["teacher", "head", "optimizer"])
        self.orders = check_orders(orders)
        self.width, self.skip, self.warm_start = width, skip, warm_start
        self.warm_start_fraction, self.lr_final_factor, self.optimizer = warm_start_fraction, lr_final_factor, optimizer
        self.cut = SplitNetwork(teacher, layer, head)
        self.starts = [0] * len(self.orders)  # the steps
        self.started = 1 if warm_start else len(self.orders)
        self.disentanglers: Disentanglers | None = None
        self.metric = ComponentMetric(self.orders)
        if input_shape is not None:
            self.configure_model()

    def build(self, input_shape: tuple[int, ...]) -> None:
        """Makes the nets."""
        shape = self._feature(self.example(input_shape)).shape[1:]
        self.disentanglers = Disentanglers(input_shape, shape, self.orders, self.width, self.skip)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps images (N, ...) to Phi^(l) (N, ...), one for each order."""
        nets = self.nets
        approximations = [net(x) for net in list(nets.nets)[: self.started]]
        return approximations + approximations[-1:] * (len(nets) - self.started)

    @property
    def nets(self) -> Disentanglers:
        """The disentangler nets."""
        if self.disentanglers is None:
            raise RuntimeError("the nets are made when the training begins; give input_shape to have them at once")
        return self.disentanglers

    def disentangled_feature(self) -> DisentangledFeature:
        """Returns the feature with its nets, which `netprism.callbacks.FeatureComponents` measures."""
        return DisentangledFeature(self.orders, self.cut, self)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Makes one optimiser with a group of parameters for each order, and the schedule of each group."""
        total = self.trainer.estimated_stepping_batches
        if total == float("inf"):
            raise ValueError("the number of steps is infinite; expected trainer.max_epochs or trainer.max_steps")
        last = max(1, len(self.orders) - 1)
        fraction = self.warm_start_fraction if self.warm_start else 0
        self.starts = [math.ceil(fraction * total * i / last) for i in range(len(self.orders))]
        groups = [{"params": list(net.parameters())} for net in self.nets.nets]
        optimizer = torch.optim.Adam(groups, lr=1e-3) if self.optimizer is None else self.optimizer(groups)
        schedule = LambdaLR(optimizer, [self._falling(start, total) for start in self.starts])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Starts the orders whose turn it is."""
        while self.started < len(self.orders) and self.global_step >= self.starts[self.started]:
            new = self.nets[self.started]
            new.start_from(self.nets[self.started - 1])
            optimizer = self.optimizers(use_pl_optimizer=False)
            assert isinstance(optimizer, Optimizer)
            for parameter in new.parameters():
                optimizer.state.pop(parameter, None)  # Adam's count of steps
            self.started += 1

    def training_step(self, batch: Batch) -> Tensor:
        """Returns the sum over orders of the mean squared error of a batch."""
        images = self.images(batch)
        losses = mimic_losses(self(images)[: self.started], self._feature(images))
        for order, loss in zip(self.orders, losses, strict=False):
            check_finite(self, f"train/loss/{order}", loss)
        total: Tensor = torch.stack(losses).sum()
        each = losses + losses[-1:] * (len(self.orders) - self.started)
        values = {f"train/loss/{order}": loss for order, loss in zip(self.orders, each, strict=True)}
        self.log_dict(
            {key: value.detach() for key, value in {"train/loss": total, **values}.items()},
            on_step=False, on_epoch=True, sync_dist=True, batch_size=len(images),
        )  # fmt: skip
        waiting = list(self.nets.nets)[self.started :]
        if self.trainer.world_size == 1 or not waiting:
            return total
        # Under DDP every parameter needs a gradient in every step; those that wait get zeros.
        return total + 0.0 * torch.stack([p.sum() for net in waiting for p in net.parameters()]).sum()

    def on_validation_epoch_start(self) -> None:
        """Forgets the images of the last validation."""
        self.metric.reset()

    def validation_step(self, batch: Batch) -> None:
        """Adds a batch."""
        images = self.images(batch)
        self.metric.update(self._feature(images), self(images))

    def on_validation_epoch_end(self) -> None:
        """Logs how far the nets are from the feature, over all images of all processes."""
        self._log_errors("val")

    on_test_epoch_start, test_step = on_validation_epoch_start, validation_step

    def on_test_epoch_end(self) -> None:
        """Logs how far the nets are from the feature, over all images of all processes."""
        self._log_errors("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds how many orders have started."""
        checkpoint["started_orders"] = self.started

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continues with the orders that had started."""
        self.started = checkpoint["started_orders"]

    @torch.no_grad()
    def _feature(self, x: Tensor) -> Tensor:
        return self.cut.feature(x)

    def _falling(self, start: int, total: float) -> Callable[[int], float]:
        """The factor of the learning rate of an order that starts at a step."""
        return lambda step: self.lr_final_factor ** (max(0, step - start) / max(1, total - start))

    def _log_errors(self, stage: str) -> None:
        found = self.metric.components()
        elements = math.prod(self.nets[0].feature_shape)
        losses = [value * found.feature_variance / elements for value in found.unexplained]
        values = {f"{stage}/loss/{order}": loss for order, loss in zip(self.orders, losses, strict=True)}
        values |= {f"{stage}/loss": sum(losses), f"{stage}/unexplained": sum(found.unexplained) / len(self.orders)}
        of_orders = zip(self.orders, found.significance, strict=True)
        values |= {f"{stage}/significance/{order}": value for order, value in of_orders}
        # The ranks agree already: a maximum keeps the value bitwise, where a mean may round.
        self.log_dict(values, sync_dist=True, reduce_fx="max")

"""Distils a feature of a trained network into nets of rising depth: what can so many ReLUs make of it?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import OptimizerCallable
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from netprism.components.disentangler import ORDERS, Disentanglers, check_orders
from netprism.components.measures import ComponentMetric
from netprism.components.network_split import SplitNetwork

Batch = Sequence[Tensor]


class Disentangler(LightningModule):
    """Trains a disentangler net of each order to mimic the feature of one layer: Phi^(l), all in one training.

    The teacher runs once a batch for all orders. Their losses have no parameter in common, so that one optimiser with a
    group of parameters for each order, and a schedule for each, is as many optimisers (as long as it treats each
    parameter for itself, as SGD and Adam do; do not clip the common norm).

    Warm start: the orders start one after the other, evenly over the first part of the training, each from the net that
    the next shallower one is then, block by block, with a fresh optimiser state. So every order looks back on equally
    many steps, its forebears' and its own. In the residual form it starts as the same function, and its component at 0.
    An order that has not started counts as the next shallower one.

    | key, once per epoch | meaning | unit | range | better |
    | --- | --- | --- | --- | --- |
    | `train/loss/<order>` | mean over batches and elements of (f - Phi^(l))^2 | of f, squared | 0 up | lower |
    | `val/significance/<order>` | Var[c^(l)] / Var[f] | 1 | 0 up | |
    | `val/unexplained/<order>` | E||f - Phi^(l)||^2 / Var[f] | 1 | 0 up | lower |
    | `val/unexplained` | mean over the orders | 1 | 0 up | lower |

    and `test/...` likewise. `netprism.callbacks.FeatureComponents` adds what needs the head: effectiveness,
    over-fitting, accuracy, pictures.

    Args:
        teacher: images (N, ...) to logits; set to eval mode here, never trained, and part of the checkpoints.
        layer: the layer of the feature, see `netprism.components.network_split.SplitNetwork`.
        orders: l, numbers of ReLUs, rising, each 3m + 1.
        width: r: stages of 128 r, 256 r and 512 r channels.
        skip: residual nets, or stacked ones.
        warm_start: start each order from the next shallower one; else all at once, at random.
        warm_start_fraction: share of the training after which the deepest order starts, 0 to 1.
        input_shape: (C, H, W) of an image; None: the data module's `shape`.
        head: where the head is not found, the modules that make it; see `SplitNetwork`.
        optimizer: parameters to optimiser; None: Adam with learning rate 1e-3.
        decay: each order's learning rate falls by this factor over its steps, exponentially.

    Raises:
        ValueError: impossible options, an unknown layer (with the list of layers), a constant feature, or a loss that
            is not finite.

    Source: "Disentanglement, Visualization and Analysis of Complex Features in DNNs", section 3.1. Learning rate from
    1e-3 to 1e-5 as its authors had it.
    """

    teacher: nn.Module

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
        decay: float = 0.01,
    ) -> None:
        super().__init__()
        if not 0 <= warm_start_fraction < 1 or not 0 < decay <= 1:
            raise ValueError(
                f"warm_start_fraction is {warm_start_fraction}, decay {decay}; expected 0 <= .. < 1, 0 < .. <= 1"
            )
        self.save_hyperparameters(ignore=["teacher", "head", "optimizer"])
        self.orders = check_orders(orders)
        self.width, self.skip, self.warm_start = width, skip, warm_start
        self.warm_start_fraction, self.decay, self.optimizer = warm_start_fraction, decay, optimizer
        self.teacher = teacher.requires_grad_(False).eval()
        self.split = SplitNetwork(teacher, layer, head)
        self.starts = [0] * len(self.orders)  # the steps
        self.started = 1 if warm_start else len(self.orders)
        self.disentanglers: Disentanglers | None = None
        if input_shape is not None:
            self._build(tuple(input_shape))

    def configure_model(self) -> None:
        """Makes the nets, once the shape of an image is known."""
        if self.disentanglers is None:
            shape = getattr(self.trainer.datamodule, "shape", None)  # type: ignore[attr-defined]
            if shape is None:
                raise ValueError("the data module has no `shape` of an image: give input_shape=(C, H, W)")
            self._build(tuple(shape))

    def train(self, mode: bool = True) -> Disentangler:
        """All but the teacher, which stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (N, ...) to Phi^(l) (N, ...), one for each order."""
        nets = self.nets
        approximations = [net(x) for net in list(nets.nets)[: self.started]]
        return approximations + approximations[-1:] * (len(nets) - self.started)

    @property
    def nets(self) -> Disentanglers:
        """The disentangler nets."""
        if self.disentanglers is None:
            raise RuntimeError("the nets are made when the training begins; give input_shape to have them at once")
        return self.disentanglers

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One optimiser with a group of parameters for each order, and the schedule of each group."""
        total = self.trainer.estimated_stepping_batches
        if total == float("inf"):
            raise ValueError("a training without end: set trainer.max_epochs or trainer.max_steps")
        last = max(1, len(self.orders) - 1)
        share = self.warm_start_fraction if self.warm_start else 0
        self.starts = [math.ceil(share * total * i / last) for i in range(len(self.orders))]
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
        """Sum over orders of the mean squared error of a batch."""
        feature = self._feature(batch[0])
        approximations = self(batch[0])
        losses = [F.mse_loss(phi, feature) for phi in approximations[: self.started]]
        total: Tensor = torch.stack(losses).sum()
        if not total.isfinite():
            order, loss = next((o, x) for o, x in zip(self.orders, losses, strict=False) if not x.isfinite())
            remedies = "a smaller learning rate or trainer.precision=32"
            raise ValueError(f"train/loss/{order} is {loss.item()} at step {self.global_step}: try {remedies}")
        values = losses + losses[-1:] * (len(self.orders) - self.started)
        self.log_dict(
            {f"train/loss/{order}": loss.detach() for order, loss in zip(self.orders, values, strict=True)},
            on_step=False, on_epoch=True, sync_dist=True, batch_size=len(feature),
        )  # fmt: skip
        self.log("train/loss", total.detach(), on_step=False, on_epoch=True, sync_dist=True, batch_size=len(feature))
        waiting = list(self.nets.nets)[self.started :]
        if self.trainer.world_size == 1 or not waiting:
            return total
        # Under DDP every parameter needs a gradient in every step; those that wait get zeros.
        return total + 0.0 * torch.stack([p.sum() for net in waiting for p in net.parameters()]).sum()

    def on_validation_epoch_start(self) -> None:
        """Begins to count."""
        self._meter = ComponentMetric(self.orders)

    def validation_step(self, batch: Batch) -> None:
        """Counts a batch."""
        self._meter.update(self._feature(batch[0]), self(batch[0]))

    def on_validation_epoch_end(self) -> None:
        """Logs the components over all images of all processes."""
        self._log_components("val")

    on_test_epoch_start, test_step = on_validation_epoch_start, validation_step

    def on_test_epoch_end(self) -> None:
        """Logs the components over all images of all processes."""
        self._log_components("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds how many orders have started."""
        checkpoint["started_orders"] = self.started

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on with the orders that had started."""
        self.started = checkpoint["started_orders"]

    def _build(self, input_shape: tuple[int, ...]) -> None:
        device = next((p.device for p in self.teacher.parameters()), self.device)
        # not zeros: where nothing is left after a ReLU, any two layers return the same
        noise = torch.randn(2, *input_shape, generator=torch.Generator().manual_seed(0)).to(device)
        shape = self._feature(noise).shape[1:]
        self.disentanglers = Disentanglers(input_shape, shape, self.orders, self.width, self.skip)
        self.hparams["input_shape"] = input_shape

    @torch.no_grad()
    def _feature(self, x: Tensor) -> Tensor:
        return self.split.feature(x)

    def _falling(self, start: int, total: float) -> Callable[[int], float]:
        """The factor of the learning rate of an order that starts at a step."""
        return lambda step: self.decay ** (max(0, step - start) / max(1, total - start))

    def _log_components(self, stage: str) -> None:
        self._meter.all_reduce()
        found = self._meter.compute()
        values = {f"{stage}/unexplained": sum(found.unexplained) / len(self.orders)}
        for i, order in enumerate(self.orders):
            values |= {
                f"{stage}/significance/{order}": found.significance[i],
                f"{stage}/unexplained/{order}": found.unexplained[i],
            }
        # The ranks agree already: a maximum keeps the value to the bit, where a mean may round.
        self.log_dict(values, sync_dist=True, reduce_fx="max")

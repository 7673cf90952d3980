"""Which part of what a network has learned have other networks of the same task learned, too?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import OptimizerCallable
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from netprism.components.network_split import SplitNetwork
from netprism.components.reliability import Solver, check_solver
from netprism.components.reliability_meter import Reliability
from netprism.components.reliable_nets import ReliableNets
from netprism.figures import reliability as figures
from netprism.loggers import publish

Batch = Sequence[Tensor]

ORDERS = (4, 7, 13, 25)
_SHOWN = 6  # images in the picture
_FALL = 0.01  # of the learning rate over the training


class ReliableDisentangler(LightningModule):
    """Trains, for each order, a wide net psi with a linear head for each of K networks, and Phi^(l) of the first one.

    The first network is the target, the others are what it is compared with: strong networks of the same task. From
    psi, its heads and Phi^(l) follow the reliable part of Phi^(l) and its share of the variance, see
    `netprism.components`. All orders learn in one training; each network runs once a batch. The nets of different
    orders have no parameter in common, so that one Adam is as many.

    | key, once per epoch | meaning | unit | range | better |
    | --- | --- | --- | --- | --- |
    | `train/loss` | sum of all the following, over orders | of f, squared | 0 up | lower |
    | `train/shared_loss/<order>` | sum over networks of the mean over elements of (f_k - g_k(psi))^2 | likewise | | |
    | `train/own_loss/<order>` | mean over elements of (f_1 - Phi^(l))^2 | likewise | | |
    | `train/cycle_loss/<order>` | eq. 5, with solver "sgd" only | of psi, squared | 0 up | lower |
    | `val/reliability/<order>` | rho^(l),reli = Var[Phi^(l),reli] / Var[Phi^(l)] | 1 | 0 to about 1 | |
    | `val/reliability` | mean over the orders | 1 | likewise | |
    | `val/new_reliable/<order>` | Var[new at this order in Phi^(l),reli] / Var[f] | 1 | 0 up | |
    | `val/new_unreliable/<order>` | Var[new at this order in Phi^(l),unreli] / Var[f] | 1 | 0 up | |
    | `val/unexplained/<order>` | Var[f_1 - g_1(psi)] / Var[f_1]: how far psi has learned | 1 | 0 up | lower |
    | `val/unexplained` | mean over the orders | 1 | 0 up | lower |

    and `test/...` likewise. At the end, `<log_dir>/figures` has `reliability.json` and `reliability.csv` with all
    numbers of the last validation, and the pictures `reliability_{curves,rounds,parts}.png`.

    Cost: a step trains two disentangler nets an order. A validation adds (L (512 r + c) + c)^2 multiply-adds an image
    and position in float64, see `ReliabilityMetric`.

    Args:
        teachers: K >= 2 networks, images (N, ...) to logits, the target first; set to eval mode here, never trained,
            and part of the checkpoints.
        layer: the layer of the features, one for all or one for each, see `SplitNetwork`. The features
            may differ in channels, not in height and width.
        orders: l, numbers of ReLUs, rising, each 3m + 1.
        width: r; psi has 512 r channels, and needs more than any of the features. Below the sum of their channels,
            networks that share nothing can seem to.
        skip: residual nets, or stacked ones.
        rounds: R.
        solver: "closed_form", or "sgd": the maps h_k are trained along with everything else, on psi and heads without
            gradient.
        refit: with "closed_form", fit the maps anew in each round; "sgd" does so anyway.
        input_shape: (C, H, W) of an image; None: the data module's `shape`.
        optimizer: parameters to optimiser; None: Adam with learning rate 1e-3. The rate falls to a hundredth of what it
            starts with over the training, exponentially.

    Raises:
        ValueError: impossible options, an unknown layer (with the list of layers), features of different sizes, psi too
            narrow, a constant feature, or a loss that is not finite.

    Source: "Disentanglement, Visualization and Analysis of Complex Features in DNNs", section 3.2. Learning rate from
    1e-3 to 1e-5 as its authors had it.
    """

    def __init__(
        self,
        teachers: list[nn.Module],
        layer: str | list[str],
        orders: Sequence[int] = ORDERS,
        width: float = 1.0,
        skip: bool = True,
        rounds: int = 10,
        solver: Solver = "closed_form",
        refit: bool = False,
        input_shape: tuple[int, ...] | None = None,
        optimizer: OptimizerCallable | None = None,
    ) -> None:
        super().__init__()
        check_solver(solver)
        layers = [layer] * len(teachers) if isinstance(layer, str) else list(layer)
        if len(teachers) < 2 or len(layers) != len(teachers):
            raise ValueError(f"{len(teachers)} teachers and {len(layers)} layers; expected 2 or more, a layer for each")
        self.save_hyperparameters(ignore=["teachers", "optimizer"])
        self.orders, self.rounds, self.solver, self.refit = tuple(orders), rounds, solver, refit
        self.width, self.skip, self.optimizer = width, skip, optimizer
        self.teachers = nn.ModuleList(teacher.requires_grad_(False).eval() for teacher in teachers)
        self.splits = [SplitNetwork(teacher, name) for teacher, name in zip(teachers, layers, strict=True)]
        self.reliable_nets: ReliableNets | None = None
        self.found: Reliability | None = None  # of the last validation or test
        self.history: list[dict[str, float]] = []
        self._shown = torch.empty(0)
        if input_shape is not None:
            self._build(tuple(input_shape))

    @property
    def nets(self) -> ReliableNets:
        """The wide nets with their heads, and the target's own disentangler nets."""
        if self.reliable_nets is None:
            raise RuntimeError("the nets are made when the training begins; give input_shape to have them at once")
        return self.reliable_nets

    def configure_model(self) -> None:
        """Makes the nets, once the shape of an image is known."""
        if self.reliable_nets is None:
            shape = getattr(self.trainer.datamodule, "shape", None)  # type: ignore[attr-defined]
            if shape is None:
                raise ValueError("the data module has no `shape` of an image: give input_shape=(C, H, W)")
            self._build(tuple(shape))

    def train(self, mode: bool = True) -> ReliableDisentangler:
        """All but the teachers, which stay in eval mode."""
        super().train(mode)
        self.teachers.eval()
        return self

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Images (N, ...) to Phi^(l) and Phi^(l),reli of the target, one of each for each order, (N, c, ...).

        Raises:
            RuntimeError: the round trips have not been measured yet, by a validation or a test.
        """
        psi, approximations = self.nets(x)
        return approximations, self.nets.reliable(psi)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One optimiser of all nets, and its schedule."""
        parameters = self.nets.parameters()
        optimizer = torch.optim.Adam(parameters, lr=1e-3) if self.optimizer is None else self.optimizer(parameters)
        total = self.trainer.estimated_stepping_batches
        if total == float("inf"):
            raise ValueError("a training without end: set trainer.max_epochs or trainer.max_steps")
        schedule = LambdaLR(optimizer, lambda step: _FALL ** min(1.0, step / max(1, total)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: Batch) -> Tensor:
        """Sum over orders of all losses of a batch."""
        features = self._features(batch[0])
        losses: dict[str, Tensor] = {}
        for order, psi, phi, net in zip(self.orders, *self.nets(batch[0]), self.nets.wide, strict=True):
            errors = [F.mse_loss(mimic, f) for mimic, f in zip(net.mimics(psi), features, strict=True)]
            losses[f"train/shared_loss/{order}"] = torch.stack(errors).sum()
            losses[f"train/own_loss/{order}"] = F.mse_loss(phi, features[0])
            if self.solver == "sgd":
                losses[f"train/cycle_loss/{order}"] = net.cycle_loss(psi)
        for key, value in losses.items():
            if not value.isfinite():
                remedies = "a smaller learning rate or trainer.precision=32"
                raise ValueError(f"{key} is {value.item()} at step {self.global_step}: try {remedies}")
        loss = torch.stack(list(losses.values())).sum()
        values = {"train/loss": loss, **losses}
        self.log_dict(
            {key: value.detach() for key, value in values.items()},
            on_step=False, on_epoch=True, sync_dist=True, batch_size=len(batch[0]),
        )  # fmt: skip
        return loss

    def on_validation_epoch_start(self) -> None:
        """Begins to count; in the first batch, DDP itself takes rank 0's BatchNorm buffers to all ranks."""
        self._meter = self.nets.meter(self.rounds, self.refit)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Counts a batch; the first one's images are those of the picture."""
        psi, approximations = self.nets(batch[0])
        self._meter.update(psi, approximations, self._features(batch[0])[0])
        if batch_idx == 0:
            self._shown = batch[0][:_SHOWN].detach()

    def on_validation_epoch_end(self) -> None:
        """Logs the reliability over all images of all processes."""
        self._measure("val")
        if self.found is not None and not self.trainer.sanity_checking:
            rho = {f"reliability/{o}": value for o, value in zip(self.orders, self.found.reliability, strict=True)}
            self.history = [row for row in self.history if row["epoch"] < self.current_epoch]
            self.history.append({"epoch": self.current_epoch, **rho})

    on_test_epoch_start, test_step = on_validation_epoch_start, validation_step

    def on_test_epoch_end(self) -> None:
        """Logs the reliability over all images of all processes."""
        self._measure("test")

    def on_train_end(self) -> None:
        """Writes tables and pictures of the last validation into the run's folder, the pictures to W&B as well."""
        if self.found is not None:
            publish(self.trainer, self._report)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the curves."""
        checkpoint["reliability_history"] = self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on with the curves."""
        self.history = checkpoint["reliability_history"]

    def _build(self, input_shape: tuple[int, ...]) -> None:
        device = next((p.device for p in self.teachers.parameters()), self.device)
        # not zeros: where nothing is left after a ReLU, any two layers return the same
        noise = torch.randn(2, *input_shape, generator=torch.Generator().manual_seed(0)).to(device)
        shapes = [feature.shape[1:] for feature in self._features(noise)]
        rounds = self.rounds if self.solver == "sgd" else 0
        self.reliable_nets = ReliableNets(input_shape, shapes, self.orders, self.width, self.skip, rounds)
        self.hparams["input_shape"] = input_shape

    @torch.no_grad()
    def _features(self, x: Tensor) -> list[Tensor]:
        return [split.feature(x) for split in self.splits]

    def _measure(self, stage: str) -> None:
        self._meter.all_reduce()
        self.found = found = self._meter.compute()
        self.nets.remember(found)
        quantities = {
            "reliability": found.reliability,
            "new_reliable": [value / found.feature for value in found.reliable_component],
            "new_unreliable": [value / found.feature for value in found.unreliable_component],
            "unexplained": found.unexplained,
        }
        values = {
            f"{stage}/{name}/{order}": value
            for name, of_orders in quantities.items()
            for order, value in zip(self.orders, of_orders, strict=True)
        }
        for name in ("reliability", "unexplained"):
            values[f"{stage}/{name}"] = sum(quantities[name]) / len(self.orders)
        # The ranks agree already: a maximum keeps the value to the bit, where a mean may round.
        self.log_dict(values, sync_dist=True, reduce_fx="max")

    def _report(self, folder: Path) -> list[Path]:
        assert self.found is not None
        training = self.training
        with torch.no_grad():
            approximations, reliable = self.eval()(self._shown)
            feature = self._features(self._shown)[0]
        self.train(training)
        drawn = figures.draw(self.found, self.history, self._shown, feature, approximations, reliable, folder)
        return drawn + figures.write_tables(self.found, folder)

"""Feature components of rising complexity order, at the end of a training or during it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import move_data_to_device
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F
from torch.utils.data import Dataset

from netprism.callbacks._monitor import Monitor, OnError
from netprism.callbacks._view import View, callable_and_network, check_finite
from netprism.callbacks._monitor_data import MonitorData, Split, inputs_and_labels
from netprism.components.disentangler import Disentanglers, check_orders, stage_widths
from netprism.components.measures import ComponentMetric, Components, quantities
from netprism.components.network_split import SplitNetwork
from netprism.distributed import run_on_all_ranks
from netprism.figures import components as figures
from netprism.loggers import is_dry_run
from netprism.module_names import module_names
from netprism.taps import layer_names

_SPLITS: tuple[Split, ...] = ("train", "test")


@runtime_checkable
class HasDisentanglers(Protocol):
    """A LightningModule that makes Phi^(l) itself, as `netprism.lightning_modules.Disentangler` does."""

    orders: tuple[int, ...]
    split: SplitNetwork

    def __call__(self, x: Tensor) -> list[Tensor]:
        """Images to Phi^(l), one for each order."""


@dataclass(frozen=True)
class _Disentangled:
    """A feature, its head, and what the disentangler nets make of it."""

    orders: tuple[int, ...]
    split: SplitNetwork
    approximate: Callable[[Tensor], list[Tensor]]


class FeatureComponents(Monitor):
    """Logs how much of a layer's feature so many ReLUs can make, and what these components are good for.

    In a training of `Disentangler` its own nets are measured. In any other, disentangler nets are distilled here from
    the network as it is then, a few steps from where the last measurement left them; the training does not notice.

    | key | meaning | unit | range | better |
    | --- | --- | --- | --- | --- |
    | `components/significance/<order>` | Var[c^(l)] / Var[f] | 1 | 0 up | |
    | `components/unexplained/<order>` | E||f - Phi^(l)||^2 / Var[f] | 1 | 0 up | |
    | `components/contribution/<order>` | Shapley value of c^(l) in the fall of the task loss | nat | | higher |
    | `components/effectiveness/<order>` | the same / sqrt(Var[c^(l)]) | nat / unit of f | | higher |
    | `components/overfitting/<order>` | (contribution on training - on test images) / on training | 1 | | lower |
    | `components/loss/<order>` | cross-entropy of the head on Phi^(l) in place of f | nat | 0 up | lower |
    | `components/accuracy/<order>` | share of images it then classifies rightly | 1 | 0 to 1 | higher |
    | `components/rest_significance` | Var[f - Phi^(L)] / Var[f] | 1 | 0 up | |
    | `components/feature_loss`, `components/feature_accuracy` | of the head on f itself | nat, 1 | | |
    | `components/gain` | sum of all contributions | nat | | higher |

    Of the test images the same with `test_` before the quantity, but for over-fitting. Without labels only what needs
    none. At the end of the training `<log_dir>/figures` gets curves, bars and pictures of c^(l) and Phi^(l), and
    `<log_dir>/tables` everything as one JSON and one CSV.

    Cost of a measurement and split: a pass of the teacher and the nets, and 2^L runs of the head (L + 1 of a linear
    one). The distillation, where there is one: `steps` batches forward and backward, on every rank the same.

    Args:
        layer: of the feature, see `netprism.components.network_split.SplitNetwork`; not needed for a `Disentangler`.
        orders: likewise; numbers of ReLUs, each 3m + 1, rising.
        width: r: nets of 128 r, 256 r and 512 r channels.
        skip: residual nets, or stacked ones.
        steps: of distillation, each measurement.
        learning_rate: of Adam there; it falls to a hundredth.
        head: where the head is not found, names of the modules that make it.
        samples: images of each split, equally many of each class; all if there are fewer.
        every_n_epochs: also measure after every n-th epoch; None: after the last one only.
        measure_untrained: also measure before the first step, logged as epoch -1.
        images: how many test images (training images without a test set) are shown.
        channels: which channels are shown, or how many of those with the largest variance.
        batch_size: images in a forward pass.
        seed: of the choice of images and of the nets.
        name: prefix of the keys; give each of several instances its own.
        on_error: "raise" or "warn": whether an error ends the training, or costs this measurement and a line.
        train_data: a map-style data set to use in place of the trainer's training data.
        test_data: likewise; by default the data module's test set, or the first validation loader's.
        unpack: batch -> (inputs, integer labels or None).

    Source: "Disentanglement, Visualization and Analysis of Complex Features in DNNs", section 3.
    """

    def __init__(
        self,
        layer: str | None = None,
        orders: Sequence[int] = (4, 7, 13, 25),
        width: float = 0.125,
        skip: bool = True,
        steps: int = 500,
        learning_rate: float = 1e-3,
        head: list[str] | None = None,
        samples: int = 2000,
        every_n_epochs: int | None = None,
        measure_untrained: bool = False,
        images: int = 3,
        channels: list[int] | int = 2,
        batch_size: int = 128,
        seed: int = 0,
        name: str = "components",
        on_error: OnError = "raise",
        train_data: Dataset[Any] | None = None,
        test_data: Dataset[Any] | None = None,
        unpack: Callable[[Any], tuple[Any, Tensor | None]] = inputs_and_labels,
    ) -> None:
        super().__init__(
            name, num_images=samples, batch_size=batch_size, seed=seed, measure_untrained=measure_untrained,
            every_n_epochs=sys.maxsize if every_n_epochs is None else every_n_epochs,
            on_error=on_error, train_data=train_data, test_data=test_data, unpack=unpack,
        )  # fmt: skip
        for option, value in (("samples", samples), ("batch_size", batch_size), ("steps", steps), ("images", images)):
            if value < 1:
                raise ValueError(f"{option} is {value}; expected a number >= 1")
        stage_widths(width)
        self.layer, self.orders, self.width, self.skip = layer, check_orders(orders), width, skip
        self.steps, self.learning_rate, self.head = steps, learning_rate, head
        self.samples, self.batch_size, self.seed, self.unpack = samples, batch_size, seed, unpack
        self.images, self.channels = images, channels
        self._given: dict[Split, Dataset[Any] | None] = {"train": train_data, "test": test_data}
        self._nets: Disentanglers | None = None
        self._state: dict[str, Tensor] | None = None  # of nets that are not made yet
        self.found: dict[str, Components] = {}  # of the last measurement
        self.maps: dict[str, Tensor] = {}  # likewise, of the images to show

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forgets the data of another trainer and, in a training from the start, measurements and nets."""
        super().setup(trainer, pl_module, stage)
        if not isinstance(pl_module, HasDisentanglers) and self.layer is None:
            raise ValueError(f"{self.name}: layer is None; name the layer of {type(pl_module).__name__} to look into")
        if stage == "fit" and trainer.global_step == 0:
            self._nets, self._state = None, None

    def state_dict(self) -> dict[str, Any]:
        """What has been measured, and the nets that the next measurement starts from."""
        nets = self._state if self._nets is None else self._nets.state_dict()
        return {**super().state_dict(), "nets": nets}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where a run was stopped."""
        super().load_state_dict(state_dict)
        self._nets, self._state = None, state_dict["nets"]

    def measure(self, view: View, epoch: int) -> dict[str, float]:
        """The table above, for the training images and then for the test images."""
        self._view, trainer, pl_module = view, view.trainer, view.pl_module
        data = {split: self.choose_data(view, split) for split in _SPLITS}
        train = data["train"]
        assert train is not None  # choose_data raises where there are none
        disentangled = run_on_all_ranks(partial(self._disentangle, trainer, pl_module, train))
        if self._nets is not None and dist.is_available() and dist.is_initialized():
            for tensor in self._nets.state_dict().values():  # the same already, but for rounding on a GPU
                dist.broadcast(tensor, src=0)
        found: dict[str, Components] = {}
        for split, chosen in data.items():
            if chosen is not None:
                meter = run_on_all_ranks(partial(self._count, trainer, pl_module, disentangled, chosen, split))
                meter.all_reduce()
                found[split] = meter.compute()
        shown = data["test"] or train
        self.maps = run_on_all_ranks(partial(self._show, trainer, pl_module, disentangled, shown))
        self.found = found
        return quantities(found)

    def draw(self, trainer: pl.Trainer) -> None:
        """Draws the figures and writes the tables, into the run's folder and to W&B."""
        if self.found:
            self.publish(
                trainer, lambda f: figures.draw(self.history, self.found, self.maps, self.channels, f, self.name)
            )
            self.publish(trainer, lambda folder: figures.tabulate(self.found, folder, self.name), kind="tables")

    def _disentangle(self, trainer: pl.Trainer, pl_module: pl.LightningModule, data: MonitorData) -> _Disentangled:
        """The module's own nets, or ours after some steps of distillation."""
        if isinstance(pl_module, HasDisentanglers):
            return _Disentangled(pl_module.orders, pl_module.split, pl_module)
        model, network = callable_and_network(pl_module)
        prefix = module_names(model)[network]
        head = None if self.head is None else [_seen_from(model, prefix, name) for name in self.head]
        split = SplitNetwork(model, _seen_from(model, prefix, str(self.layer)), head)
        nets = self._distil(trainer, pl_module, split, data)
        return _Disentangled(self.orders, split, lambda x: nets(x.float()))

    def _distil(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, split: SplitNetwork, data: MonitorData
    ) -> Disentanglers:
        """Trains our nets, made here the first time; every rank on the same batches, with the same result."""
        steps = min(self.steps, 2) if is_dry_run(trainer) else self.steps
        optimizer = None
        for step in self._view.progress(range(steps), "distillation"):
            x, _ = self._load(trainer, pl_module, data, step % len(data.batches))
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                feature = split.feature(x).float()
            check_finite({str(self.layer): feature}, self.name)  # or the nets would never recover
            if optimizer is None:
                nets = self._made(x.shape[1:], feature.shape[1:]).to(feature.device).train()
                optimizer = torch.optim.Adam(nets.parameters(), self.learning_rate)
                falling = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.01 ** (1 / steps))
            with torch.enable_grad():
                loss = torch.stack([F.mse_loss(phi, feature) for phi in nets(x.float())]).sum()
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
            falling.step()
        return nets.eval()

    def _made(self, input_shape: Sequence[int], feature_shape: Sequence[int]) -> Disentanglers:
        """The nets of the last measurement, of a resumed run, or new ones."""
        if self._nets is None:
            torch.manual_seed(self.seed)
            self._nets = Disentanglers(input_shape, feature_shape, self.orders, self.width, self.skip)
            if self._state is not None:
                self._nets.load_state_dict(self._state)
        return self._nets

    def _load(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        data: MonitorData,
        number: int,
        size: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """A batch on the network's device, in its precision."""
        inputs, labels = self.unpack(data.load(number, size))
        moved = move_data_to_device((inputs, labels), pl_module.device)
        return trainer.precision_plugin.convert_input(moved[0]), moved[1]

    @torch.no_grad()
    def _count(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        disentangled: _Disentangled,
        data: MonitorData,
        split: str,
    ) -> ComponentMetric:
        """What the meter has seen after this rank's batches."""
        meter, cut = ComponentMetric(disentangled.orders), disentangled.split
        for i, number in enumerate(self._view.progress(data.shard(trainer.global_rank, trainer.world_size), split)):
            x, labels = self._load(trainer, pl_module, data, number)
            with trainer.precision_plugin.forward_context():
                if i == 0 and labels is not None:
                    cut.find_head(x)
                feature = cut.feature(x)
                check_finite({self.layer or cut.layer: feature}, self.name)
                head = partial(_head, cut, feature.dtype)
                approximations = [phi.float() for phi in disentangled.approximate(x)]
                meter.update(feature.float(), approximations, head, labels)
        return meter

    @torch.no_grad()
    def _show(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, disentangled: _Disentangled, data: MonitorData
    ) -> dict[str, Tensor]:
        """Some images, their features, and Phi^(l) `(orders, images, ...)`."""
        x, _ = self._load(trainer, pl_module, data, 0, self.images)
        with trainer.precision_plugin.forward_context():
            feature, approximations = disentangled.split.feature(x), disentangled.approximate(x)
        shown = {"images": x, "feature": feature, "approximations": torch.stack(approximations)}
        return {name: tensor.detach().float().cpu() for name, tensor in shown.items()}


def _seen_from(model: nn.Module, prefix: str, name: str) -> str:
    """The name of a layer as seen from what is called, where users leave out the attribute that holds the network."""
    return name if not prefix or name.partition("#")[0] in layer_names(model) else f"{prefix}.{name}"


def _head(split: SplitNetwork, dtype: torch.dtype, feature: Tensor) -> Tensor:
    return split.head(feature.to(dtype)).float()

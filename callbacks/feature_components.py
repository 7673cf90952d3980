"""Feature components of rising complexity order, at the end of a training or during it."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from netprism.callbacks._distilled_feature import disentangled_feature, measured, parts_of_images, take_nets_of_rank_0
from netprism.callbacks._monitor import Monitor, check_at_least
from netprism.callbacks._monitor_data import Split
from netprism.callbacks._view import View
from netprism.components.covariance import ConstantFeatureError
from netprism.components.disentangler import FEW_ORDERS
from netprism.components.distillation import Distiller
from netprism.components.measures import Components, quantities
from netprism.distributed import run_on_all_ranks
from netprism.figures import components as figures


class FeatureComponents(Monitor):
    """Logs how much of a layer's feature a given number of ReLUs can make, and what these components are good for.

    In a training of `Disentangler` its own nets are measured. In any other, disentangler nets are distilled from the
    network at each measurement, a few steps from where the last one left them; the training does not notice.

    | key | meaning | unit | range | better |
    | --- | --- | --- | --- | --- |
    | `components/significance/<order>` | Var[c^(l)] / Var[f] | 1 | 0 up | |
    | `components/unexplained/<order>` | E||f - Phi^(l)||^2 / Var[f] | 1 | 0 up | |
    | `components/contribution/<order>` | Shapley value of c^(l) in the decrease of the task loss | nat | | higher |
    | `components/effectiveness/<order>` | contribution / sqrt(Var[c^(l)]) | nat / unit of f | | higher |
    | `components/overfitting/<order>` | (contribution on training - on test images) / on training | 1 | | lower |
    | `components/loss/<order>` | cross-entropy of the head on Phi^(l) in place of f | nat | 0 up | lower |
    | `components/accuracy/<order>` | fraction of images it then classifies correctly | 1 | 0 to 1 | higher |
    | `components/rest_significance` | Var[f - Phi^(L)] / Var[f] | 1 | 0 up | |
    | `components/feature_loss`, `components/feature_accuracy` | of the head on f itself | nat, 1 | | |
    | `components/gain` | sum of all contributions | nat | | higher |

    The same quantities of the test images, except over-fitting, are `components/test/significance/<order>`, ... Without
    labels only those are logged that need none. At the end of the training `<log_dir>/figures` gets curves, bars and
    pictures of c^(l) and Phi^(l), and `<log_dir>/tables` all numbers as one JSON and one CSV.

    Cost of a measurement and split: a pass of the teacher and the nets, and 2^L runs of the head (L + 1 of a linear
    one). A distillation takes `steps` batches forward and backward, on every rank the same.

    Args:
        layer: Layer of the feature, see `netprism.components.SplitNetwork`; None for the last of the network's
            `tap_points`, or of its outermost blocks. A `Disentangler` needs neither this nor the
            options of the nets, `orders`, `width`, `skip`, `steps` and `learning_rate`.
        orders: Numbers of ReLUs l, rising, each 3m + 1.
        width: The factor r: nets of 128 r, 256 r and 512 r channels.
        skip: Whether the nets are residual; otherwise they are stacked.
        steps: Steps of distillation per measurement.
        learning_rate: Learning rate of Adam in the distillation; it falls to a hundredth each time.
        head: Names of the modules behind the layer, where they are not found.
        every_n_epochs: Also measure after every n-th epoch; None to measure after the last one only.
        measure_untrained: Also measure before the first step, logged as epoch -1.
        num_shown: Number of test images in the pictures; training images where there is no test set.
        channels: Channels in the pictures, or the number of those with the largest variance.
        name: Prefix of the logged keys.
        options: The other options are those of `Monitor`.

    Source: Ren et al. 2020, section 3, https://arxiv.org/abs/2006.15920.
    """

    def __init__(
        self,
        layer: str | None = None,
        orders: Sequence[int] = FEW_ORDERS,
        width: float = 0.125,
        skip: bool = True,
        steps: int = 500,
        learning_rate: float = 1e-3,
        head: list[str] | None = None,
        every_n_epochs: int | None = None,
        measure_untrained: bool = False,
        num_shown: int = 3,
        channels: list[int] | int = 2,
        name: str = "components",
        **options: Any,
    ) -> None:
        every = sys.maxsize if every_n_epochs is None else every_n_epochs
        super().__init__(name, every_n_epochs=every, measure_untrained=measure_untrained, **options)
        check_at_least(steps=(steps, 1), num_shown=(num_shown, 1))
        self.distiller = Distiller(orders, width, skip, self.seed)
        self.layer, self.head, self.num_shown, self.channels = layer, head, num_shown, channels
        self.steps, self.learning_rate = steps, learning_rate
        self.found: dict[str, Components] = {}  # of the last measurement
        self.maps: dict[str, Tensor] = {}  # of the images to show, in the last measurement

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forgets the data of another trainer and, in a training from the start, measurements and nets."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and trainer.global_step == 0:
            self.distiller.load_state_dict(None)

    def state_dict(self) -> dict[str, Any]:
        """What has been measured, what the figures show, and the nets that the next measurement starts from."""
        found = {split: asdict(components) for split, components in self.found.items()}
        return {**super().state_dict(), "nets": self.distiller.state_dict(), "found": found, "maps": self.maps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues where a run was stopped."""
        super().load_state_dict(state_dict)
        self.distiller.load_state_dict(state_dict["nets"])
        self.found = {split: Components(**values) for split, values in state_dict["found"].items()}
        self.maps = state_dict["maps"]

    def measure(self, view: View, epoch: int) -> dict[str, float]:
        """The table above, for the training images and then for the test images."""
        splits: tuple[Split, ...] = ("train", "test")
        data = {split: chosen for split in splits if (chosen := self.choose_data(view, split)) is not None}
        nets = self.distiller, self.layer, self.head, self.steps, self.learning_rate
        disentangled = run_on_all_ranks(partial(disentangled_feature, view, data["train"], *nets))
        take_nets_of_rank_0(self.distiller)
        metrics = {split: run_on_all_ranks(partial(measured, view, disentangled, data[split], split)) for split in data}
        try:
            self.found = {str(split): metric.components() for split, metric in metrics.items()}
        except ConstantFeatureError as error:  # it may recover
            rank_zero_warn(f"{self.name}: no components in epoch {epoch} ({error})")
            self.found, orders = {}, disentangled.orders
            return {f"{key}/{order}": math.nan for key in ("significance", "unexplained") for order in orders}
        shown = data.get("test", data["train"]), self.num_shown
        self.maps = run_on_all_ranks(partial(parts_of_images, view, disentangled, *shown))
        return quantities(self.found)

    def draw(self, trainer: pl.Trainer) -> None:
        """Draws the figures and writes the tables, into the run's folder and to W&B."""
        if found := self.found:
            self.publish(trainer, lambda f: figures.draw(self.history, found, self.maps, self.channels, f, self.name))
            self.publish(trainer, lambda folder: figures.tabulate(found, folder, self.name), kind="tables")

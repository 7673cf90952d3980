"""Entropy of a network's gating states after every epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import Dataset

from netprism.callbacks._monitor import (
    Monitor,
    OnError,
    callable_and_network,
    draws_random_numbers,
    forward,
    switched_to_train,
)
from netprism.callbacks._monitor_data import MonitorData, Split, inputs_and_labels
from netprism.distributed import all_gather_object, run_on_all_ranks
from netprism.figures import gating_entropy as figures
from netprism.gates.calls import check_kinds
from netprism.gates.entropy import CONV_ALPHA, LINEAR_ALPHA, Bandwidth, Complexity, check_bandwidth
from netprism.gates.packing import PackedGates
from netprism.gates.record import GateRecord, record_gates
from netprism.metrics import TransformationComplexity

RATE_BINS = 20
_SPLITS: dict[Split, str] = {"train": "", "test": "test_"}  # what the keys of a split have before the quantity


class GatingEntropy(Monitor):
    """Logs how much the gates of a network vary over images: the complexity of the transformation that it has learned.

    Works on any LightningModule and any network in it, in one process or many, with the same numbers.

    | key | meaning | unit | range |
    | --- | --- | --- | --- |
    | `gates/H`, `gates/H/<layer>` | entropy of the gates: all layers together, one layer | bit | 0 to log2 n |
    | `gates/H_over_max`, also `/<layer>` | saturation H / log2 n; near 1: all images differ | 1 | 0 to 1 |
    | `gates/H_suffix/<layer>` | entropy of the layer and all behind it, bandwidth of `gates/H` | bit | 0 to log2 n |
    | `gates/I_xs` | I(X;Sigma): H with all sampling (dropout, noise) switched off | bit | 0 to log2 n |
    | `gates/I_xsy`, also `/<layer>` | I(X;Sigma;Y): what the gates tell of the class | bit | 0 to H(Y) |
    | `gates/TC`, also `/<layer>` | total correlation, an estimate: how far from independent | bit | about 0 up |

    Of the test images the same with `test_` before the quantity: `gates/test_H`, `gates/test_H/<layer>`, ... Nothing
    here is better when high or low as such: paper B finds complexity to fall, then to rise, and low complexity to
    over-fit less.

    At the end of the training, figures of the curves, of layers by epochs and of activation rates go to
    `<log_dir>/figures`.

    Cost per epoch and split: one forward pass over the samples (two if the network samples), and (n / 2 + 512) n d
    integer multiply-adds for d gates, the same on every rank; n d / 8 bytes are gathered. See `benchmarks/`.

    Args:
        samples: images of each split, equally many of each class as far as there are; all if there are fewer.
        every_n_epochs: measure after every n-th epoch, and after the last one unless EarlyStopping makes it the last.
        measure_untrained: also measure before the first step, logged as epoch -1.
        kinds: which gates, out of relu, max_pool, dropout.
        layers: names of gating layers or of modules that hold them; -4 for the last four; None for all.
        bandwidth: "dim" or "variance", see `netprism.gates.entropy.transformation_complexity`.
        alpha: factor of the bandwidth, one or one for each layer; None: .04 behind a convolution, .01 behind a linear
            layer.
        total_correlation: whether to estimate TC, a third of the arithmetic.
        sampling: measure H with dropout and the like switched on, where the network has them; costs a second pass.
        batch_size: images in a forward pass; they are loaded in the training process.
        seed: of the choice of images, of dropout masks in the monitor, and of the TC estimate.
        name: prefix of the keys; give each of several instances its own.
        on_error: "raise" or "warn": whether an error ends the training, or costs this measurement and a line.
        train_data: a map-style data set to use in place of the trainer's training data.
        test_data: likewise; by default the data module's test set, or the first validation loader's.
        unpack: batch -> (inputs, integer labels or None); by default the first two items, or the usual keys of a dict.
            Lightning's batch transfer hooks are not called, since they may augment: normalise here what they would.
    """

    def __init__(
        self,
        samples: int = 2000,
        every_n_epochs: int = 1,
        measure_untrained: bool = True,
        kinds: tuple[str, ...] = ("relu",),
        layers: list[str] | int | None = None,
        bandwidth: Bandwidth = "dim",
        alpha: float | dict[str, float] | None = None,
        total_correlation: bool = True,
        sampling: bool = True,
        batch_size: int = 128,
        seed: int = 0,
        name: str = "gates",
        on_error: OnError = "raise",
        train_data: Dataset[Any] | None = None,
        test_data: Dataset[Any] | None = None,
        unpack: Callable[[Any], tuple[Any, Tensor | None]] = inputs_and_labels,
    ) -> None:
        super().__init__(name, every_n_epochs, measure_untrained, on_error)
        for option, value in (("samples", samples), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{option} is {value}; expected a number >= 1")
        check_kinds(kinds)
        check_bandwidth(bandwidth, alpha)
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.kinds, self.layers, self.unpack = kinds, layers, unpack
        self.bandwidth, self.alpha, self.total_correlation = bandwidth, alpha, total_correlation
        self.sampling = sampling
        self._given: dict[Split, Dataset[Any] | None] = {"train": train_data, "test": test_data}
        self.rates: dict[str, dict[str, Any]] = {}  # histograms of activation rates at the first, lowest-H and last row

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forgets the data of another trainer and, in a training from the start, the measurements."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and trainer.global_step == 0:
            self.rates = {}

    def measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule, epoch: int) -> dict[str, float]:
        """The table above, for the training images and then for the test images."""
        values: dict[str, float] = {}
        for split, prefix in _SPLITS.items():
            data = self.choose_data(trainer, split, self.samples, self.batch_size, self.seed, self._given[split])
            if data is None:
                continue
            complexity = self._complexity(trainer, pl_module, data, split)
            information = complexity.joint_entropy
            if self._samples_at_random(trainer, pl_module, data):
                with switched_to_train(self.stochastic_modules):
                    # The same layers: train mode may have more, such as an auxiliary head.
                    complexity = self._complexity(trainer, pl_module, data, split, only=list(complexity.entropy))
            values |= {prefix + key: value for key, value in _values(complexity, information).items()}
            if split == "train":
                self._keep_rates(epoch, complexity)
        return values

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws the figures, into the run's folder and to W&B."""
        self.publish(trainer, lambda folder: figures.draw(self.history, self.rates, folder, self.name))

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Draws the figures of a training that was stopped by hand, too."""
        if isinstance(exception, KeyboardInterrupt) and trainer.world_size == 1:
            self.on_train_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """What the figures are drawn from."""
        return {**super().state_dict(), "rates": self.rates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where a run was stopped."""
        super().load_state_dict(state_dict)
        self.rates = state_dict["rates"]

    def _samples_at_random(self, trainer: pl.Trainer, pl_module: pl.LightningModule, data: MonitorData) -> bool:
        """Whether the network draws random numbers in train mode, tried on one sample: the same on every rank."""
        if not self.sampling:
            return False
        inputs, _ = self.unpack(data.load(0, 1))
        draws, why_not = False, ""
        try:
            with switched_to_train(self.stochastic_modules):
                draws = draws_random_numbers(partial(forward, trainer, pl_module, inputs), pl_module.device)
        except (MemoryError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:  # say, a detector that asks for its targets
            why_not = str(error)
        if failed := [why for why in all_gather_object(why_not) if why]:
            rank_zero_warn(f"{self.name}: H without sampling, the network does not run in train mode ({failed[0]})")
            self.sampling = False
        return draws and not failed

    def _complexity(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        data: MonitorData,
        split: Split,
        only: Sequence[str] | None = None,
    ) -> Complexity:
        """Every rank records its own batches, and computes on those of all."""
        return run_on_all_ranks(partial(self._record, trainer, pl_module, data, split, only)).compute()

    def _record(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        data: MonitorData,
        split: Split,
        only: Sequence[str] | None,
    ) -> TransformationComplexity:
        """The metric with the gates and labels of this rank's batches."""
        own = data.shard(trainer.global_rank, trainer.world_size)
        model, network = callable_and_network(pl_module)
        labels: list[Tensor] = []
        # A rank without a batch learns the layers from one sample, and drops it.
        numbers = self.progress(trainer, own or [0], split)
        with numbers, record_gates(model, self.kinds, self.layers, relative_to=network) as record:
            for number in numbers:
                inputs, batch_labels = self.unpack(data.load(number, None if own else 1))
                forward(trainer, pl_module, inputs)
                labels += [] if batch_labels is None else [batch_labels]
        rows = sum(len(data.batches[number]) for number in own)
        gates = {name: PackedGates(layer.bits[:rows], layer.shape) for name, layer in record.packed.items()}
        metric = TransformationComplexity(self.bandwidth, self._alphas(record), self.total_correlation, self.seed)
        metric.to(pl_module.device)
        metric.update({name: gates[name] for name in only or gates}, torch.cat(labels)[:rows] if labels else None)
        return metric

    def _alphas(self, record: GateRecord) -> float | dict[str, float]:
        """By what feeds the gates; by their shape where nothing weighted does."""
        if self.alpha is not None:
            return self.alpha
        return {
            name: LINEAR_ALPHA
            if layer.preceded_by == "linear" or (layer.preceded_by is None and len(layer.shape) == 1)
            else CONV_ALPHA
            for name, layer in record.layers.items()
        }

    def _keep_rates(self, epoch: int, complexity: Complexity) -> None:
        """Keeps the histograms of the first, the lowest-entropy and the last measurement."""
        entry = {
            "epoch": epoch,
            "H": complexity.joint_entropy,
            "layers": {
                name: torch.histc(rates.float().cpu(), RATE_BINS, 0, 1).tolist()
                for name, rates in complexity.activation_rates.items()
            },
        }
        self.rates.setdefault("first", entry)
        if entry["H"] <= self.rates.get("lowest", entry)["H"]:
            self.rates["lowest"] = entry
        self.rates["last"] = entry


def _values(complexity: Complexity, information: float) -> dict[str, float]:
    """The logged quantities of one split."""
    c = complexity
    joint = {
        "H": c.joint_entropy,
        "H_over_max": c.joint_saturation,
        "I_xs": information,
        "I_xsy": c.joint_class_information,
        "TC": c.joint_total_correlation,
    }
    layers = {
        "H": c.entropy,
        "H_over_max": c.saturation,
        "H_suffix": c.suffix_entropy,
        "I_xsy": c.class_information,
        "TC": c.total_correlation,
    }
    return {key: value for key, value in joint.items() if value is not None} | {
        f"{key}/{layer}": value for key, values in layers.items() for layer, value in values.items()
    }

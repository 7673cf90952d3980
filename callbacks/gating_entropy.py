"""Entropy of a network's gating states after every epoch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_warn

from netprism.callbacks._monitor import Monitor
from netprism.callbacks._monitor_data import MonitorData, Split
from netprism.callbacks._view import View
from netprism.distributed import run_on_all_ranks
from netprism.figures import gating_entropy as figures
from netprism.gates.calls import check_kinds
from netprism.gates.entropy import Bandwidth, check_bandwidth
from netprism.gates.record import check_max_gates, record_gates
from netprism.metrics import TransformationComplexity

_INFIX: dict[Split, str] = {"train": "", "test": "test/"}  # what the keys of a split have before the quantity


class GatingEntropy(Monitor):
    """Logs how much the gates of a network vary over images: the complexity of the transformation that it has learned.

    | key | meaning | unit | range |
    | --- | --- | --- | --- |
    | `gates/entropy`, also `/<layer>` | H of the gates of all layers, of one: a soft count | bit | 0 to log2 n |
    | `gates/saturation`, also `/<layer>` | H / log2 n; near 1, all images differ | 1 | 0 to 1 |
    | `gates/suffix_entropy/<layer>` | H of a layer and all behind it, bandwidth of all layers | bit | 0 to log2 n |
    | `gates/input_information`, also `/<layer>` | I(X;Sigma): H without sampling (dropout) | bit | 0 to log2 n |
    | `gates/class_information`, also `/<layer>` | I(X;Sigma;Y): what the gates tell of the class | bit | 0 to H(Y) |
    | `gates/suffix_class_information/<layer>` | that of a layer and all behind it | bit | 0 to H(Y) |
    | `gates/marginal_entropy`, also `/<layer>` | C: entropy of independent gates, same rates | bit | 0 to d |
    | `gates/total_correlation`, also `/<layer>` | TC, an estimate: how far from independent | bit | about 0 up |
    | `gates/conditional_total_correlation`, also `/<layer>` | TC given the class | bit | about 0 up |

    Those of the test images are `gates/test/entropy`, `gates/test/entropy/<layer>`, ... None is better when high or low
    as such: the paper finds that complexity first falls, then rises, and that networks of low complexity over-fit less.
    Figures of the curves, of layers by epochs and of activation rates are drawn into `<log_dir>/figures` at the end.

    Cost per epoch and split: one forward pass over the images (two if the network samples), and n^2 d / 2 compared bits
    for d gates, divided among the W ranks, as are the n d / 8 bytes of the gates. Measured: docs/scaling.md.

    Args:
        kinds: Which gates, out of relu, max_pool, dropout.
        layers: Names of gating layers or of modules that hold them; -4 for the last four; None for all.
        bandwidth: "dim" or "variance", see `netprism.gates.transformation_complexity`.
        alpha: Factor of the bandwidth, one for all layers or one per layer; None: `netprism.gates.default_alpha`, .04
            behind a convolution and .01 behind a linear layer.
        total_correlation: Whether to estimate TC, and TC given the class.
        max_gates: Most gates that are looked at in a layer, such as 65536 on large images; None for all.
        stochastic: Measure H with dropout and the like switched on, where the network has them; costs a second pass.
        name: Prefix of the logged keys.
        num_images: See `Monitor`. Only runs with equally many can be compared; the paper has 2000 (docs/scaling.md).
        options: The other options are those of `Monitor`.

    Source: Ren et al. 2022, section 3, https://arxiv.org/abs/2205.01940.
    """

    def __init__(
        self,
        kinds: tuple[str, ...] = ("relu",),
        layers: list[str] | int | None = None,
        bandwidth: Bandwidth = "dim",
        alpha: float | dict[str, float] | None = None,
        total_correlation: bool = True,
        max_gates: int | None = None,
        stochastic: bool = True,
        name: str = "gates",
        num_images: int = 1000,
        **options: Any,
    ) -> None:
        super().__init__(name, num_images=num_images, **options)
        check_kinds(kinds)
        check_bandwidth(bandwidth, alpha)
        check_max_gates(max_gates)
        self.kinds, self.layers, self.stochastic, self.max_gates = kinds, layers, stochastic, max_gates
        self.bandwidth, self.alpha, self.total_correlation = bandwidth, alpha, total_correlation
        self.rates: dict[str, dict[str, Any]] = {}  # histograms of activation rates at the first, lowest-H and last row

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forgets the data of another trainer and, in a training from the start, the measurements."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and trainer.global_step == 0:
            self.rates = {}

    def measure(self, view: View, epoch: int) -> dict[str, float]:
        """The table above, for the training images and then for the test images."""
        values: dict[str, float] = {}
        for split, infix in _INFIX.items():
            if (data := self.choose_data(view, split)) is None:
                continue
            complexity = run_on_all_ranks(partial(self._record, view, data, split)).complexity()
            information = {"": complexity.joint_entropy} | {f"/{k}": h for k, h in complexity.entropy.items()}
            if self._samples_at_random(view, data):
                with view.sampling():
                    # The same layers: train mode may have more, such as an auxiliary head.
                    only = list(complexity.entropy)
                    complexity = run_on_all_ranks(partial(self._record, view, data, split, only)).complexity()
            found = complexity.quantities() | {f"input_information{k}": h for k, h in information.items()}
            values |= {infix + key: value for key, value in found.items()}
            if split == "train":
                figures.keep_rates(self.rates, epoch, complexity)
        return values

    def draw(self, trainer: pl.Trainer) -> None:
        """Draws the figures into the run's folder and to W&B."""
        self.publish(trainer, lambda folder: figures.draw(self.history, self.rates, folder, self.name))

    def state_dict(self) -> dict[str, Any]:
        """What the figures are drawn from."""
        return {**super().state_dict(), "rates": self.rates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues where a run was stopped."""
        super().load_state_dict(state_dict)
        self.rates = state_dict["rates"]

    def _samples_at_random(self, view: View, data: MonitorData) -> bool:
        draws, why_not = view.draws_random_numbers(data) if self.stochastic else (False, None)
        if why_not:
            rank_zero_warn(f"{self.name}: H without sampling, the network does not run in train mode ({why_not})")
            self.stochastic = False
        return draws

    def _record(
        self, view: View, data: MonitorData, split: Split, only: Sequence[str] | None = None
    ) -> TransformationComplexity:
        """The metric with the gates and labels of this rank's batches."""
        metric = TransformationComplexity(self.bandwidth, self.alpha, self.total_correlation, self.seed).to(view.device)
        wanted = partial(record_gates, relative_to=view.network, max_gates=self.max_gates, seed=self.seed)
        with wanted(view.model, self.kinds, view.gating_layers(self.layers)) as record:
            for batch in view.batches(data, split):
                view.forward(batch.inputs)
                gates = record.take()
                metric.update({name: gates[name] for name in only or gates}, batch.labels)
            if not metric.update_called:  # a rank without a batch learns the layers from one sample, and drops it
                view.forward((sample := view.load(data, 0, 1)).inputs)
                gates = {name: layer.first(0) for name, layer in record.take().items()}
                labels = None if sample.labels is None else sample.labels[:0]
                metric.update({name: gates[name] for name in only or gates}, labels)
        return metric

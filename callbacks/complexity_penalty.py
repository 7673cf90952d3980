"""The complexity loss, added to the training of any LightningModule."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from torch import nn

from netprism.callbacks._calling import network_of, short_names
from netprism.callbacks._epoch_means import EpochMeans
from netprism.callbacks._monitor import check_at_least
from netprism.callbacks._penalty_lines import StepCost, epoch_values, optimises_manually, say_if_greater
from netprism.callbacks._training_step import WrappedStep
from netprism.figures import complexity_loss as figures
from netprism.gates.loss import ComplexityLoss
from netprism.loggers import publish


class ComplexityPenalty(pl.Callback):
    """Penalises the entropy of a network's gates: adds weight * complexity to what `training_step` returns.

        trainer = Trainer(callbacks=[ComplexityPenalty(weight=1e-3)])

    `training_step` is wrapped while training. With `weight=0` the training is bitwise that without the callback.

    | key, once per epoch | meaning | unit | better |
    | --- | --- | --- | --- |
    | `penalty/complexity` | sum over layers of `penalty/complexity/<layer>` | nat | see below |
    | `penalty/complexity/<layer>` | estimate of the layer's entropy | nat | see below |
    | `penalty/weighted`, `penalty/fraction` | weight * complexity, and its fraction of the loss | nat, 1 | |
    | `penalty/entropy_bound/<layer>` | upper bound of the entropy, energy models only | nat | lower |
    | `penalty/entropy_bound_error/<layer>` | standard error of its log Z | nat | near 0 |
    | `penalty/energy_gap/<layer>` | mean f of the gates minus that of the samples | nat | near 0 |
    | `penalty/acceptance/<layer>` | fraction of the sampler's proposals accepted | 1 | not near 0 |
    | `penalty/nonfinite_skips` | how often so far a layer was left out, as not finite | 1 | 0 |
    | `penalty/train_test_gap` | test loss minus training loss, where one is logged | as logged | near 0 |

    Complexities of `prior` and `kernel` are entropies. Those of `energy` lack log Z and can rise while the entropy
    falls: look at the bound. At the end, `penalty_curves.png` is drawn. See docs/complexity_loss.md.

    Args:
        weight: Weight of the complexity, >= 0, not scaled with every_n_steps; the page has what 1e-4 to 1e-2 do.
        layers: Names of gating layers or of modules that hold them, or -4 for the last four.
        every_n_steps: Add the loss, and fit the energy models, in every n-th optimiser step.
        warmup_steps: Number of first steps in which the energy models are fitted and the loss is not added.
        losses: Keys of the training and the test loss, for the gap. None for the loss that `training_step` returns
            and the usual names of a test loss.
        options: Options of `netprism.gates.ComplexityLoss`.

    Raises:
        ValueError: An option is out of range, or the module optimises manually.
    """

    def __init__(
        self,
        weight: float = 1e-3,
        layers: list[str] | int | None = -4,
        every_n_steps: int = 1,
        warmup_steps: int = 0,
        losses: tuple[str, str] | None = None,
        **options: Any,
    ) -> None:
        check_at_least(weight=(weight, 0), every_n_steps=(every_n_steps, 1), warmup_steps=(warmup_steps, 0))
        self.weight, self.layers, self.losses = weight, layers, losses
        self.every_n_steps, self.warmup_steps, self.options = every_n_steps, warmup_steps, options
        self.loss = ComplexityLoss(nn.Identity(), layers, **options)  # refuses wrong options; setup makes the real one
        self.history: list[dict[str, float]] = []  # one row per epoch, without the prefix
        self._step: WrappedStep | None = None
        self._means = EpochMeans()
        self._cost, self._said = StepCost(), False
        self._validated = False  # whether this epoch has a test loss

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Wraps `training_step`: before DDP wraps the module, and before a checkpoint brings the state back."""
        if stage != "fit":
            return
        if not pl_module.automatic_optimization:
            raise ValueError(optimises_manually(type(pl_module).__name__, self.weight))
        self._release()
        self.history, self._means, self._validated = [], EpochMeans(), False
        self._cost, self._said = StepCost(), False
        self._step = WrappedStep(pl_module, functools.partial(self._penalised, trainer, pl_module))
        self.loss = ComplexityLoss(self._step.step, short_names(self.layers, pl_module), **self.options)
        pl_module.training_step = self._step  # type: ignore[method-assign]

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restores `training_step`."""
        self._release()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Restores `training_step` after an error, since Lightning then calls no `teardown`."""
        self._release()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Records that this epoch has a test loss."""
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the epoch's means and the train-test gap, and keeps them for the figure."""
        values = epoch_values(trainer, self._means.pop(trainer), self.loss, self.losses, self._validated)
        self._said = self._said or say_if_greater(values)
        # Somebody's losses may differ between ranks.
        pl_module.log_dict({f"penalty/{key}": value for key, value in values.items()}, sync_dist=True)
        self._validated = False
        self.history.append({"epoch": trainer.current_epoch} | {key: float(value) for key, value in values.items()})

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws the curves, also where a resumed run had nothing left to train."""
        publish(trainer, lambda folder: figures.draw(self.history, folder))

    def state_dict(self) -> dict[str, Any]:
        """Energy models with their optimiser and chains; the curves; the running epoch's sums of all ranks."""
        epoch = (self._means.state_dict(), self._validated)
        return {"loss": self.loss.state_dict(), "history": self.history, "epoch": epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues where a run was stopped, bitwise."""
        self.loss.load_state_dict(state_dict["loss"])
        self.history = state_dict["history"]
        means, self._validated = state_dict["epoch"]
        self._means.load_state_dict(means)

    def _penalised(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: nn.Module, *args: Any, **kwargs: Any
    ) -> Any:  # noqa: ANN401 - whatever training_step returns
        if not trainer.training or trainer.global_step % self.every_n_steps:  # a validation_step may call it, too
            return step(*args, **kwargs)
        with self.loss.watch(parts_of=pl_module, relative_to=network_of(pl_module)) as gates:
            output = step(*args, **kwargs)
        if output is None:  # Lightning skips the batch
            return None
        complexity = self._cost.time(lambda: self.loss(gates))
        weighted = complexity * (self.weight if trainer.global_step >= self.warmup_steps else 0)
        task = output.get("loss") if isinstance(output, Mapping) else output
        if task is None:  # Lightning raises an error of its own
            return output
        added = {"task_loss": task.detach(), "weighted": weighted.detach()}
        self._means.add(self.loss.metrics | added, self.loss.samples)
        if not (self.weight and trainer.global_step >= self.warmup_steps):
            return output
        return {**output, "loss": task + weighted} if isinstance(output, Mapping) else task + weighted

    def _release(self) -> None:
        if self._step is not None:
            self._step.take_off()
            self._step = None

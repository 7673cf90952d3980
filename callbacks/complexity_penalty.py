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
from netprism.callbacks._training_step import WrappedStep
from netprism.figures import complexity_loss as figures
from netprism.gates.loss import ComplexityLoss
from netprism.loggers import publish


class ComplexityPenalty(pl.Callback):
    """Penalises the entropy of a network's gates: adds weight * complexity to what `training_step` returns.

        trainer = Trainer(callbacks=[ComplexityPenalty(weight=1e-3)])

    The module itself does not change: `training_step` is wrapped for the time of the training. Energy models, their
    optimiser and chains belong to the callback, not to the network; in a checkpoint they are part of the callback's
    state. With `weight=0` they learn, and the training is bitwise that without the callback.

    | key, once per epoch | meaning | unit | better |
    | --- | --- | --- | --- |
    | `penalty/complexity` | sum over layers of the mean -log p of the gates, without log Z | nat | lower |
    | `penalty/energy/<layer>` | that of one layer | nat | lower |
    | `penalty/energy_gap/<layer>` | mean f of the gates minus that of the model's samples | nat | near 0 |
    | `penalty/acceptance/<layer>` | fraction of the sampler's proposals accepted | 1 | not near 0 |
    | `penalty/nonfinite_skips` | how often so far a layer was left out, as not finite | 1 | 0 |
    | `penalty/train_test_gap` | test loss minus training loss, where both are logged | as logged | near 0 |

    Values without log Z can be negative, and drift as the energy models learn: compare networks by `GatingEntropy`.
    With `prior_only` there is no gap and no acceptance. At the end of the training, `penalty_curves.png` is drawn into
    `<log_dir>/figures`. Each `fit` starts with new energy models and an empty history, unless it has a checkpoint.

    Gates count in modules with parameters, called from `training_step` with gradients; those in `training_step` itself
    or in a loss function count only if `layers` names them, `training_step:relu#0`. See docs/complexity_loss.md,
    also on accumulated, compiled, checkpointed and distributed trainings.

    Args:
        weight: Weight of the complexity, >= 0; the paper tries 1e-5 to 1e-2. It is not scaled with every_n_steps.
        layers: Names of gating layers or of modules that hold them, or -4 for the last four.
        every_n_steps: Add the loss, and fit the energy models, in every n-th optimiser step.
        warmup_steps: Number of first steps in which the energy models are fitted and the loss is not added.
        losses: Keys of the training and the test loss, for the gap.
        options: Options of `netprism.gates.ComplexityLoss`.

    Raises:
        ValueError: An option is out of range, or the module optimises manually; also what `ComplexityLoss` raises.
    """

    def __init__(
        self,
        weight: float = 1e-3,
        layers: list[str] | int | None = -4,
        every_n_steps: int = 1,
        warmup_steps: int = 0,
        losses: tuple[str, str] = ("train/loss", "val/loss"),
        **options: Any,
    ) -> None:
        check_at_least(weight=(weight, 0), every_n_steps=(every_n_steps, 1), warmup_steps=(warmup_steps, 0))
        self.weight, self.layers, self.losses = weight, layers, losses
        self.every_n_steps, self.warmup_steps, self.options = every_n_steps, warmup_steps, options
        self.loss = ComplexityLoss(nn.Identity(), layers, **options)  # refuses wrong options; setup makes the real one
        self.history: list[dict[str, float]] = []  # one row per epoch, without the prefix
        self._step: WrappedStep | None = None
        self._means = EpochMeans()
        self._validated = False  # whether this epoch has a test loss

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Wraps `training_step`: before DDP wraps the module, and before a checkpoint brings the state back."""
        if stage != "fit":
            return
        if not pl_module.automatic_optimization:
            raise ValueError(f"{type(pl_module).__name__} optimises manually; use netprism.gates.ComplexityLoss there")
        self._release()
        self.history, self._means, self._validated = [], EpochMeans(), False
        self._step = WrappedStep(pl_module, functools.partial(self._penalised, trainer, pl_module))
        self.loss = ComplexityLoss(self._step.step, short_names(self.layers, pl_module), **self.options)
        pl_module.training_step = self._step  # type: ignore[method-assign]

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restores `training_step`."""
        self._release()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Restores `training_step` where an error ends the training, since Lightning then calls no `teardown`."""
        self._release()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Records that this epoch has a test loss."""
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the epoch's means and the train-test gap, and keeps them for the figure."""
        if values := self._means.pop(trainer):
            values["nonfinite_skips"] = self.loss.nonfinite_skips
        losses = [trainer.callback_metrics.get(key) for key in self.losses]
        if self._validated and losses[0] is not None and losses[1] is not None:
            values["train_test_gap"] = losses[1] - losses[0]
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
        complexity = self.loss(gates)
        self._means.add(self.loss.metrics, self.loss.samples)
        if self.weight == 0 or trainer.global_step < self.warmup_steps:
            return output
        if isinstance(output, Mapping):  # without a loss Lightning raises an error of its own
            return {**output, "loss": output["loss"] + self.weight * complexity} if "loss" in output else output
        return output + self.weight * complexity

    def _release(self) -> None:
        if self._step is not None:
            self._step.take_off()
            self._step = None

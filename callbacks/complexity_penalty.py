"""The complexity loss, added to the training of any LightningModule."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from netprism.distributed import all_gather_object, this_rank
from netprism.figures import complexity_loss as figures
from netprism.gates.loss import ComplexityLoss
from netprism.loggers import publish


class ComplexityPenalty(pl.Callback):
    """Makes a network pay for the entropy of its gates: adds weight * complexity to what `training_step` returns.

        trainer = Trainer(callbacks=[ComplexityPenalty(weight=1e-3)])

    The module stays as it is: `training_step` is wrapped for the time of the training. Energy models, their optimiser
    and chains are the callback's own, so the network's weights, optimiser and checkpoint know nothing of them; in the
    checkpoint they are part of the callback's state. With `weight=0` they learn and nothing else changes, to the bit.

    | key, once per epoch | meaning | unit | better |
    | --- | --- | --- | --- |
    | `penalty/complexity` | sum over layers of the mean -log p of the gates, without log Z | nat | lower |
    | `penalty/energy/<layer>` | the same of one layer | nat | lower |
    | `penalty/energy_gap/<layer>` | mean f of the gates minus that of the model's samples | nat | near 0 |
    | `penalty/acceptance/<layer>` | share of the sampler's proposals accepted | 1 | not near 0 |
    | `penalty/nonfinite_skips` | times so far that a layer was left out, since something was not finite | 1 | 0 |
    | `penalty/train_test_gap` | test loss minus training loss, where both are logged | as logged | near 0 |

    Values without log Z can be negative, and drift as the energy models learn: compare networks by `GatingEntropy`.
    With `prior_only` there is no gap and no acceptance. At the end of the training, `penalty_curves.png` goes to
    `<log_dir>/figures`. Each `fit` starts with new energy models and an empty history, but for those of a checkpoint.

    Gates count in modules with parameters, among them the LightningModule's own `forward`. Each call of such a module
    from `training_step` is a forward pass, and a layer that several passes call (two views of an image) is penalised
    on all of them. Gates in `training_step` itself or in a loss function, such as a hinge, count only if `layers` names
    them: `training_step:relu#0`. What runs without gradients (a teacher) does not count.

    Works in one process or many, with mixed precision, gradient accumulation (every micro-batch is penalised) and
    clipping. Compiled modules run eagerly in the steps that are penalised.

    Args:
        weight: weight of the complexity, >= 0; the paper tries 1e-5 to 1e-2. It is not scaled with every_n_steps.
        layers: names of gating layers or of modules that hold them, or -4 for the last four.
        every_n_steps: add the loss, and fit the energy models, in every n-th optimiser step.
        warmup_steps: only fit the energy models in as many first steps.
        losses: keys of the training and the test loss, for the gap.
        **options: those of `netprism.gates.loss.ComplexityLoss`.

    Raises:
        ValueError: an impossible option, a module with manual optimisation; else as `ComplexityLoss`.
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
        if not 0 <= weight < float("inf"):
            raise ValueError(f"weight is {weight}; expected a weight >= 0")
        for option, value, least in (("every_n_steps", every_n_steps, 1), ("warmup_steps", warmup_steps, 0)):
            if value < least:
                raise ValueError(f"{option} is {value}; expected a number >= {least}")
        self.weight, self.layers, self.losses = weight, layers, losses
        self.every_n_steps, self.warmup_steps, self.options = every_n_steps, warmup_steps, options
        self.loss = ComplexityLoss(nn.Identity(), layers, **options)  # refuses wrong options; setup makes the real one
        self.history: list[dict[str, float]] = []  # one row an epoch, without the prefix
        self._step: _PenalisedStep | None = None
        self._sums: Tensor | None = None  # of this process and epoch: value * samples of every key, and samples
        self._validated = False  # in this epoch

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Wraps `training_step`: before DDP wraps the module, and before a checkpoint brings the state back."""
        if stage != "fit":
            return
        if not pl_module.automatic_optimization:
            raise ValueError(
                f"{type(pl_module).__name__} optimises by hand, so there is no returned loss to add to: use "
                "netprism.gates.loss.ComplexityLoss in its training_step"
            )
        self._release()
        self.history, self._sums, self._validated = [], None, False
        self._step = _PenalisedStep(pl_module, functools.partial(self._penalised, trainer, pl_module))
        self.loss = ComplexityLoss(self._step.step, self.layers, **self.options)
        pl_module.training_step = self._step  # type: ignore[method-assign]

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leaves the module as it was."""
        self._release()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """The same, where Lightning does not call `teardown`."""
        self._release()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Notes that there is a test loss of this epoch."""
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the epoch's means and the train-test gap, and keeps them for the figure."""
        values = self._means(trainer)
        train, test = self.losses
        metrics = trainer.callback_metrics
        if self._validated and train in metrics and test in metrics:
            values["train_test_gap"] = metrics[test] - metrics[train]
        for key, value in values.items():
            reduce: Any = "max" if key == "nonfinite_skips" else "mean"
            pl_module.log(f"penalty/{key}", value, reduce_fx=reduce, sync_dist=True)
        self._validated = False
        self.history.append({"epoch": trainer.current_epoch} | {key: float(value) for key, value in values.items()})

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws the curves."""
        publish(trainer, lambda folder: figures.draw(self.history, folder))

    def state_dict(self) -> dict[str, Any]:
        """Energy models with their optimiser and chains; the curves; the running epoch's sums of all processes."""
        so_far = {
            "sums": all_gather_object(None if self._sums is None else self._sums.cpu()),
            "validated": self._validated,
        }
        return {"loss": self.loss.state_dict(), "history": self.history, **so_far}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where a run was stopped, to the bit."""
        self.loss.load_state_dict(state_dict["loss"])
        self.history = state_dict["history"]
        self._sums, self._validated = this_rank(state_dict["sums"]), state_dict["validated"]

    def _penalised(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: nn.Module, *args: Any, **kwargs: Any
    ) -> Any:  # noqa: ANN401 - whatever training_step returns
        if not trainer.training:  # somebody's validation_step calls training_step
            return step(*args, **kwargs)
        if trainer.global_step % self.every_n_steps:
            return step(*args, **kwargs)
        with self.loss.watch(parts_of=pl_module, relative_to=_network(pl_module)) as gates:
            output = step(*args, **kwargs)
        if output is None:  # Lightning skips the batch
            return None
        complexity = self.loss(gates)
        self._add_up()
        if self.weight == 0 or trainer.global_step < self.warmup_steps:
            return output
        if not isinstance(output, Mapping):
            return output + self.weight * complexity
        if "loss" not in output:  # Lightning has a message for that
            return output
        return {**output, "loss": output["loss"] + self.weight * complexity}

    def _add_up(self) -> None:
        values = [value for key, value in self.loss.metrics.items() if key != "nonfinite_skips"]
        sums = torch.stack([*values, torch.ones_like(values[0])]) * self.loss.samples
        self._sums = sums if self._sums is None else self._sums.to(sums) + sums

    def _means(self, trainer: pl.Trainer) -> dict[str, Tensor]:
        """Over all samples of the epoch and of all processes.

        Lightning's own mean over processes is wrong where these have seen different numbers of samples (2.6.6).
        """
        sums, self._sums = self._sums, None
        if sums is None:  # no step was penalised
            return {}
        sums = trainer.strategy.reduce(sums, reduce_op="sum")
        means = sums[:-1] / sums[-1]
        keys = [key for key in self.loss.metrics if key != "nonfinite_skips"]
        return {"nonfinite_skips": self.loss.metrics["nonfinite_skips"]} | dict(zip(keys, means, strict=True))

    def _release(self) -> None:
        if self._step is not None:
            self._step.take_off()
            self._step = None


class _TrainingStep(nn.Module):
    """A training step as a module: what happens in it is seen, whichever networks it calls, and how."""

    def __init__(self, pl_module: pl.LightningModule) -> None:
        super().__init__()
        self.pl_module, self.run = pl_module, pl_module.training_step

    def forward(self, *args: Any, **kwargs: Any) -> Tensor | Mapping[str, Any] | None:
        return self.run(*args, **kwargs)


class _PenalisedStep:
    """What stands in the place of a module's `training_step`; a copy of the module gets the plain one."""

    def __init__(self, pl_module: pl.LightningModule, penalised: Callable[..., Any]) -> None:
        functools.update_wrapper(self, pl_module.training_step)  # Lightning looks at its arguments
        self._own = vars(pl_module).get("training_step")  # a compiled module has one
        self.step, self._penalised = _TrainingStep(pl_module), penalised
        self._plain = pl_module.training_step
        self._on = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever training_step returns
        return self._penalised(self.step, *args, **kwargs) if self._on else self._plain(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., Any]:
        return copy.deepcopy(self._plain, memo)

    def take_off(self) -> None:
        """Puts back what was there. Where somebody has wrapped this in turn, it stays as a mere passage."""
        module = self.step.pl_module
        self._on = False
        if vars(module).get("training_step") is self:
            del module.training_step
            if self._own is not None:
                module.training_step = self._own  # type: ignore[method-assign]
        del self.step.pl_module, self.step.run, self._penalised  # the callback lets go of the module


def _network(pl_module: pl.LightningModule) -> nn.Module:
    """The part from which layers are named: where all parameters are in one network, that one."""
    networks = [child for child in pl_module.children() if any(True for _ in child.parameters())]
    return networks[0] if len(networks) == 1 else pl_module

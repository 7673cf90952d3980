"""The complexity loss, added to the training of any LightningModule."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from netprism.figures import complexity_loss as figures
from netprism.loggers import publish
from netprism.losses import ComplexityLoss


class ComplexityPenalty(pl.Callback):
    """Makes a network pay for the entropy of its gates: adds lambda_ * complexity to what `training_step` returns.

        trainer = Trainer(callbacks=[ComplexityPenalty(lambda_=1e-3)])

    The module stays as it is: `training_step` is wrapped for the time of the training. Energy models, their optimiser
    and chains are the callback's own, so the network's weights, optimiser and checkpoint know nothing of them; in the
    checkpoint they are part of the callback's state. With `lambda_=0` they learn and nothing else changes, to the bit.

    | key, once per epoch | meaning | unit | better |
    | --- | --- | --- | --- |
    | `penalty/complexity` | sum over layers of the mean -log p of the gates, without log Z | nat | lower |
    | `penalty/energy/<layer>` | the same of one layer | nat | lower |
    | `penalty/energy_gap/<layer>` | mean f of the gates minus that of the model's samples | nat | near 0 |
    | `penalty/acceptance/<layer>` | share of the sampler's proposals accepted | 1 | not near 0 |
    | `penalty/skipped` | times so far that a layer was left out, since something was not finite | 1 | 0 |
    | `penalty/train_test_gap` | test loss minus training loss, where both are logged | as logged | near 0 |

    Values without log Z can be negative, and drift as the energy models learn: compare networks by `GatingEntropy`.
    With `prior_only` there is no gap and no acceptance. At the end of the training, `penalty_curves.png` goes to
    `<log_dir>/figures`.

    Works in one process or many, with mixed precision, gradient accumulation (every micro-batch is penalised) and
    clipping. Compiled modules run eagerly in the steps that are penalised.

    Args:
        lambda_: weight of the complexity, >= 0; the paper tries 1e-5 to 1e-2. It is not scaled with every_n_steps.
        layers: names of gating layers or of modules that hold them, or -4 for the last four.
        every_n_steps: add the loss, and fit the energy models, in every n-th optimiser step.
        warmup_steps: only fit the energy models in as many first steps.
        losses: keys of the training and the test loss, for the gap.
        **options: those of `netprism.losses.ComplexityLoss`.

    Raises:
        ValueError: an impossible option, a module with manual optimisation; else as `ComplexityLoss`.
    """

    def __init__(
        self,
        lambda_: float = 1e-3,
        layers: list[str] | int | None = -4,
        every_n_steps: int = 1,
        warmup_steps: int = 0,
        losses: tuple[str, str] = ("train/loss", "val/loss"),
        **options: Any,
    ) -> None:
        if not 0 <= lambda_ < float("inf"):
            raise ValueError(f"lambda_ is {lambda_}; expected a weight >= 0")
        for option, value, least in (("every_n_steps", every_n_steps, 1), ("warmup_steps", warmup_steps, 0)):
            if value < least:
                raise ValueError(f"{option} is {value}; expected a number >= {least}")
        self.lambda_, self.layers, self.losses = lambda_, layers, losses
        self.every_n_steps, self.warmup_steps, self.options = every_n_steps, warmup_steps, options
        self.loss = ComplexityLoss(
            nn.Identity(), layers, **options
        )  # refuses wrong options now; setup makes the real one
        self.history: list[dict[str, float]] = []  # one row an epoch, without the prefix
        self._unwrap: Callable[[], None] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Wraps `training_step`: before DDP wraps the module, and before a checkpoint brings the state back."""
        if stage != "fit":
            return
        if not pl_module.automatic_optimization:
            raise ValueError(
                f"{type(pl_module).__name__} optimises by hand, so there is no returned loss to add to: use "
                "netprism.losses.ComplexityLoss in its training_step"
            )
        self._release()
        self.history = []
        step = _TrainingStep(pl_module)
        self.loss = ComplexityLoss(step, self.layers, **self.options)
        own = vars(pl_module).get("training_step")  # a compiled module has one
        penalised = functools.partial(self._penalised, trainer, pl_module, step)
        pl_module.training_step = functools.wraps(step.run)(penalised)  # type: ignore[method-assign]
        self._unwrap = functools.partial(_put_back, pl_module, own)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leaves the module as it was."""
        self._release()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """The same, where Lightning does not call `teardown`."""
        self._release()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the train-test gap, and keeps the epoch's values for the figure."""
        metrics = trainer.callback_metrics
        values = {key.removeprefix("penalty/"): value for key, value in metrics.items() if key.startswith("penalty/")}
        train, test = self.losses
        if train in metrics and test in metrics:
            values["train_test_gap"] = metrics[test] - metrics[train]
            pl_module.log("penalty/train_test_gap", values["train_test_gap"], sync_dist=True)
        self.history.append({"epoch": trainer.current_epoch} | {key: float(value) for key, value in values.items()})

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws the curves."""
        publish(trainer, lambda folder: figures.draw(self.history, folder))

    def state_dict(self) -> dict[str, Any]:
        """Energy models with their optimiser and chains; the curves."""
        return {"loss": self.loss.state_dict(), "history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where a run was stopped, to the bit."""
        self.loss.load_state_dict(state_dict["loss"])
        self.history = state_dict["history"]

    def _penalised(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: _TrainingStep, *args: Any, **kwargs: Any
    ) -> Any:  # noqa: ANN401 - whatever training_step returns
        # Without gradients it is somebody's validation_step that calls training_step.
        due = torch.is_grad_enabled() and trainer.global_step % self.every_n_steps == 0
        if not due and not self.loss.swish:
            return step(*args, **kwargs)
        with self.loss.watch(relative_to=_network(pl_module)):
            output = step(*args, **kwargs)
        if not due or output is None:  # None: Lightning skips the batch
            return output
        complexity = self.loss()
        self._log(pl_module)
        if self.lambda_ == 0 or trainer.global_step < self.warmup_steps:
            return output
        if isinstance(output, Mapping):
            return {**output, "loss": output["loss"] + self.lambda_ * complexity}
        return output + self.lambda_ * complexity

    def _log(self, pl_module: pl.LightningModule) -> None:
        values = {f"penalty/{key}": value for key, value in self.loss.report.items()}
        how: dict[str, Any] = {"on_step": False, "on_epoch": True, "sync_dist": True, "batch_size": self.loss.samples}
        pl_module.log("penalty/skipped", values.pop("penalty/skipped"), reduce_fx="max", **how)
        pl_module.log_dict(values, **how)

    def _release(self) -> None:
        if self._unwrap is not None:
            self._unwrap()
            self._unwrap = None


class _TrainingStep(nn.Module):
    """A training step as a module: what happens in it is a forward pass, whichever networks it calls, and how."""

    def __init__(self, pl_module: pl.LightningModule) -> None:
        super().__init__()
        self.module, self.run = pl_module, pl_module.training_step

    def forward(self, *args: Any, **kwargs: Any) -> Tensor | Mapping[str, Any] | None:
        return self.run(*args, **kwargs)


def _network(pl_module: pl.LightningModule) -> nn.Module:
    """The part from which layers are named: where all parameters are in one network, that one."""
    networks = [child for child in pl_module.children() if any(True for _ in child.parameters())]
    return networks[0] if len(networks) == 1 else pl_module


def _put_back(pl_module: pl.LightningModule, own: Callable[..., Any] | None) -> None:
    del pl_module.training_step
    if own is not None:
        pl_module.training_step = own  # type: ignore[method-assign]

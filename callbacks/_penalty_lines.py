"""What the complexity penalty makes of an epoch, and what it says in one line: that it is costly, or too strong."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from netprism.gates.loss import ComplexityLoss

_TEST_LOSSES = (
    "val/loss", "val_loss", "val/loss_epoch", "val_loss_epoch", "valid_loss", "valid/loss", "validation_loss",
    "validation/loss", "eval_loss", "eval/loss", "test_loss", "test/loss", "loss/val",
)  # fmt: skip
COSTLY = 1.5
_FIRST, _LAST = 3, 8  # steps that are timed: the first ones allocate and compile


class StepCost:
    """Times the loss beside the rest of the first steps, and says one line where they take 1.5 times as long with it.

    A step is the time from one call to the next.
    """

    def __init__(self) -> None:
        self._calls, self._loss, self._start = 0, 0.0, 0.0

    def time(self, loss: Callable[[], Tensor]) -> Tensor:
        """Returns what `loss` returns."""
        if self._calls > _LAST:
            return loss()
        start = _now()
        if self._calls == _FIRST:
            self._start = start
        elif self._calls == _LAST:
            rest = start - self._start - self._loss
            if self._loss > (COSTLY - 1) * rest:
                rank_zero_info(
                    f"penalty: steps take {1 + self._loss / max(rest, 1e-9):.1f} times as long with this loss, "
                    'less with every_n_steps=10, fewer positions or chains, or estimator="prior"'
                )
        value = loss()
        if _FIRST <= self._calls < _LAST:
            self._loss += _now() - start
        self._calls += 1
        return value


def epoch_values(
    trainer: pl.Trainer, means: dict[str, Tensor], loss: ComplexityLoss, losses: tuple[str, str] | None, validated: bool
) -> dict[str, Tensor]:
    """Returns what the penalty logs of an epoch; all ranks have to call it.

    Args:
        trainer: Its `callback_metrics` have the test loss.
        means: Means over the epoch, with `task_loss` and `weighted`; empty without a penalised step.
        loss: The loss.
        losses: Keys of the training and test loss; None for `task_loss` and the usual names.
        validated: Whether the test loss is this epoch's.
    """
    values = dict(means)
    task = values.pop("task_loss", None)
    if task is not None:
        values["fraction"] = values["weighted"] / (task + values["weighted"])
        values["nonfinite_skips"] = loss.nonfinite_skips
    for layer, (total, count, error) in loss.entropy_bounds().items():
        total, count = trainer.strategy.reduce(torch.stack([total, count]), reduce_op="sum")
        values |= {f"entropy_bound/{layer}": total / count, f"entropy_bound_error/{layer}": error}
    metrics = trainer.callback_metrics
    train, test = (task, _test_loss(metrics)) if losses is None else (metrics.get(key) for key in losses)
    if validated and train is not None and test is not None:
        values["train_test_gap"] = test - train
    return values


def optimises_manually(name: str, weight: float) -> str:
    """Returns the error for a module with manual optimisation: what to write in it instead."""
    return (
        f"{name} optimises manually; with self.complexity = ComplexityLoss(self.net) in its __init__, write in its "
        "training_step: `with self.complexity.watch() as gates:` around the calls of self.net, and "
        f"`loss = loss + {weight:g} * self.complexity(gates)` before manual_backward"
    )


def say_if_greater(values: Mapping[str, Tensor]) -> bool:
    """Says one line where the weighted complexity exceeds the loss of the task; returns whether it does."""
    fraction = float(values.get("fraction", 0.0))
    if 0 <= fraction <= 0.5:
        return False
    rank_zero_info(
        f"penalty: weight * complexity is {float(values['weighted']):.3g}, more than the loss of the task; lower the "
        "weight if the task is not learned"
    )
    return True


def _test_loss(metrics: Mapping[str, Tensor]) -> Tensor | None:
    return next((metrics[key] for key in _TEST_LOSSES if key in metrics), None)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()

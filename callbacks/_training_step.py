"""Wrapping the `training_step` of somebody's LightningModule for the time of a training."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
from torch import Tensor, nn


class _TrainingStep(nn.Module):
    """A training step as a module, so that hooks see whatever networks it calls, and how."""

    def __init__(self, pl_module: pl.LightningModule) -> None:
        super().__init__()
        self._modules[""] = pl_module  # no name of its own: its parts keep theirs
        self.run = pl_module.training_step

    def forward(self, *args: Any, **kwargs: Any) -> Tensor | Mapping[str, Any] | None:
        return self.run(*args, **kwargs)


class WrappedStep:
    """A replacement of a module's `training_step`; a copy of the module gets the plain one.

    Args:
        pl_module: The module; its `training_step` is looked up here.
        wrapped: Function that is called with the plain step, as a module, and the arguments of the step.
    """

    def __init__(self, pl_module: pl.LightningModule, wrapped: Callable[..., Any]) -> None:
        functools.update_wrapper(self, pl_module.training_step)  # Lightning looks at its arguments
        self._own = vars(pl_module).get("training_step")  # a compiled module has one
        self.step, self._wrapped = _TrainingStep(pl_module), wrapped
        self._plain = pl_module.training_step
        self._on = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever training_step returns
        return self._wrapped(self.step, *args, **kwargs) if self._on else self._plain(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., Any]:
        return copy.deepcopy(self._plain, memo)

    def take_off(self) -> None:
        """Restores the plain step. Where somebody has wrapped this step in turn, it only passes calls on."""
        module: Any = self.step._modules.pop("")  # nothing keeps it alive
        self._on = False
        if vars(module).get("training_step") is self:
            del module.training_step
            if self._own is not None:
                module.training_step = self._own
        del self.step.run, self._wrapped

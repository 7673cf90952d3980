"""What LightningModules share: a frozen teacher, parts that follow its shapes, the optimiser, a check of the loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Self

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LRSchedulerCallable
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

REMEDIES = "a smaller learning rate or trainer.precision=32"
REMEDIES_AND_CLIPPING = "a smaller learning rate, trainer.gradient_clip_val or trainer.precision=32"
Batch = Tensor | Sequence[Tensor]  # images, or images and what belongs to them


class TeacherModule(LightningModule):
    """Looks into a trained network, which stays frozen and in eval mode, or into several.

    A subclass implements `build`, which makes what it trains. `build` runs once, as soon as the shape of an image is
    known: at the start of a training, or before, when somebody calls `configure_model`. A subclass that takes
    `input_shape` ends its `__init__` with `if input_shape is not None: self.configure_model()`, after
    `save_hyperparameters(ignore=["teacher", ...])`; the shape is then in `hparams` and in the checkpoints.

    Args:
        teacher: The network, or a list of networks, then a `ModuleList`. It gets no gradient.
        input_shape: Shape (C, H, W) of an image; None for the data module's `shape`.

    Raises:
        ValueError: In `configure_model`, when neither this module nor the data module has a shape.
    """

    def __init__(self, teacher: nn.Module | Sequence[nn.Module], input_shape: Sequence[int] | None = None) -> None:
        super().__init__()
        self.teacher = teacher if isinstance(teacher, nn.Module) else nn.ModuleList(teacher)
        self.teacher.requires_grad_(False).eval()
        self.input_shape = None if input_shape is None else tuple(input_shape)
        self.is_built = False

    @abstractmethod
    def build(self, input_shape: tuple[int, ...]) -> None:
        """Makes what is trained, for images of shape `input_shape`."""

    def configure_model(self) -> None:
        """Builds, unless that is done. Lightning calls this before a training, a test and a prediction."""
        if self.is_built:
            return
        shape = self.input_shape or getattr(self.trainer.datamodule, "shape", None)  # type: ignore[attr-defined]
        if shape is None:
            raise ValueError("input_shape is None and the data module has no `shape`; expected input_shape=(C, H, W)")
        self.input_shape = self.hparams["input_shape"] = tuple(shape)
        self.build(self.input_shape)
        self.is_built = True

    def train(self, mode: bool = True) -> Self:
        """Switches all but the teacher, which stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def example(self, input_shape: Sequence[int]) -> Tensor:
        """Returns two images of noise on the teacher's device, to find the shapes of its features.

        They are not zeros: where nothing is left after a ReLU, any two layers return the same.
        """
        noise = torch.randn(2, *input_shape, generator=torch.Generator().manual_seed(0))
        return noise.to(next((p.device for p in self.teacher.parameters()), self.device))

    @staticmethod
    def images(batch: Batch) -> Tensor:
        """Returns the images of a batch: the batch itself, or its first item."""
        return batch if isinstance(batch, Tensor) else batch[0]


def optimizer_and_schedule(optimizer: Optimizer, scheduler: LRSchedulerCallable | None) -> OptimizerLRScheduler:
    """Returns what `configure_optimizers` returns: the optimiser and, if there is one, its schedule per epoch."""
    if scheduler is None:
        return optimizer
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler(optimizer), "monitor": "val/loss"}}


def check_finite(module: LightningModule, key: str, value: Tensor, remedies: str = REMEDIES) -> None:
    """Refuses a loss that is NaN or infinite.

    Raises:
        ValueError: Names the key under which the loss is logged, the epoch, the step, and the remedies.
    """
    if not value.isfinite():
        where = f"epoch {module.current_epoch}, step {module.global_step}"
        raise ValueError(f"{key} is {value.item()} in {where}: try {remedies}")

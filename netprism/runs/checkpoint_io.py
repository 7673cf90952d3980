"""Checkpoints of a training: written whole or not at all, read without running code."""

from __future__ import annotations

import io
import logging
import os
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.plugins.io import TorchCheckpointIO

from netprism.files import whole_file
from netprism.runs.checkpoints import read_checkpoint, read_training
from netprism.runs.folder import display_path

log = logging.getLogger(__name__)
LAUNCHERS_FILE = ".temp.ckpt"  # in which ddp_spawn and ddp_fork hand the weights back to the first process


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside the old one and renames it; reads one with `weights_only=True`.

    Lightning's own writes into the system's temporary folder and moves, which on another file system is a copy: a job
    that is killed meanwhile loses its only checkpoint.

    A full disk costs a line for each checkpoint that is not written, not the training: the older file stays whole and
    the next save is another try. Files that are still unwritten at the end are in `unsaved`, {file: reason}.
    """

    def __init__(self) -> None:
        self.unsaved: dict[str, str] = {}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        """Saves `checkpoint` under `path`, whole or not at all."""
        name = display_path(path)
        buffer = io.BytesIO()  # not to the file itself: there torch's writer ends a full disk in a RuntimeError
        torch.save(checkpoint, buffer)
        try:
            with whole_file(path) as part, part.open("wb") as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())  # a network file system may report only here that it is full
            self.unsaved.pop(name, None)
        except OSError as error:
            self.unsaved[name] = str(error.strerror)
            older = "the older one is kept" if Path(path).is_file() else "there is no older one"
            log.warning(f"{name} was not written ({error.strerror}), {older}; the training continues")

    def remove_checkpoint(self, path: str | Path) -> None:
        """Removes a checkpoint, unless the one that takes its place was not written."""
        self.unsaved.pop(display_path(path), None)  # it is no longer wanted
        if not self.unsaved:
            super().remove_checkpoint(path)

    def load_checkpoint(
        self, path: str | Path, map_location: object = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a checkpoint of a training, to the CPU; raises what `read_training` does.

        Raises:
            ValueError: `weights_only` is False.
        """
        if weights_only is False:
            raise ValueError(
                "weights_only is False, which would run code pickled in a checkpoint; expected True or None"
            )
        if Path(path).name == LAUNCHERS_FILE:
            weights: dict[str, Any] = read_checkpoint(path)
            return weights
        return read_training(path)


def use_safe_checkpoints(trainer: Trainer) -> None:
    """Gives a trainer a `SafeCheckpointIO`, whatever other plugins it has.

    Raises:
        ValueError: The trainer has a checkpoint plugin of another kind.
    """
    given = trainer.strategy.checkpoint_io
    if isinstance(given, SafeCheckpointIO):
        return
    if type(given) is not TorchCheckpointIO:
        raise ValueError(
            f"trainer.plugins has {type(given).__name__}; expected no checkpoint plugin or SafeCheckpointIO"
        )
    trainer.strategy.checkpoint_io = SafeCheckpointIO()

"""A training that was interrupted goes on as if it had not been."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from netprism.callbacks.training import partial_epoch as epoch_so_far
from netprism.distributed import all_gather_object, this_rank


class ExactResume(pl.Callback):
    """Adds to each checkpoint what Lightning leaves out, so that going on from it gives the uninterrupted training.

        trainer = Trainer(callbacks=[ExactResume()])

    That is the random state of Python, numpy, torch and the GPU in every process; the sums of what has been logged so
    far in the epoch; the row of the curves that Lightning hands to the loggers only after the checkpoint. On a CPU the
    weights, the optimisers, the curves and the random state are then equal to the bit, with any loader at the end of an
    epoch. Within an epoch the loader has to know how far it was: those of our data modules and any
    `netprism.datamodules.ResumableLoader` do; from others Lightning takes the first batches of the epoch again, and
    says so.

    It is harmless where nothing is resumed. Put it first in the list: what other callbacks draw at the start of a
    resumed epoch then comes after the random state was put back. With another number of processes it starts anew.

    In the checkpoint: some 13 KiB for each process.
    """

    KEY = "ExactResume"

    def __init__(self) -> None:
        self._saved: dict[str, Any] | None = None

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds what every process has: all of them save, though only one writes."""
        own: dict[str, Any] = {"random": random_state(pl_module.device), "row": epoch_so_far.row(trainer)}
        if epoch_so_far.is_running(trainer):
            own |= {"logged": epoch_so_far.logged(trainer), "metrics": epoch_so_far.metric_states(pl_module)}
        checkpoint[self.KEY] = all_gather_object(own)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Takes this process' part."""
        parts = checkpoint.get(self.KEY, []) if trainer.state.fn == TrainerFn.FITTING else []
        self._saved = this_rank(parts)
        if parts and self._saved is None:
            was, now = len(parts), trainer.world_size
            rank_zero_info(f"the checkpoint is of {was} processes, here there are {now}: the random state starts anew")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Puts back the random state and the sums of the epoch."""
        if self._saved is None:
            return
        # Done already unless `configure_optimizers` asked for the number of steps: then Lightning (2.6) has prepared
        # the loaders before it read the checkpoint, and does not come back to them.
        trainer.fit_loop._load_combined_loader_states()
        if "logged" in self._saved:
            epoch_so_far.set_metric_states(pl_module, self._saved["metrics"])
            epoch_so_far.log_again(trainer, pl_module, self._saved["logged"])
        for logger in trainer.loggers if self._saved["row"] else ():
            logger.log_metrics(*self._saved["row"])
        set_random_state(self._saved["random"], pl_module.device)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Puts back the random state once more, after all that other hooks of the start have drawn."""
        if self._saved is not None:
            set_random_state(self._saved["random"], pl_module.device)
            # A loader without a generator of its own draws when it is asked for an iterator. Lightning (2.6) has made
            # that of a resumed epoch long before; without this flag it makes one as in other epochs, after this hook.
            trainer.fit_loop._resuming_from_checkpoint = False

    def on_train_batch_start(self, *_: object) -> None:
        """Forgets what was loaded."""
        self._saved = None


def random_state(device: torch.device) -> dict[str, Any]:
    """The random state of Python, numpy, torch and, on a GPU, its own: tensors and numbers, no objects."""
    name, keys, *rest = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    return state | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Puts back what `random_state` returned; a GPU's only on a GPU."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and isinstance(state.get("cuda"), Tensor):
        torch.cuda.set_rng_state(state["cuda"], device)

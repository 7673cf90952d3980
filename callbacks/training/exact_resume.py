"""An interrupted training that continues as if it had not been interrupted."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from netprism.callbacks.training import partial_epoch
from netprism.distributed import all_gather_object, this_rank


class ExactResume(pl.Callback):
    """Adds to each checkpoint what Lightning leaves out, so that a resumed training is the uninterrupted one.

        trainer = Trainer(callbacks=[ExactResume()])

    That is the random state of Python, numpy, torch and the GPU in every process; the sums of what has been logged so
    far in the epoch; the row of the curves that Lightning hands to the loggers only after the checkpoint. On a CPU the
    weights, the optimisers, the curves and the random state are then bitwise equal, with any loader at the end of an
    epoch. Within an epoch the loader has to know its position: those of netprism's data modules and any
    `netprism.datamodules.ResumableLoader` do; from others Lightning takes the first batches of the epoch again, and
    says so.

    It is harmless where nothing is resumed. Put it first in the list: what other callbacks draw at the start of a
    resumed epoch then comes after the random state was restored. With another number of ranks it is not restored.

    Size in the checkpoint: about 13 KiB per rank.
    """

    KEY = "ExactResume"

    def __init__(self) -> None:
        self._saved: dict[str, Any] | None = None

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the state of every rank: all of them call this, though only one writes."""
        own: dict[str, Any] = {"random": random_state(pl_module.device), "row": partial_epoch.pending_row(trainer)}
        if partial_epoch.is_running(trainer):
            own |= {"logged": partial_epoch.logged_sums(trainer), "metrics": partial_epoch.metric_states(pl_module)}
        checkpoint[self.KEY] = all_gather_object(own)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Takes this rank's part."""
        parts = checkpoint.get(self.KEY, []) if trainer.state.fn == TrainerFn.FITTING else []
        self._saved = this_rank(parts)
        if parts and self._saved is None:
            was, now = len(parts), trainer.world_size
            rank_zero_info(
                f"the checkpoint is of {was} processes, here there are {now}: the random state is not restored"
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restores the random state and the sums of the epoch."""
        if self._saved is None:
            return
        # Done already unless `configure_optimizers` asked for the number of steps: then Lightning (2.6) has prepared
        # the loaders before it read the checkpoint, and does not come back to them.
        trainer.fit_loop._load_combined_loader_states()
        if "logged" in self._saved:
            partial_epoch.set_metric_states(pl_module, self._saved["metrics"])
            partial_epoch.restore_sums(trainer, pl_module, self._saved["logged"])
        for logger in trainer.loggers if self._saved["row"] else ():
            logger.log_metrics(*self._saved["row"])
        set_random_state(self._saved["random"], pl_module.device)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restores the random state once more, after other hooks of the start may have drawn from it."""
        if self._saved is not None:
            set_random_state(self._saved["random"], pl_module.device)
            # A loader without a generator of its own draws when it is asked for an iterator. Lightning (2.6) has made
            # that of a resumed epoch long before; without this flag it makes one as in other epochs, after this hook.
            trainer.fit_loop._resuming_from_checkpoint = False

    def on_train_batch_start(self, *_: object) -> None:
        """Forgets the loaded state."""
        self._saved = None


def random_state(device: torch.device) -> dict[str, Any]:
    """Returns the random state of Python, numpy, torch and the GPU, if there is one: tensors and numbers only."""
    name, keys, *rest = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    return state | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restores what `random_state` returned; that of a GPU only on a GPU."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and isinstance(state.get("cuda"), Tensor):
        torch.cuda.set_rng_state(state["cuda"], device)

"""The checkpoint of the best epoch, by a key that the module really logs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_info

VALIDATION = ("val", "valid", "validation", "eval")
ACCURACY = ("accuracy", "acc", "acc1", "top1")
LESS_IS_BETTER = ("loss", "error", "err", "nll", "mse", "mae", "rmse", "perplexity", "ppl")
# Accuracies before losses, `val/accuracy` first, `val_acc` and `acc/val` as people write them too.
USUAL_KEYS = tuple(
    key
    for names in (ACCURACY, LESS_IS_BETTER)
    for name in names
    for split in VALIDATION
    for key in (f"{split}/{name}", f"{split}_{name}", f"{name}/{split}", f"{name}_{split}")
)


class BestCheckpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint` that works for any module: where no key is named, it takes one that is logged.

        trainer = Trainer(callbacks=[BestCheckpoint(dirpath="checkpoints", filename="best")])

    At the end of the first epoch it takes the first of the usual validation accuracies (`val/accuracy`, `val_acc`,
    `valid_acc`, ...), otherwise the first of the usual losses (`val/loss`, `val_loss`, ...), and says which one. Where
    nothing of that kind is logged the best epoch is the last one. A resumed run keeps to the key and the score of the
    run that it continues, also if its folder was moved.

    Args:
        monitor: A logged key; None chooses as above.
        mode: Whether the "min" or the "max" of the key is best; None: "min" for a loss or an error, otherwise "max".
        options: The other options are those of Lightning's `ModelCheckpoint`.

    Raises:
        ValueError: The key is not logged; names those that are. At the end of the first epoch.
    """

    def __init__(self, monitor: str | None = None, mode: Literal["min", "max"] | None = None, **options: Any) -> None:
        super().__init__(monitor=monitor, mode=mode or best_mode(monitor or ""), **options)
        self._is_chosen = monitor is not None

    @property
    def state_key(self) -> str:
        """Key in a checkpoint: the same one whatever is monitored, since that may be chosen later."""
        return "BestCheckpoint"

    def state_dict(self) -> dict[str, Any]:
        """State of `ModelCheckpoint` and the mode."""
        return {**super().state_dict(), "mode": self.mode}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues with the key and the score; paths are those of this run's folder."""
        if not self._is_chosen:
            self._monitor(state_dict["monitor"], state_dict["mode"])
        if state_dict["monitor"] != self.monitor:
            return  # a score of another quantity
        super().load_state_dict(_moved(state_dict, str(self.dirpath)))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Chooses the key at the end of the first epoch; saves if the epoch is the best one."""
        logged = sorted(trainer.callback_metrics)
        if not self._is_chosen:
            key = next((key for key in USUAL_KEYS if key in logged), None)
            if key is not None or _has_validated(trainer):
                self._monitor(key, best_mode(key or ""))
                how = f"that of the {'least' if self.mode == 'min' else 'largest'} {key}" if key else "the last one"
                rank_zero_info(f"best checkpoint: {how}; --best_checkpoint.monitor names another key")
        elif self.monitor is not None and self.monitor not in logged:
            if not _has_validated(trainer):
                return
            raise ValueError(f"best_checkpoint.monitor is {self.monitor!r}; expected one of {', '.join(logged)}")
        super().on_train_epoch_end(trainer, pl_module)

    def _monitor(self, key: str | None, mode: str) -> None:
        self._is_chosen = True
        self.monitor, self.mode = key, mode
        self.kth_value = torch.tensor(math.inf if mode == "min" else -math.inf)


def best_mode(key: str) -> Literal["min", "max"]:
    """Returns whether the least or the largest value of a logged key is the best one, by its name."""
    words = key.lower().replace("/", "_").split("_")
    return "min" if not key or any(word in LESS_IS_BETTER for word in words) else "max"


def _has_validated(trainer: pl.Trainer) -> bool:
    """Returns whether what the validation logs is there, if it is ever."""
    return trainer.current_epoch + 1 >= (trainer.check_val_every_n_epoch or 1)


def _moved(state: dict[str, Any], folder: str) -> dict[str, Any]:
    """Returns the state with its paths in `folder`."""

    def here(path: str) -> str:
        return str(Path(folder, Path(path).name)) if path else path

    moved = {name: here(state[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
    best = {here(path): score for path, score in state["best_k_models"].items()}
    return {**state, **moved, "best_k_models": best, "dirpath": folder}

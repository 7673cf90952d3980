"""Where the pictures of a run go: its folder, Weights & Biases and TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from PIL import Image
from pytorch_lightning import Trainer
from pytorch_lightning.utilities import rank_zero_warn

_FOLDERS: WeakKeyDictionary[Trainer, Path] = WeakKeyDictionary()  # of trainers without a logger


def publish(
    trainer: Trainer, draw: Callable[[Path], Sequence[Path]], kind: str = "figures", epoch: int | None = None
) -> None:
    """Draws on rank 0, into `<log_dir>/<kind>` or `<log_dir>/<kind>/epoch_003`, and shows each PNG.

    It is shown in W&B and in TensorBoard, of `pytorch_lightning` and `lightning.pytorch`.

    All ranks have to call it. A dry run draws nothing. A trainer without a logger draws into
    `<default_root_dir>/netprism/<date and time>`. A full disk costs the pictures and a warning, not the training.

    Args:
        trainer: Trainer whose folder and loggers are used.
        draw: Function from a folder to the files that it made there. W&B shows `maps/epoch_003/SID.png` as `maps/SID`,
            whose epochs can be leafed through.
        kind: Name of the folder: `figures`, `maps`, ...
        epoch: Epoch of pictures that are drawn repeatedly; -1 before training.
    """
    log_dir = trainer.log_dir  # a broadcast: on all ranks
    if not trainer.is_global_zero or is_dry_run(trainer) or log_dir is None:
        return
    folder = Path(log_dir if trainer.loggers else _folder_of_its_own(trainer, log_dir), kind)
    try:
        paths = draw(folder if epoch is None else folder / _folder_of(epoch))
    except OSError as error:
        rank_zero_warn(f"no {kind} ({error})")
        return
    for path in (path for path in paths if path.suffix == ".png"):
        for logger in trainer.loggers:
            _show(logger, f"{kind}/{path.stem}", path, trainer.global_step)


def _show(logger: Any, key: str, path: Path, step: int) -> None:  # noqa: ANN401 - a logger of either Lightning package
    """Shows a picture in W&B or TensorBoard. By the names of the classes: `lightning.pytorch` has its own of each."""
    kinds = {kind.__name__ for kind in type(logger).__mro__}
    if "WandbLogger" in kinds:
        logger.log_image(key, [str(path)])
    elif "TensorBoardLogger" in kinds:
        with Image.open(path) as picture:
            logger.experiment.add_image(key, np.asarray(picture.convert("RGB")), step, dataformats="HWC")


def _folder_of_its_own(trainer: Trainer, root: str) -> Path:
    """A new folder per trainer that has no logger, so that its pictures are not drawn over those of an earlier one."""
    if trainer not in _FOLDERS:
        _FOLDERS[trainer] = Path(root, "netprism", time.strftime("%Y%m%d-%H%M%S"))
    return _FOLDERS[trainer]


def is_dry_run(trainer: Trainer) -> bool:
    """Tells whether this is one of Lightning's `fast_dev_run`s, which leave no files."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # set in one of Lightning's connectors


def _folder_of(epoch: int) -> str:
    return "start" if epoch < 0 else f"epoch_{epoch:03}"

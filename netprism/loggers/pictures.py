"""Where the pictures of a run go: its folder, and Weights & Biases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pytorch_lightning import Trainer
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_warn


def publish(
    trainer: Trainer, draw: Callable[[Path], Sequence[Path]], kind: str = "figures", epoch: int | None = None
) -> None:
    """Draws on rank 0, into `<log_dir>/<kind>` or `<log_dir>/<kind>/epoch_003`, and shows each PNG in W&B.

    To be called on all ranks. A dry run, and a trainer without a folder, draw nothing. A full disk costs the pictures
    and a warning, not the training.

    Args:
        trainer: whose folder and loggers.
        draw: folder -> the files it made there. W&B has `maps/epoch_003/SID.png` as `maps/SID`, so that one can leaf
            through the epochs.
        kind: `figures`, `maps`, ...
        epoch: of pictures that are made again and again; -1 before training.
    """
    log_dir = trainer.log_dir  # a broadcast: on all ranks
    if not trainer.is_global_zero or is_dry_run(trainer) or log_dir is None:
        return
    folder = Path(log_dir, kind)
    try:
        paths = draw(folder if epoch is None else folder / _folder_of(epoch))
    except OSError as error:
        rank_zero_warn(f"no {kind} ({error})")
        return
    for path in (path for path in paths if path.suffix == ".png"):
        for logger in (logger for logger in trainer.loggers if isinstance(logger, WandbLogger)):
            logger.log_image(f"{kind}/{path.stem}", [str(path)])


def is_dry_run(trainer: Trainer) -> bool:
    """Tell whether this is one of Lightning's `fast_dev_run`s, which leave no files."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # set in one of Lightning's connectors


def _folder_of(epoch: int) -> str:
    return "start" if epoch < 0 else f"epoch_{epoch:03}"

"""Where the pictures of a run go: its folder, Weights & Biases and TensorBoard."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from PIL import Image
from pytorch_lightning import Trainer
from pytorch_lightning.utilities import rank_zero_warn

_SHOWN = (".png", ".gif", ".html", ".csv")
_LARGEST_PAGE = 5_000_000  # bytes
_FOLDERS: WeakKeyDictionary[Trainer, Path] = WeakKeyDictionary()  # of trainers without a logger


def publish(
    trainer: Trainer, draw: Callable[[Path], Sequence[Path]], kind: str = "figures", epoch: int | None = None
) -> None:
    """Draws on rank 0, into `<log_dir>/<kind>` or `<log_dir>/<kind>/epoch_003`, and shows the files.

    W&B gets pictures, films, turnable pages and tables, with the epoch on their axis and in their caption; TensorBoard
    gets the pictures, MLflow all files. Both `pytorch_lightning`'s and `lightning.pytorch`'s loggers are known.

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
    at = max(trainer.current_epoch - 1, 0) if epoch is None else epoch  # at the end it counts the epochs
    for path in paths:
        for logger in trainer.loggers:
            _show(logger, kind, path, trainer.global_step, at)


def _show(logger: Any, kind: str, path: Path, step: int, epoch: int) -> None:  # noqa: ANN401 - of either package
    """Shows a file. By the names of the classes: `lightning.pytorch` has its own of each."""
    kinds = {each.__name__ for each in type(logger).__mro__}
    key = f"{kind}/{path.stem}"
    if "WandbLogger" in kinds and (shown := _for_wandb(path, _caption(path, epoch))) is not None:
        logger.log_metrics({key: shown, "epoch": epoch}, step=step)
    elif "TensorBoardLogger" in kinds and path.suffix == ".png":
        with Image.open(path) as picture:
            logger.experiment.add_image(key, np.asarray(picture.convert("RGB")), step, dataformats="HWC")
    elif "MLFlowLogger" in kinds and path.suffix in _SHOWN:
        logger.experiment.log_artifact(logger.run_id, str(path), f"{kind}/{_folder_of(epoch)}")


def _for_wandb(path: Path, caption: str) -> Any:  # noqa: ANN401 - one of W&B's media
    """A picture, a film, a page or a table; None for other files, and for pages too large to be looked at."""
    import wandb

    if path.suffix == ".png":
        return wandb.Image(str(path), caption=caption)
    if path.suffix == ".gif":
        return wandb.Video(str(path), caption=caption, format="gif")
    if path.suffix == ".html" and path.stat().st_size <= _LARGEST_PAGE:
        return wandb.Html(_with_plotly_from_the_net(path.read_text(encoding="utf-8")), inject=False)
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            columns, *rows = list(csv.reader(file)) or [[]]
        return wandb.Table(columns=list[str | int](columns), data=rows)
    return None


def _with_plotly_from_the_net(page: str) -> str:
    """The page without the script beside it, which W&B does not have."""
    from plotly.offline import get_plotlyjs_version

    return page.replace('src="plotly.min.js"', f'src="https://cdn.plot.ly/plotly-{get_plotlyjs_version()}.min.js"')


def _caption(path: Path, epoch: int) -> str:
    return f"{path.stem.replace('_', ' ')}, {'before training' if epoch < 0 else f'epoch {epoch}'}"


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

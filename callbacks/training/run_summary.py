"""What a training says at its end: the first epoch against the last, and where everything is."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

from pytorch_lightning import Callback, LightningModule, Trainer

from netprism.loggers import OfflineFallbackWandbLogger, ResumableCSVLogger, is_dry_run
from netprism.report import write_report
from netprism.report.words import headlines, is_headline
from netprism.runs.folder import display_path

Epochs = dict[int, dict[str, float]]
MOST_IN_A_LINE = 4  # values
LONGEST = 24  # keys that are all shown

log = logging.getLogger(__name__)


class RunSummary(Callback):
    """Prints a table of the logged quantities, without those of single layers, and the places of a run's files.

    Where there is no progress bar, as in a log file, each epoch is a line. At the end the headline quantities of every
    analysis come first, however many keys there are. The same is written as a page, `report.html`, which takes about a
    second; a page that cannot be written costs a warning.

    The values are those of the trainer's `ResumableCSVLogger`; without one (a dry run, a trainer of one's own) nothing
    is said.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock: an epoch that is resumed within has no start of its own."""
        self._begin = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock of the epoch's line."""
        self._begin = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the line of an epoch, on rank 0."""
        if trainer.is_global_zero and trainer.progress_bar_callback is None and not is_dry_run(trainer):
            print(epoch_line(trainer, time.monotonic() - self._begin), flush=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Prints how to continue a training that was stopped with Ctrl-C."""
        curves = next((logger for logger in trainer.loggers if isinstance(logger, ResumableCSVLogger)), None)
        if isinstance(exception, KeyboardInterrupt) and curves is not None and trainer.is_global_zero:
            curves.save()
            print(
                "",
                *places(trainer, curves),
                f"continue     make resume RUN={display_path(curves.path.parent)}",
                sep="\n",
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print, on rank 0."""
        curves = next((logger for logger in trainer.loggers if isinstance(logger, ResumableCSVLogger)), None)
        if curves is None or not trainer.is_global_zero:
            return
        curves.read()
        curves.finalize("success")
        page = write_page(curves.path.parent)
        print("", *table(epochs(curves)), "", *page, *places(trainer, curves), "", sep="\n")


def epoch_line(trainer: Trainer, seconds: float) -> str:
    """Returns what a log file says of an epoch: `epoch 3 of 10: 4.2 s, val/accuracy 0.98, val/loss 0.07`."""
    whole = [key for key in trainer.callback_metrics if is_summary(key) and is_headline(key)]
    values = [f"{key} {float(trainer.callback_metrics[key]):.4g}" for key in whole[:MOST_IN_A_LINE]]
    of = f" of {trainer.max_epochs}" if trainer.max_epochs is not None and trainer.max_epochs > 0 else ""
    return f"epoch {trainer.current_epoch + 1}{of}: {', '.join([f'{seconds:.1f} s', *values])}"


def write_page(folder: Path) -> list[str]:
    """Writes the report of a run that has just ended; returns the line that says where it is."""
    try:
        return [f"report       {display_path(write_report(folder, ended=True))}"]
    except Exception as error:  # of any kind: a page is no reason to lose a training
        log.warning(f"no report ({error})")
        return []


def epochs(curves: ResumableCSVLogger) -> Epochs:
    """Returns {epoch: {key: value}} of everything logged so far; -1 is before the first step."""
    found: Epochs = {}
    for (epoch, _), row in curves.rows.items():
        if epoch is not None:
            values = {key: float(value) for key, value in row.items() if key not in ("epoch", "step")}
            found.setdefault(epoch, {}).update(values)
    return dict(sorted(found.items()))


def table(found: Epochs) -> list[str]:
    """Returns the lines: per key the untrained value, the first and the last epoch; of many keys only summaries."""
    trained = [epoch for epoch in found if epoch >= 0]
    shown_epochs = dict.fromkeys([epoch for epoch in found if epoch < 0] + trained[:1] + trained[-1:])
    logged = dict.fromkeys(key for epoch in shown_epochs for key in found[epoch] if not key.endswith("_step"))
    first = [key for key in headlines(list(logged)) if key in logged]
    rest = [key for key in logged if len(logged) <= LONGEST or is_summary(key)] or ([] if first else list(logged))
    keys = list(dict.fromkeys([*first, *rest]))
    width = max(map(len, keys), default=0)
    heads = ["untrained" if epoch < 0 else f"epoch {epoch}" for epoch in shown_epochs]
    lines = [" " * width + "".join(f"{head:>12}" for head in heads)]
    for key in keys:
        cells = [found[epoch].get(key) for epoch in shown_epochs]
        lines.append(f"{key:{width}}" + "".join(f"{'-' if cell is None else f'{cell:.4g}':>12}" for cell in cells))
    return lines


def is_summary(key: str) -> bool:
    """Returns whether a key is of a whole network and epoch: `gates/test/entropy` is, `gates/entropy/layer1` is not."""
    return key.replace("/test/", "/").count("/") <= 1 and not key.endswith("_step")


def places(trainer: Trainer, curves: ResumableCSVLogger) -> list[str]:
    """Returns the lines that say where the curves, the checkpoints and the figures are."""
    folder = curves.path.parent
    lines = [f"curves       {display_path(curves.path)}"]
    lines += [
        line
        for logger in trainer.loggers
        if isinstance(logger, OfflineFallbackWandbLogger)
        for line in wandb_lines(logger)
    ]
    for name in ("checkpoints", "figures", "maps"):
        files = sorted(path.name for path in (folder / name).glob("*") if path.suffix not in (".js", ".part"))
        listed = files if len(files) <= 12 else [*files[:2], "...", files[-1]]
        lines += [f"{name:12} {display_path(folder / name)}: {', '.join(listed)}"] if files else []
    return lines


def wandb_lines(logger: OfflineFallbackWandbLogger) -> list[str]:
    """Returns where the W&B run is, and for an offline one the commands that show and upload it."""
    if not logger.where or logger.where.startswith("http"):
        return [f"W&B          {logger.where or 'off'}"]
    command, folder = display_path(Path(sys.executable).with_name("wandb")), Path(logger.where).parent
    return [
        f"W&B          offline; in this terminal: {command} leet {folder}",
        f"             to the browser: {command} sync {folder}/offline-run-*",
    ]

"""The curves of a run as a table that survives a crash and a resume."""

from __future__ import annotations

import csv
import logging
import os
import time
from collections.abc import Mapping
from numbers import Real
from typing import Any

from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from netprism.files import csv_text, write_text
from netprism.runs.folder import display_path, run_folder

log = logging.getLogger(__name__)

Key = tuple[int | None, int | None]  # epoch and step


class ResumableCSVLogger(Logger):
    """Writes `<save_dir>/metrics.csv`: columns `epoch`, `step`, then the keys in the order of their appearance.

    Calls with the same epoch and step share a row. The file is rewritten whole and renamed into place, so that a reader
    never sees half of it; Lightning's CSVLogger overwrites the file on resume. A resumed run reads the rows up to the
    epoch and step that it logs first, and replaces the others: they are run again.

    Rewriting is O(rows), so it takes at most a 20th of the time; rows in memory are written with every checkpoint and
    at the end, so that a killed run loses no row of an epoch from which it can resume. A full disk costs a warning: the
    rows and the older file are kept, and the next save is another try.

    Args:
        save_dir: The run folder; None: `$NETPRISM_RUN`. With this logger first, it is also `trainer.log_dir`.
    """

    def __init__(self, save_dir: str | os.PathLike[str] | None = None) -> None:
        super().__init__()
        self.path = run_folder(save_dir) / "metrics.csv"
        self.rows: dict[Key, dict[str, Any]] = {}
        self._columns = dict.fromkeys(("epoch", "step"))
        self._resumed = False
        self._write_from = 0.0
        self._told = False  # whether a warning has said that the disk is full

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self.path.parent)

    @property
    def name(self) -> str:
        """Empty: the run folder has no folder of this logger."""
        return ""

    @property
    def version(self) -> str:
        """Empty: the run folder has no folder of this logger."""
        return ""

    def log_hyperparams(self, *args: object, **kwargs: object) -> None:
        """Do nothing: `config.yaml` has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Adds the numbers among `metrics` to the row of their `epoch` and `step`; NaN is kept."""
        epoch = None if metrics.get("epoch") is None else int(metrics["epoch"])
        if not self._resumed:
            self._resume((epoch, step))
        row = self.rows.setdefault((epoch, step), {"epoch": epoch, "step": step})
        row |= {key: value for key, value in metrics.items() if isinstance(value, Real) and key != "epoch"}
        self._columns |= dict.fromkeys(row)

    @rank_zero_only
    def save(self) -> None:
        """Writes the file, at most once per 20 times the duration of the last write."""
        begin = time.monotonic()
        if begin >= self._write_from:
            self._write()
            self._write_from = begin + 20 * (time.monotonic() - begin)

    def after_save_checkpoint(self, checkpoint_callback: Checkpoint) -> None:
        """Writes the rows that belong to the checkpoint."""
        self._write()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Writes the rows that are not written yet."""
        self._told = False
        self._write()

    def read(self) -> None:
        """Reads the rows of a resumed run that has logged nothing yet."""
        if not self._resumed:
            self._resume((None, None))

    def _resume(self, first: Key) -> None:
        self._resumed = True
        if not self.path.exists():
            return
        with self.path.open(encoding="utf-8", newline="") as file:
            for cells in csv.DictReader(file):
                epoch, step = (int(cells[key]) if cells[key] else None for key in ("epoch", "step"))
                if None in (epoch, first[0]) or (epoch, step or 0) <= (first[0], first[1] or 0):
                    self.rows[epoch, step] = {key: cell for key, cell in cells.items() if cell}
                    self._columns |= dict.fromkeys(self.rows[epoch, step])

    def _write(self) -> None:
        if not self.rows:
            return
        try:
            write_text(self.path, csv_text(list(self.rows.values()), list(self._columns)))
            self._told = False
        except OSError as error:
            if not self._told:
                log.warning(
                    f"{display_path(self.path)} was not written ({error.strerror}); its rows wait for the next try"
                )
            self._told = True

"""One run of a study: its setting, its folder, its state, and the files that the process which trains it reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netprism.files import write_text
from netprism.runs.folder import FINISHED
from netprism.studies.grid import Setting, text

FAILED = "failed.txt"
SECONDS = "seconds.txt"
LOG = "log.txt"


@dataclass(frozen=True)
class Point:
    """One run: a training, a measurement of it, or a measurement alone.

    Attributes:
        setting: What varies, with the seed.
        key: Key of the config and the measurement.
        folder: Folder of the run.
        experiment: Experiment of the training; None: there is none.
        config: Text of the resolved config; None: there is no training.
        measure: Dotted name of the function that measures the run; None: what was logged is read.
        arguments: Its arguments.
        needs: Folders of the runs that must be finished before.
    """

    setting: Setting
    key: str
    folder: Path
    experiment: str | None = None
    config: str | None = None
    measure: str | None = None
    arguments: Mapping[str, Any] | None = None
    needs: tuple[Path, ...] = ()

    @property
    def result(self) -> Path:
        """File of the measured rows."""
        return self.folder / "measured" / f"{self.key}.csv"

    @property
    def trained(self) -> bool:
        """Whether there is nothing to train, or it is trained."""
        return self.config is None or (self.folder / FINISHED).is_file()

    @property
    def done(self) -> bool:
        """Whether it is trained and measured."""
        return self.trained and (self.measure is None or self.result.is_file())

    @property
    def failure(self) -> Path:
        """File with the reason of a failure, of the training or of the measurement."""
        return self.result.with_suffix(f".{FAILED}") if self.trained else self.folder / FAILED

    def reason(self) -> str | None:
        """Returns why it failed, in one line; None: it did not. A run whose analysed network failed says so."""
        if self.done:
            return None
        if self.failure.is_file():
            return self.failure.read_text(encoding="utf-8").strip()
        for folder in self.needs:
            if (file := folder / FAILED).is_file() and not (folder / FINISHED).is_file():
                return f"its network failed: {file.read_text(encoding='utf-8').strip()}"
        return None

    def state(self) -> str:
        """Returns done, failed, stopped or missing."""
        if self.done:
            return "done"
        if self.reason() is not None:
            return "failed"
        return "stopped" if (self.folder / "config.yaml").is_file() else "missing"

    def forget(self) -> None:
        """Removes the mark of a failure, to try again."""
        self.failure.unlink(missing_ok=True)

    def seconds(self) -> float | None:
        """Returns how long it took, over all its tries; None where nobody has noted it."""
        file = self.folder / SECONDS
        return float(file.read_text()) if file.is_file() else None

    def write(self, folder: Path) -> Path:
        """Writes `<key>.json`, and `<key>.yaml` to train from, into the folder of a study; returns the first."""
        config = folder / f"{self.key}.yaml" if self.config is not None else None
        if config is not None:
            write_text(config, f"# {self.experiment}: {text(self.setting)}\n{self.config}")
        content = {
            "setting": self.setting,
            "folder": str(self.folder),
            "experiment": self.experiment,
            "config": None if config is None else str(config),
            "measure": self.measure,
            "arguments": dict(self.arguments or {}),
            "needs": list(map(str, self.needs)),
        }
        file = folder / f"{self.key}.json"
        write_text(file, json.dumps(content, indent=1) + "\n")
        return file


def read_point(file: Path) -> Point:
    """Reads what `Point.write` wrote."""
    content = json.loads(file.read_text(encoding="utf-8"))
    config = content["config"]
    return Point(
        content["setting"],
        file.stem,
        Path(content["folder"]),
        content["experiment"],
        None if config is None else Path(config).read_text(encoding="utf-8"),
        content["measure"],
        content["arguments"],
        tuple(map(Path, content["needs"])),
    )

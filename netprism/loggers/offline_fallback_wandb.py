"""Weights & Biases for trainings that have no network, no key and nobody at the terminal."""

from __future__ import annotations

import functools
import os
import re
import shutil
import textwrap
import time
from collections.abc import Callable, Mapping
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lightning_fabric.loggers.logger import _DummyExperiment, rank_zero_experiment
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only

from netprism.runs.folder import display_path, run_folder

if TYPE_CHECKING:
    from wandb import Run
    from wandb.sdk.lib import RunDisabled


def _survives(method: Callable[..., None]) -> Callable[..., None]:
    """Makes a method of OfflineFallbackWandbLogger give up on W&B where it would have stopped the training."""

    @functools.wraps(method)
    def guarded(self: OfflineFallbackWandbLogger, *args: object, **kwargs: object) -> None:
        if self._broken:
            return
        try:
            method(self, *args, **kwargs)
        except Exception as error:  # of any kind: a broken logger is no reason to lose a training
            self._broken = True
            rank_zero_info(f"W&B: stopped, metrics.csv continues ({_short(error)})")

    return guarded


def _short(error: object) -> str:
    return textwrap.shorten(str(error).partition("\n")[0], 160, placeholder=" ...")


class OfflineFallbackWandbLogger(WandbLogger):
    """Weights & Biases that never asks, never waits for long and never stops a training.

    Without a key, with one that the server refuses, or with a server that does not answer within `init_timeout`, the
    run is written offline into `<save_dir>/wandb`, and one line says so. `WANDB_MODE` (offline, disabled) is obeyed.
    The run id is made of the run folder's name, so that a resumed run joins its curve. `epoch` is the x axis of every
    key except those that Lightning logs per step (`..._step`), and of pictures. The summary has the least, the largest
    and the last value of each quantity of a whole network, `gates/entropy` and `val/accuracy`, and the last of others.

    Args:
        save_dir: The run folder; None: `$NETPRISM_RUN`.
        project: W&B project; `$WANDB_PROJECT` or `netprism` when None.
        init_timeout: Seconds to wait for the server at the start.
        finish_timeout: Seconds to wait for the upload at the end; `wandb sync` can do the rest.
        offline: Do not try to reach the server.
        entity: W&B team or user.
        group: Name that several runs share.
        tags: Labels of the run.
        log_model: Upload checkpoints as artifacts, as in Lightning's WandbLogger.
        name: Name of the run; by default `netprism fit` calls it by its experiment and what differs from it.
        job_type: Kind of the run; by default `netprism fit` takes the folder of its experiment, `gates`.
    """

    def __init__(
        self,
        save_dir: str | os.PathLike[str] | None = None,
        project: str | None = None,
        init_timeout: float = 20.0,
        finish_timeout: float = 60.0,
        offline: bool = False,
        entity: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        log_model: bool = False,
        name: str | None = None,
        job_type: str | None = None,
    ) -> None:
        run_id = re.sub(r"[^\w-]+", "-", "-".join(run_folder(save_dir).absolute().parts[-2:]))
        super().__init__(
            name=name or run_id,
            id=os.environ.get("WANDB_RUN_ID", run_id),
            save_dir=run_folder(save_dir),
            project=project or os.environ.get("WANDB_PROJECT", "netprism"),
            offline=offline,
            log_model=log_model,
            entity=entity,
            group=group,
            tags=tags,
            job_type=job_type,
        )
        self._given = {"name": name, "group": group, "tags": tags, "job_type": job_type}
        self._config: dict[str, Any] = {}
        self._files: list[Path] = []
        del self._wandb_init["anonymous"]  # Lightning always passes it, wandb warns whenever it is passed
        self._settings: dict[str, Any] = {"init_timeout": init_timeout, "finish_timeout": finish_timeout}
        self._keys: set[str] = set()
        self._own = self._broken = False
        self.where = ""  # for people: the page of an online run, the folder of an offline one

    @property
    @rank_zero_experiment
    def experiment(self) -> Run | RunDisabled:
        """The W&B run, started at the first use."""
        if self._experiment is None:
            self._experiment = self._start()
        return self._experiment

    def describe(
        self, *, name: str, group: str, job_type: str, tags: list[str], config: dict[str, Any], files: list[Path]
    ) -> None:
        """Says what the run is, before it starts; what the user has given stays.

        Args:
            name: Name of the run.
            group: Name that runs of one experiment share.
            job_type: Kind of the run.
            tags: Labels.
            config: The whole config, `{dotted name: value}`, in place of Lightning's hyperparameters.
            files: Files to keep with the run, such as its config; they may come later.
        """
        said = {"name": name, "group": group, "job_type": job_type, "tags": tags}
        self._wandb_init.update({key: value for key, value in said.items() if self._given[key] is None})
        self._config, self._files = config, files

    @_survives
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Logs `metrics`, each new key with its x axis."""
        for key in metrics:
            if key not in self._keys and key != "epoch":
                self._keys.add(key)
                # By its exact name: wandb's local viewer does not honour a glob.
                axis = "trainer/global_step" if key.endswith("_step") else "epoch"
                # Of whole networks: `gates/test/entropy` is one, `gates/entropy/layer1` is not.
                is_whole = isinstance(metrics[key], Real) and key.replace("/test/", "/").count("/") <= 1
                summary = "min,max,last" if is_whole and axis == "epoch" else None
                self.experiment.define_metric(key, step_metric=axis, summary=summary)
        super().log_metrics(metrics, step)
        for file in [file for file in self._files if file.is_file()]:
            self._files.remove(file)
            self.experiment.save(str(file), base_path=str(file.parent), policy="now")

    @_survives
    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Logs a module's hyperparameters, where no whole config is known."""
        if not self._config:
            super().log_hyperparams(*args, **kwargs)

    log_table = _survives(WandbLogger.log_table)
    log_image = _survives(WandbLogger.log_image)
    after_save_checkpoint = _survives(WandbLogger.after_save_checkpoint)

    @_survives
    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the run, as failed unless `status` is `success`."""
        super().finalize(status)
        run, self._experiment = self._experiment, None
        if self._own and run is not None:
            folder, begin = display_path(Path(run.settings.sync_dir)), time.monotonic()
            run.finish(exit_code=0 if status == "success" else 1)
            if time.monotonic() - begin >= (limit := self._settings["finish_timeout"]):
                rank_zero_info(f"W&B: not all was uploaded within {limit:g} s; `wandb sync {folder}` does the rest")

    def _start(self) -> Run:
        # A silent wandb raises UsageError where another one asks for a key on the terminal and waits for ever.
        os.environ |= {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
        import wandb

        self._keys.clear()
        self._own = wandb.run is None
        if wandb.run is not None:  # the user's own, or one of a sweep
            self.where = wandb.run.url or display_path(wandb.run.settings.sync_dir)
            return wandb.run
        mode = "offline" if self._offline else os.environ.get("WANDB_MODE", "online")
        if mode == "disabled":
            return wandb.init(mode="disabled")
        reason = f"mode {mode}"
        if mode in ("online", "shared"):
            before = self._folders()
            try:
                return self._init(mode)
            except Exception as error:
                reason = _short(error)
            wandb.teardown()  # to the service that saw the failure the run id is "in use"
            for left in self._folders() - before:
                shutil.rmtree(left, ignore_errors=True)
        try:
            return self._init("offline", reason)
        except Exception as error:
            self._broken = True
            rank_zero_info(f"W&B: off, metrics.csv has the curves ({_short(error)})")
            return cast("Run", _DummyExperiment())

    def _init(self, mode: str, reason: str = "") -> Run:
        import wandb

        run = wandb.init(**self._wandb_init, config=self._config or None, settings={**self._settings, "mode": mode})
        self.where = run.url or display_path(run.settings.sync_dir)
        rank_zero_info(f"W&B: {mode}, {self.where}" + (f" ({reason})" if reason else ""))
        return run

    def _folders(self) -> set[Path]:
        return set(Path(self.save_dir or ".").glob("wandb/run-*"))

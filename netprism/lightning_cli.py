"""Lightning's command line with netprism's defaults: `configs/trainer/default.yaml`, a run folder, safe checkpoints."""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import re
import time
import warnings
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities import rank_zero_only

import netprism.datamodules
import netprism.lightning_modules
import netprism.nets  # noqa: F401  for short names: --data Digits, --model.net LeNet5
from netprism.callbacks.exact_resume import ExactResume
from netprism.callbacks.run_summary import RunSummary
from netprism.missing import name_teachers
from netprism.run import FINISHED, RUN, open_folder, provenance, shown, write_text

# What jsonargparse says about the inside of its types, before and after the line that names the mistake.
NOISE = (
    "Does not validate against",
    "Subtypes:",
    "Errors:",
    "- Expected a <class 'NoneType'>",
    "Given value type:",
    "Given value: NestedArg",
    "- Not a valid subclass",
    "Subclass types expect one of:",
    "- a class path",
    "- a dict",
)
# Lightning declares Optional[Union[int, float]], but its fabric.py has said Optional[Union[float, int]] before, and
# typing's cache takes them for one: `--trainer.limit_train_batches 1`, one batch, was read as 1.0, all of them.
for _stage in ("train", "val", "test", "predict"):
    Trainer.__init__.__annotations__[f"limit_{_stage}_batches"] = int | float | None

DEFAULTS = Path(__file__).parent / "configs" / "trainer" / "default.yaml"


def is_no_advert(record: logging.LogRecord) -> bool:
    """Tell whether a line of Lightning's log is about the run, and not about another product."""
    return "litlogger" not in record.getMessage()


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside the old one and renames it.

    Lightning's own writes into the system's temporary folder and moves, which on another file system is a copy: a job
    killed meanwhile has lost its only checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        """Save `checkpoint` under `path`, whole or not at all."""
        part = Path(f"{path}.part")
        try:
            super().save_checkpoint(checkpoint, part, storage_options)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


class SaveRun(SaveConfigCallback):
    """Writes `config.yaml` and `git.txt` of a training; nothing for the other commands."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write both, on rank 0; in `config.yaml` the folder is a variable, so that it can be run again elsewhere."""
        if stage != "fit":
            return
        folder = os.environ[RUN]
        config = self.config.clone()
        config["ckpt_path"] = None  # where this process went on, no part of what the run is
        text = self.parser.dump(config, skip_none=False)
        text = re.sub(rf"(?<![^\s'\"]){re.escape(folder)}(?=[/\s'\"])", f"${{oc.env:{RUN}}}", text)
        write_text(Path(folder, "config.yaml"), text)
        write_text(Path(folder, "git.txt"), provenance())


class NetprismCLI(LightningCLI):
    """`fit`, `validate`, `test` and `predict`, configured by YAML and checked against the signatures of the classes."""

    def __init__(self, args: list[str], goes_on: bool = False) -> None:
        self.args, self.goes_on = args, goes_on
        warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec.", FutureWarning)  # Lightning 2.6, torch 2.15
        warnings.filterwarnings("ignore", "Found .* in eval mode at the start of training")  # teachers are meant so
        logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(is_no_advert)
        options = {"parser_mode": "omegaconf", "exit_on_error": False, "allow_abbrev": False}
        defaults = {command: {**options, "default_config_files": [str(DEFAULTS)]} for command in self.subcommands()}
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_callback=SaveRun,
            save_config_kwargs={"save_to_log_dir": False},
            parser_kwargs={**options, "prog": "netprism", **defaults},
            args=args,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the callbacks that every training has; their arguments are in `configs/trainer/default.yaml`."""
        # Two, because Lightning's save_last follows save_top_k: "last" would be as old as the best epoch.
        parser.add_lightning_class_args(ModelCheckpoint, "last_checkpoint")
        parser.add_lightning_class_args(ModelCheckpoint, "best_checkpoint")
        parser.add_lightning_class_args(RunSummary, "summary")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the arguments; a wrong one ends in one line that names it and, where there is one, what was meant.

        Raises:
            argparse.ArgumentError: With that line.
        """
        try:
            self.config = parser.parse_args(self.args)
        except argparse.ArgumentError as error:
            raise argparse.ArgumentError(None, self._explain(error.message)) from error
        name_teachers(self.config[self.args[0]], may_train=self.args[0] == "fit")

    def _explain(self, message: str) -> str:
        line = " ".join(part for part in map(str.strip, message.splitlines()) if part and not part.startswith(NOISE))
        known = re.findall(r"--[\w.]+", self._subcommand_parsers[self.args[0]].format_usage())
        wrong = re.search(r"unrecognized arguments: (--[^\s=]+)", line)
        close = difflib.get_close_matches(wrong[1], known) if wrong else []
        return f"{line}; " + (
            f"close: {', '.join(close)}" if close else f"netprism {self.args[0]} --help lists the options"
        )

    def instantiate_trainer(self, **kwargs: object) -> Trainer:
        """Instantiate the trainer; only a training has loggers, the other commands print their table."""
        trainer = super().instantiate_trainer(**kwargs if self.subcommand == "fit" else {**kwargs, "logger": False})
        trainer.callbacks.insert(0, ExactResume())  # type: ignore[attr-defined]  # set in one of Lightning's connectors
        return trainer

    @rank_zero_only
    def before_fit(self) -> None:
        """Make the run folder, before W&B or a long download begins; a dry run has none.

        Raises:
            OSError: If it cannot be written.
            FileExistsError: If it has the curves of an older run that this one does not continue.
        """
        config, folder = self.config["fit"], Path(os.environ[RUN])
        if config["trainer"]["fast_dev_run"]:
            return
        if (folder / "metrics.csv").exists() and not self.goes_on:
            raise FileExistsError(f"{shown(folder)} has a run; go on with --ckpt_path last or name a folder in ${RUN}")
        open_folder(folder)
        (folder / FINISHED).unlink(missing_ok=True)

    @rank_zero_only
    def after_fit(self) -> None:
        """Mark the run as finished: its checkpoints may be looked into by other experiments."""
        if not self.config["fit"]["trainer"]["fast_dev_run"] and not self.trainer.interrupted:
            write_text(Path(os.environ[RUN], FINISHED), f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n")

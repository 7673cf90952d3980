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

import yaml
from jsonargparse import Namespace
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.callbacks import LambdaCallback, ModelCheckpoint
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only

import netprism.datamodules
import netprism.lightning_modules
import netprism.nets  # noqa: F401  for short names: --data Digits, --model.net LeNet5
from netprism.callbacks._monitor import Monitor
from netprism.callbacks._view import is_watched
from netprism.callbacks.training.best_checkpoint import BestCheckpoint
from netprism.callbacks.training.equal_batches import CheckEqualBatches
from netprism.callbacks.training.exact_resume import ExactResume
from netprism.callbacks.training.requeue import Requeue
from netprism.callbacks.training.run_summary import RunSummary
from netprism.cli.config_teachers import teachers_in
from netprism.cli.early import differing
from netprism.cli.keys import network_key
from netprism.cli.teacher_runs import resolve_teachers
from netprism.files import write_text
from netprism.loggers import OfflineFallbackWandbLogger, is_dry_run
from netprism.report.run import flat
from netprism.runs.checkpoint_io import SafeCheckpointIO, use_safe_checkpoints
from netprism.runs.checkpoints import of_another_model
from netprism.runs.folder import (
    FINISHED,
    RUN,
    display_path,
    environment,
    lock,
    open_folder,
    provenance,
    runs_root,
    unlock,
)
from netprism.runs.teachers import EXPERIMENTS

# Lines of jsonargparse about its own types, around the line that names the mistake.
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

log = logging.getLogger(__name__)
MOST_PROCESSES = 8  # for each core: more are a slip of the finger, and would take all memory before they began
DEFAULTS = Path(__file__).parents[1] / "configs" / "trainer" / "default.yaml"


def is_no_advert(record: logging.LogRecord) -> bool:
    """Returns whether a log line is about the run: Lightning's advertisement of LitLogger is dropped."""
    return "litlogger" not in record.getMessage()


@rank_zero_only
def _unfinish(trainer: Trainer, pl_module: LightningModule) -> None:
    """Takes back the mark of a finished run once it really trains again; a resume that fails before leaves it."""
    if not is_dry_run(trainer):
        Path(os.environ[RUN], FINISHED).unlink(missing_ok=True)


class SaveRun(SaveConfigCallback):
    """Writes `config.yaml` and `git.txt` of a training; nothing for the other commands."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes both, on rank 0; in `config.yaml` the folder is a variable, so that it can be run again elsewhere."""
        if stage != "fit":
            return
        folder = os.environ[RUN]
        config = self.config.clone()
        config["ckpt_path"] = None  # where this process resumed, which is no property of the run
        text = self.parser.dump(config, skip_none=False)
        text = re.sub(rf"(?<![^\s'\"]){re.escape(folder)}(?=[/\s'\"])", f"${{oc.env:{RUN}}}", text)
        write_text(Path(folder, "config.yaml"), text)
        write_text(Path(folder, "git.txt"), provenance())


class NetprismCLI(LightningCLI):
    """`fit`, `validate`, `test` and `predict`, configured by YAML and checked against the signatures of the classes."""

    def __init__(self, args: list[str], goes_on: bool = False) -> None:
        self.args, self.goes_on = args, goes_on
        warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec.", FutureWarning)  # Lightning 2.6, torch 2.15
        warnings.filterwarnings("ignore", "Found .* in eval mode at the start of training")  # teachers, on purpose
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

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # Lightning's knows no instance
        """Returns the one command that is run: the parsers of the other three would take half of the start."""
        return {self.args[0]: super().subcommands()[self.args[0]]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the callbacks that every training has; their arguments are in `configs/trainer/default.yaml`."""
        # Two, because Lightning's save_last follows save_top_k: "last" would be as old as the best epoch. The best one
        # comes first: "last" then holds its score, and a resumed run knows which epoch was the best.
        parser.add_lightning_class_args(BestCheckpoint, "best_checkpoint")
        parser.add_lightning_class_args(ModelCheckpoint, "last_checkpoint")
        parser.add_lightning_class_args(RunSummary, "summary")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses the arguments; a wrong one ends in one line that names it and, where there is one, what was meant.

        Raises:
            argparse.ArgumentError: With that line.
        """
        try:
            self.config = parser.parse_args(self.args)
        except argparse.ArgumentError as error:
            raise argparse.ArgumentError(None, self._explain(error.message)) from error
        may_train = self.args[0] == "fit"
        resolve_teachers(
            self.config[self.args[0]], may_train, lambda name, seed: ConfigReader().network_key(name, seed)
        )

    def _parse_ckpt_path(self) -> None:
        """Ignore the checkpoint: Lightning's would let it choose the class of the model and its arguments."""

    def _run_subcommand(self, subcommand: str) -> None:
        if self.config[subcommand].get("weights_only") is False:
            raise ValueError(
                "weights_only is false, which would run code pickled in a checkpoint; expected true or nothing"
            )
        if subcommand != "fit" and not self.config[subcommand].get("ckpt_path"):
            rank_zero_info(f"{subcommand}: no --ckpt_path, so the network is as it was made, untrained")
        try:
            super()._run_subcommand(subcommand)
        except RuntimeError as error:
            if "in loading state_dict for" not in str(error):
                raise
            raise ValueError(of_another_model(self.config[subcommand]["ckpt_path"], error)) from error
        finally:
            unlock()

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
        if self.subcommand != "fit":
            kwargs["logger"] = False
        if self._get(self.config_init, "trainer", default={}).get("enable_progress_bar") is None and not is_watched():
            kwargs["enable_progress_bar"] = False  # a log file would get a line for each refresh
        trainer = super().instantiate_trainer(**kwargs)
        cores = os.cpu_count() or 1
        if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > MOST_PROCESSES * cores:
            most = f"at most {MOST_PROCESSES * cores}, since this machine has {cores} cores"
            raise ValueError(f"trainer.devices is {trainer.num_devices}; expected {most}")
        workers = getattr(self._get(self.config_init, "data"), "num_workers", 0)
        if workers > MOST_PROCESSES * cores:
            most = f"at most {MOST_PROCESSES * cores}, since this machine has {cores} cores"
            raise ValueError(f"data.num_workers is {workers}; expected {most}")
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set in one of Lightning's connectors
        callbacks[:0] = [ExactResume(), CheckEqualBatches()]
        if not any(isinstance(callback, Requeue) for callback in callbacks):
            callbacks.append(Requeue())
        callbacks.append(LambdaCallback(on_train_start=_unfinish))
        use_safe_checkpoints(trainer)
        return trainer

    @rank_zero_only
    def before_fit(self) -> None:
        """Makes the run folder, before W&B or a long download begins; a dry run has none.

        Raises:
            OSError: It cannot be written.
            FileExistsError: It has the curves of an older run that this one does not continue, or another process
                is at work in it.
        """
        config, folder = self.config["fit"], Path(os.environ[RUN])
        if config["trainer"]["fast_dev_run"]:
            return
        if (folder / "metrics.csv").exists() and not self.goes_on:
            raise FileExistsError(
                f"{display_path(folder)} has a run; continue it with --ckpt_path last, or name a folder in ${RUN}"
            )
        open_folder(folder)
        lock(folder)
        for logger in self.trainer.loggers:
            if isinstance(logger, OfflineFallbackWandbLogger):
                self._describe(logger, folder)

    def _describe(self, logger: OfflineFallbackWandbLogger, folder: Path) -> None:
        """Names the W&B run by its experiment and what differs from it."""
        root = runs_root().resolve()
        is_below = folder.resolve().is_relative_to(root)
        experiment = folder.resolve().relative_to(root).parent.as_posix() if is_below else folder.name
        settings = yaml.safe_load(self._parser("fit").dump(self.config["fit"], skip_none=False))
        monitors = [c.name for c in self.trainer.callbacks if isinstance(c, Monitor)]  # type: ignore[attr-defined]
        logger.describe(
            name=" ".join([experiment, *differing(self.args)]),
            group=experiment,
            job_type=experiment.partition("/")[0],
            tags=[*monitors, type(self.datamodule).__name__],
            config=flat(settings),
            files=[folder / "config.yaml", folder / "git.txt"],
        )

    @rank_zero_only
    def after_fit(self) -> None:
        """Mark the run as finished: its checkpoints may be looked into by other experiments.

        Raises:
            OSError: A checkpoint is missing or older than it should be, because the disk was full.
        """
        saves = self.trainer.strategy.checkpoint_io
        if isinstance(saves, SafeCheckpointIO) and saves.unsaved:
            raise OSError(f"not written: {', '.join(f'{name} ({why})' for name, why in saves.unsaved.items())}")
        if not self.config["fit"]["trainer"]["fast_dev_run"] and not self.trainer.interrupted:
            write_text(Path(os.environ[RUN], FINISHED), f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n")


class ConfigReader(NetprismCLI):
    """Lightning's command line up to the resolved config: nothing is seeded, made or run."""

    def __init__(self) -> None:
        super().__init__(["fit"])

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses nothing yet."""
        self.config = Namespace(subcommand="fit", fit=Namespace())  # type: ignore[no-untyped-call]

    def _set_seed(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        """Makes nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass

    def resolved(self, config: Path, args: list[str]) -> Namespace:
        """Returns the config of `fit`; a wrong option ends in one line."""
        # A variable still when it is resolved, as in a run's config.yaml.
        with environment(RUN, f"${{oc.env:{RUN}}}"):
            try:
                found: Namespace = self.parser.parse_args(["fit", f"--config={config}", *args]).fit
            except argparse.ArgumentError as error:
                raise argparse.ArgumentError(None, self._explain(error.message)) from error
        found["ckpt_path"] = None
        return found

    def dump(self, config: Namespace) -> str:
        """Returns a config as a run writes it."""
        return str(self._parser("fit").dump(config, skip_none=False))

    def network_key(self, experiment: str, seed: int | None = None) -> str:
        """Returns the key of the network that an experiment trains as it stands, without any option but the seed."""
        args = [] if seed is None else [f"--seed_everything={seed}"]
        config = self.resolved(EXPERIMENTS / f"{experiment}.yaml", args)
        for options in teachers_in(config):
            options["checkpoint"] = f"key:{self.network_key(options['experiment'], options.get('seed'))}"
        return network_key(yaml.safe_load(self.dump(config)))

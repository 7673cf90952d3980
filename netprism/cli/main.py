"""The command `netprism`: what can be answered without torch at once, the rest by Lightning's own command line."""

from __future__ import annotations

import argparse
import ctypes
import difflib
import os
import signal
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from netprism.cli.early import check_options, help_of
from netprism.cli.errors import UsageError, users_error
from netprism.runs.folder import RUN, choose_folder, environment, is_restart, runs_root, scheduler_id

if TYPE_CHECKING:
    from netprism.cli.lightning_cli import NetprismCLI

EXPERIMENTS = Path(__file__).parents[1] / "configs" / "experiment"
COMMANDS = ("fit", "validate", "test", "predict")
OTHERS = ("analyze", "layers", "study", "slurm", "compress", "report", "compare", "experiments")
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
STOPPED = 128 + signal.SIGINT  # what a shell expects after Ctrl-C

HELP = """\
netprism: shows what a network has learned while it learns it.

  netprism fit --config EXPERIMENT [--trainer.max_epochs 3 ...]   train, measure after every epoch
  netprism validate|test --config EXPERIMENT --ckpt_path best
  netprism study [STUDY] [--dry-run] [--jobs 2]                   many runs, one table and figure; alone: the list
  netprism slurm --config EXPERIMENT --nodes 2 --gpus 8           the same as a job of a Slurm cluster
  netprism slurm --study STUDY --gpus 1                           a job for each run, then the table
  netprism analyze --checkpoint CKPT [--data FOLDER]              every measure once on trained networks, as a page
  netprism layers NETWORK                                         its layers by name, and what can look at them
  netprism compress --checkpoint CKPT --prune 1.0 --bits 8 5      a trained network, pruned and with shared weights
  netprism report RUN                                             a run as one page; RUN: folder, glob, experiment
  netprism compare RUN RUN ...                                    several runs over one another
  netprism experiments [NAME]                                     the list below; with a name: whether there is one
  netprism --version
  netprism fit [--config EXPERIMENT] --help                       the options, of an experiment's own classes
  netprism fit --config EXPERIMENT --print_config                 every value

EXPERIMENT is a YAML file or one of
{experiments}

Examples
  netprism fit --config quickstart
  netprism fit --config quickstart --trainer.fast_dev_run true    one batch of everything, leaves no file
  netprism fit --config quickstart --trainer.devices 2 --trainer.strategy ddp
  netprism fit --config quickstart --ckpt_path last               continues the newest run

A run is a folder runs/EXPERIMENT/ID with config.yaml, git.txt, metrics.csv, checkpoints/, figures/ and wandb/.
An experiment that analyses a trained network takes the newest finished run of another one, trained first if missing.
Environment: NETPRISM_RUNS (instead of runs), NETPRISM_RUN (the folder of this run), NETPRISM_TRACEBACK=1 (where an
error came from), WANDB_API_KEY and WANDB_MODE (curves in the browser; offline without a key)."""


def main(argv: list[str] | None = None) -> None:
    """Runs the command line.

    Raises:
        SystemExit: 2 after a wrong argument, 1 after an error of the user's that was found later, 130 after Ctrl-C,
            each with one line.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # class paths of the user's own, also with the console script
    die_with_launcher()
    try:
        _dispatch(args)
    except (UsageError, argparse.ArgumentError) as error:
        _exit(2, error)
    except KeyboardInterrupt as error:
        _exit(STOPPED, error)
    except SystemExit as error:  # how Lightning ends a training after Ctrl-C, with status 1
        if isinstance(error.__context__, KeyboardInterrupt):
            raise SystemExit(STOPPED) from error
        raise
    except Exception as error:
        if "TORCHELASTIC_ERROR_FILE" in os.environ:  # torchrun prints it as the root cause, whichever rank it was
            from torch.distributed.elastic.multiprocessing.errors import get_error_handler

            get_error_handler().record_exception(error)
        meant = users_error(error)
        if meant is None or os.environ.get("NETPRISM_TRACEBACK"):
            raise
        _exit(1, meant)


def _dispatch(args: list[str]) -> None:
    command = args[0] if args else "--help"
    if command in ("--help", "-h", "help"):
        print(HELP.format(experiments=listing()))
    elif command in ("--version", "version"):
        print(f"netprism {version('netprism')}")
    elif command == "experiments":
        for name in args[1:]:
            find_config(name)
        print("" if args[1:] else listing(), end="" if args[1:] else "\n")
    elif command in COMMANDS:
        if {"--help", "-h"} & set(args) and "all" not in args:
            print(help_of(command, configs_in(args[1:]), args[1:]))
        else:
            run(command, [arg for arg in args[1:] if arg != "all" or "--help" not in args])
    elif command == "layers":
        from netprism.cli.layers import layers

        layers(args[1:])
    elif command == "analyze":
        from netprism.cli.analyze import analyze_command

        analyze_command(args[1:])
    elif command == "compress":
        from netprism.cli.compress import compress

        compress(args[1:])
    elif command in ("report", "compare"):
        from netprism.cli import report

        (report.report if command == "report" else report.compare)(args[1:])
    elif command == "study":
        from netprism.cli.study import study_command

        study_command(args[1:], run, experiments())
    elif command == "slurm":
        to_slurm(args[1:])
    else:
        raise UsageError(f"unknown command {command!r}; one of {', '.join((*COMMANDS, *OTHERS))}")


def _exit(code: int, error: BaseException) -> None:
    start = "\n" if sys.stderr.isatty() else ""  # a progress bar may have left the line open
    line = "stopped" if code == STOPPED else f"error: {' '.join(str(error).split())}"
    print(f"{start}netprism: {line}", file=sys.stderr)
    raise SystemExit(code) from error


def listing() -> str:
    """Returns one line for each experiment: its name and the first line of its file."""
    firsts = {name: path.open(encoding="utf-8").readline().strip("# \n") for name, path in experiments().items()}
    width = max(map(len, firsts))
    return "\n".join(f"  {name:{width}}  {first}" for name, first in firsts.items())


def experiments() -> dict[str, Path]:
    """Returns the experiments that come with netprism, by name."""
    files = sorted(EXPERIMENTS.rglob("*.yaml"), key=lambda file: (len(file.relative_to(EXPERIMENTS).parts), file))
    return {file.relative_to(EXPERIMENTS).with_suffix("").as_posix(): file for file in files}


def run(command: str, args: list[str]) -> NetprismCLI:
    """Finds the configs, chooses the run folder, and hands over to Lightning.

    Only `--config` and `--ckpt_path` are parsed here: they determine the folder, which the configs refer to.

    Returns:
        Lightning's command line when it is done, with its `trainer`, `model` and `datamodule`.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("-c", "--config", action="append", default=[])
    early.add_argument("--ckpt_path")
    known, rest = early.parse_known_args(args)
    configs = [find_config(name) for name in known.config]
    check_options(command, rest, configs)
    folder, ckpt = choose_folder(experiment_of(configs[0]) if configs else "unnamed", known.ckpt_path)
    if command == "fit" and ckpt and scheduler_id() and (folder / "config.yaml").is_file():
        configs = [folder / "config.yaml"]  # a requeued job keeps the teachers that it began with
    printed = any(arg.startswith("--print_config") for arg in rest)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"netprism {command}: loading torch and Lightning, some seconds", file=sys.stderr, flush=True)
    with environment(RUN, f"${{oc.env:{RUN}}}" if printed else str(folder.absolute())):  # printed, it is for any run
        from netprism.cli.lightning_cli import NetprismCLI

        return NetprismCLI(
            [command, *(f"--config={path}" for path in configs), *rest, *([f"--ckpt_path={ckpt}"] if ckpt else [])],
            goes_on=known.ckpt_path is not None
            or is_restart(),  # a run that was stopped before its first checkpoint starts from the beginning
        )


def configs_in(args: list[str]) -> list[Path]:
    """Returns the files of `--config` among arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-c", "--config", action="append", default=[])
    return [find_config(name) for name in parser.parse_known_args(args)[0].config]


def to_slurm(args: list[str]) -> None:
    """Submits a training, or the runs of a study, to Slurm; unknown options are passed on to `netprism fit`."""
    from netprism.cli.slurm import Job, parser, submit

    options, rest = parser().parse_known_args(args)
    if (options.config is None) == (options.study is None):
        raise UsageError("which training? netprism slurm --config EXPERIMENT, or --study STUDY")
    given = {key: value for key, value in vars(options).items() if key not in ("config", "study", "dry_run", "retry")}
    if options.study is not None:
        from netprism.cli.study_slurm import submit_study

        job = Job(options.study, tuple(rest), **given)
        submit_study(options.study, job, experiments(), retry=options.retry, dry_run=options.dry_run)
        return
    config = find_config(options.config)
    submit(Job(options.config, tuple(rest), **given), config, experiments(), options.dry_run)


def find_config(name: str) -> Path:
    """Returns the file `name`, or the experiment of that name.

    Raises:
        UsageError: There is neither; names those that are close, and all.
    """
    if _is_file(name):
        return _checked(Path(name))
    known = experiments()
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known) or [other for other in known if name in other]
    hint = f"close: {', '.join(close)}; " if close else ""
    raise UsageError(f"no file and no experiment {name!r}; {hint}the experiments are {', '.join(known)}")


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except OSError:  # a name that is too long for one
        return False


def _checked(config: Path) -> Path:
    """The config, if it is a mapping in UTF-8: others are refused without their text, which may be a secret."""
    import yaml

    try:
        found = yaml.safe_load(config.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UsageError(f"config {config} is no text in UTF-8 (byte {error.start})") from error
    except yaml.YAMLError:
        return config  # the parser says where
    if not isinstance(found, dict):
        kind = "empty" if found is None else f"a {type(found).__name__}"
        raise UsageError(f"config {config} is {kind}; expected a mapping of options, as --print_config prints it")
    return config


def experiment_of(config: Path) -> str:
    """Returns the experiment that a config belongs to: its own name, or that of the run whose config.yaml it is."""
    full, shipped, runs = config.resolve(), EXPERIMENTS.resolve(), runs_root().resolve()
    if full.is_relative_to(shipped):
        return full.relative_to(shipped).with_suffix("").as_posix()
    if full.name == "config.yaml" and full.is_relative_to(runs):
        return full.parents[1].relative_to(runs).as_posix()
    return config.stem


def die_with_launcher() -> None:
    """Ends this process when the one that launched it ends, where it is one of several ranks on Linux.

    Otherwise a rank whose rank 0 is killed while DDP starts would wait in the rendezvous for half an hour.
    """
    if not sys.platform.startswith("linux") or not int(os.environ.get("LOCAL_RANK", "0")) or scheduler_id():
        return
    launcher = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launcher:  # it ended before the call
        os.kill(os.getpid(), signal.SIGKILL)

"""`netprism slurm`: a training as a job of a Slurm cluster, after those of the networks that it looks into.

No torch here: a job is submitted, or shown, in a second.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from netprism.cli.config_teachers import teachers_in
from netprism.runs.folder import display_path, finished_runs, runs_root

TEMPLATE = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={tasks}
{asked}\
#SBATCH --output={log}
# Slurm signals the job this many seconds before its end: it saves, and is requeued with its log.
#SBATCH --signal=SIGUSR1@{signal}
#SBATCH --requeue
#SBATCH --open-mode=append
{exports}
{work}
"""
TRAINING = """\
# The job's id names the run folder: from the queue it comes back to that, and to the last checkpoint there.
srun --kill-on-bad-exit=1 \\
  {command}"""


class SlurmError(OSError):
    """There is no Slurm, or it refuses a job: one line."""


@dataclass(frozen=True)
class Job:
    """What is asked of Slurm for one training.

    Attributes:
        experiment: Name of an experiment, or a file.
        args: Arguments of `netprism fit`, after the config.
        nodes: Number of machines.
        gpus: Number of GPUs per node, with one process each; 0 for none.
        tasks: Number of processes per node; None: the number of GPUs, or 1.
        cpus: Number of CPUs per process; None: the cluster's default.
        time: Time limit, such as 12:00:00 or 2-0 (days-hours); None: that of the partition.
        partition: Name of the partition; None: the cluster's default.
        signal: Seconds between the warning and the end.
    """

    experiment: str
    args: tuple[str, ...] = ()
    nodes: int = 1
    gpus: int = 1
    tasks: int | None = None
    cpus: int | None = None
    time: str | None = None
    partition: str | None = None
    signal: int = 90

    def __post_init__(self) -> None:
        """Refuses numbers that Slurm would."""
        least = {"nodes": 1, "gpus": 0, "tasks": 1, "cpus": 1, "signal": 1}
        for name, low in least.items():
            if (value := getattr(self, name)) is not None and value < low:
                raise ValueError(f"{name} is {value}; expected a number >= {low}")

    def script(self, work: str | None = None, array: str | None = None) -> str:
        """The script for sbatch.

        Args:
            work: What it runs instead of the training.
            array: Numbers of the tasks of a job array, such as 0-9; `work` sees its own as $SLURM_ARRAY_TASK_ID.
        """
        asked = {
            "array": array,
            "gpus-per-node": self.gpus or None,
            "cpus-per-task": self.cpus,
            "time": self.time,
            "partition": self.partition,
        }
        fit = [sys.executable, "-m", "netprism", "fit", "--config", self.experiment, "--ckpt_path=last"]
        training = TRAINING.format(command=shlex.join([*fit, *self.shape(), *self.args]))
        return TEMPLATE.format(
            name=self.experiment,
            nodes=self.nodes,
            tasks=self.tasks_per_node,
            asked="".join(f"#SBATCH --{key}={value}\n" for key, value in asked.items() if value),
            signal=self.signal,
            # Since Slurm 22.05 srun does not take the number from the job.
            exports=f"\nexport SRUN_CPUS_PER_TASK={self.cpus} OMP_NUM_THREADS={self.cpus}\n" if self.cpus else "",
            log=runs_root() / "slurm" / ("%A_%a.out" if array else "%j.out"),
            work=work or training,
        )

    @property
    def tasks_per_node(self) -> int:
        """Number of processes on each node."""
        return self.tasks or max(1, self.gpus)

    def shape(self) -> list[str]:
        """Returns the options of `netprism fit` for these nodes and processes."""
        several = ["--trainer.strategy=ddp"] if self.nodes * self.tasks_per_node > 1 else []
        return [f"--trainer.num_nodes={self.nodes}", f"--trainer.devices={self.tasks_per_node}", *several]


def submit(job: Job, config: Path, experiments: dict[str, Path], dry_run: bool) -> None:
    """Submits a training and before it those of the networks it looks into that nobody has trained yet.

    Args:
        job: The training.
        config: Its config file.
        experiments: Files of all experiments by name.
        dry_run: Print the scripts instead.

    Raises:
        SlurmError: sbatch is not there or refuses.
    """
    ids: dict[tuple[str, int | None], str] = {}
    for teacher in missing_teachers(config, experiments):
        name, seed = teacher
        before = [ids[each] for each in missing_teachers(experiments[name], experiments)]
        args = (*_data_of(job.args), *(() if seed is None else (f"--seed_everything={seed}",)))
        one = replace(job, experiment=name, args=args, nodes=1, gpus=min(1, job.gpus), tasks=1)
        ids[teacher] = _hand_over(one, before, dry_run)
    _hand_over(job, list(ids.values()), dry_run)


def missing_teachers(config: Path, experiments: dict[str, Path]) -> list[tuple[str, int | None]]:
    """The experiments, with seeds, whose networks a config looks into without a finished run, after those they need."""
    found: dict[tuple[str, int | None], None] = {}
    for options in teachers_in(_composed(config)):
        name, seed = options["experiment"], options.get("seed")
        if not finished_runs(name, seed) and name in experiments:
            found |= dict.fromkeys([*missing_teachers(experiments[name], experiments), (name, seed)])
    return list(found)


def _composed(config: Path) -> Any:  # noqa: ANN401 - what a YAML file holds
    """A config with the files it names in place of their names."""

    def filled(node: Any) -> Any:  # noqa: ANN401
        if isinstance(node, dict):
            return {key: filled(part) for key, part in node.items()}
        if isinstance(node, list):
            return [filled(part) for part in node]
        is_file = isinstance(node, str) and node.endswith(".yaml") and (folder / node).is_file()
        return _composed(folder / node) if is_file else node

    folder = config.resolve().parent
    return filled(OmegaConf.to_container(OmegaConf.load(config)))


def _data_of(args: Sequence[str]) -> tuple[str, ...]:
    """The arguments that say where the data are, which a teacher shares."""
    joined = [f"{arg}={args[i + 1]}" if "=" not in arg else arg for i, arg in enumerate(args[:-1])] + list(args[-1:])
    return tuple(arg for arg in joined if arg.startswith(("--data.root=", "--data.init_args.root=")))


def _hand_over(job: Job, before: list[str], dry_run: bool) -> str:
    """Submits a training after the end of others, or prints it; returns its id."""
    options = [f"--dependency=afterok:{':'.join(before)}", "--kill-on-invalid-dep=yes"] if before else []
    number = sbatch(job.experiment, job.script(), options, dry_run)
    if not dry_run:
        print(f"job {number}  {job.experiment}{'  after ' + ', '.join(before) if before else ''}")
        print(f"  log  {display_path(runs_root() / 'slurm' / f'{number}.out')}")
        print(f"  run  {display_path(runs_root() / job.experiment / number)}")
    return number


def sbatch(name: str, script: str, options: Sequence[str], dry_run: bool) -> str:
    """Submits a script, or prints it; returns the job's id, the name in angle brackets where there is none.

    Raises:
        SlurmError: sbatch is not there or refuses.
    """
    command = ["sbatch", "--parsable", *options]
    if dry_run:
        print(f"# {shlex.join(command)} <<'END'", script, "END", sep="\n")
        return f"<{name}>"
    if shutil.which("sbatch") is None:
        raise SlurmError("there is no sbatch here: submit from a machine of the cluster, or look with DRY=1")
    (runs_root() / "slurm").mkdir(parents=True, exist_ok=True)  # Slurm makes no folder for a log
    result = subprocess.run(command, input=script, capture_output=True, text=True)
    if result.returncode:
        raise SlurmError(f"sbatch refused {name}: {' '.join(result.stderr.split())}")
    return result.stdout.strip().partition(";")[0]  # with several clusters their name follows


def parser() -> argparse.ArgumentParser:
    """The options of `netprism slurm`; all others go to `netprism fit`."""
    made = argparse.ArgumentParser("netprism slurm", allow_abbrev=False, exit_on_error=False, description=__doc__)
    made.add_argument("--config", "-c", metavar="EXPERIMENT", help="a name or a file")
    made.add_argument("--study", metavar="STUDY", help="a name or a file: a job for each run, then the table")
    made.add_argument("--retry", action="store_true", help="of a study: also what failed before")
    made.add_argument("--nodes", type=int, default=1, help="machines (1)")
    made.add_argument("--gpus", type=int, default=1, help="on each node, one process each; 0 for none (1)")
    made.add_argument("--tasks", type=int, help="processes on each node (as many as GPUs)")
    made.add_argument("--cpus", type=int, help="for each process (the cluster's default)")
    made.add_argument("--time", help="limit, such as 12:00:00 (the partition's)")
    made.add_argument("--partition", help="(the cluster's default)")
    made.add_argument("--signal", type=int, default=90, help="seconds between the warning and the end (90)")
    made.add_argument("--dry-run", action="store_true", help="print the script, submit nothing")
    return made

"""`netprism slurm --study`: the runs of a study as tasks of a job array, and its table when all have ended."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from netprism.cli.slurm import Job, sbatch
from netprism.cli.study import StudyError, collect, overview, plan
from netprism.runs.folder import display_path, runs_root
from netprism.studies.points import LOG, Point
from netprism.studies.study import find_study

RUNS = """\
# One run a task. A task that fails is alone in that; the table names it.
points=(
{points}
)
logs=(
{logs}
)
export WANDB_RUN_GROUP="${{WANDB_RUN_GROUP:-{group}}}"
log="${{logs[$SLURM_ARRAY_TASK_ID]}}"
mkdir -p "$(dirname "$log")"
srun --kill-on-bad-exit=1 --open-mode=append --output="$log" \\
  {command} --run "${{points[$SLURM_ARRAY_TASK_ID]}}\""""
TABLE = "srun {command}"


def submit_study(name: str, job: Job, experiments: Mapping[str, Path], retry: bool, dry_run: bool) -> None:
    """Submits what is not trained yet, and the table after it.

    Networks that runs look into are arrays of their own, before. A job waits for the end of those before it, however
    they end: a run whose network failed says so, and the others go on.

    Args:
        name: Name of the study, or its file.
        job: What each run gets, whatever its experiment; its `args` are options of `netprism fit` for all.
        experiments: Files of all experiments by name.
        retry: Also what failed before.
        dry_run: Print the scripts instead.

    Raises:
        SlurmError: sbatch is not there or refuses.
        StudyError: The study waits for something.
    """
    study = find_study(name)
    if study.waits_for:
        raise StudyError(f"{study.name} waits for {study.waits_for}")
    # Those of one process are the runs of `make study`, and of other studies.
    args = [*job.args, *(job.shape() if job.nodes * job.tasks_per_node > 1 else [])]
    points = plan(study, experiments, args)
    print(*overview(points), sep="\n")
    folder = Path("studies", study.name, "runs")
    before: list[str] = []
    for array in arrays(points, retry):
        files = [folder / f"{point.key}.json" if dry_run else _written(point, folder) for point in array]
        before.append(_hand_over(replace(job, experiment=study.name), array, files, before, dry_run))
    if not before:
        if not dry_run:
            collect(study, points)
        return
    table = [sys.executable, "-m", "netprism", "study", name, "--table", *args]
    alone = replace(job, experiment=f"{study.name}-table", nodes=1, gpus=0, tasks=1)
    script = alone.script(TABLE.format(command=shlex.join(table)))
    number = sbatch(alone.experiment, script, _after(before), dry_run)
    if not dry_run:
        print(f"job {number}  its table, after {', '.join(before)}")
        print(f"  log   {display_path(runs_root() / 'slurm' / f'{number}.out')}")
        print(f"  page  {display_path(Path('studies', study.name, 'study.md'))}")


def arrays(points: Sequence[Point], retry: bool) -> list[list[Point]]:
    """Returns the runs that are to be trained, in arrays one after the other: networks before what looks into them."""
    wanted = ("missing", "stopped", "failed") if retry else ("missing", "stopped")
    left = [point for point in points if point.state() in wanted]
    found: list[list[Point]] = []
    while left:
        coming = {point.folder for point in left}
        now: dict[Path, Point] = {}  # two measurements of one run come one after the other
        for point in left:
            if not coming.intersection(point.needs):
                now.setdefault(point.folder, point)
        found.append(list(now.values()))
        left = [point for point in left if now.get(point.folder) is not point]
    return found


def _written(point: Point, folder: Path) -> Path:
    point.forget()
    return point.write(folder)


def _hand_over(job: Job, array: Sequence[Point], files: Sequence[Path], before: Sequence[str], dry_run: bool) -> str:
    """Submits an array of runs, or prints it; returns its id."""
    command = shlex.join([sys.executable, "-m", "netprism", "study"])
    logs = [point.folder / LOG for point in array]
    listed = ["\n".join(f"  {shlex.quote(str(path))}" for path in paths) for paths in (files, logs)]
    work = RUNS.format(points=listed[0], logs=listed[1], command=command, group=job.experiment)
    number = sbatch(job.experiment, job.script(work, array=f"0-{len(array) - 1}"), _after(before), dry_run)
    if not dry_run:
        print(f"job {number}  {len(array)} runs{'  after ' + ', '.join(before) if before else ''}")
        print(f"  logs  {display_path(runs_root())}/EXPERIMENT/KEY/{LOG}")
    return number


def _after(before: Sequence[str]) -> list[str]:
    return [f"--dependency=afterany:{':'.join(before)}"] if before else []

"""`netprism study`: a grid of runs, then its table, its figure and its page."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from netprism.cli.study_run import Fit, fork_point, run_point
from netprism.files import write_table, write_text
from netprism.runs.folder import display_path
from netprism.studies.claims import check
from netprism.studies.grid import short, text
from netprism.studies.page import page
from netprism.studies.points import LOG, Point
from netprism.studies.study import Study, find_study, listing
from netprism.studies.table import Rows, markdown, summarise, with_spreads
from netprism.studies.values import Record, records

POLL = 0.05  # seconds between two looks at the runs at work


class StudyError(ValueError):
    """Runs failed: one line."""


def study_command(args: list[str], fit: Fit, experiments: Mapping[str, Path]) -> None:
    """Runs the command.

    Args:
        args: Its arguments.
        fit: Trains: command and arguments.
        experiments: Files of all experiments by name.

    Raises:
        StudyError: A run failed; the table has the others.
    """
    options, rest = parser().parse_known_args(args)
    if options.run is not None:
        run_point(options.run, fit)
        return
    if options.study is None:
        print(listing())
        return
    study = find_study(options.study)
    if study.waits_for:
        raise StudyError(f"{study.name} waits for {study.waits_for}")
    points = plan(study, experiments, rest)
    for line in overview(points):
        print(line)
    if options.dry_run:
        for point in points:
            print(f"  {point.state():8} {display_path(point.folder)}  {text(point.setting)}")
        return
    if options.retry:
        for point in points:
            point.forget()
    if not options.table:
        Pool(study, points, fit, options.jobs).run()
    collect(study, points)
    failed = [point for point in points if point.state() == "failed"]
    for point in failed:
        print(f"  failed   {text(point.setting)}: {point.reason()}\n           {display_path(point.folder / LOG)}")
    unfinished = [point for point in points if point.state() in ("missing", "stopped")]
    for point in unfinished:  # of jobs of a cluster that were killed, or are not over yet
        print(f"  {point.state():8} {text(point.setting)}\n           {display_path(point.folder / LOG)}")
    if failed:
        raise StudyError(
            f"{len(failed)} of {len(points)} runs failed, RETRY=1 tries them again; the table has the rest"
        )
    if unfinished:
        raise StudyError(f"{len(unfinished)} of {len(points)} runs are not finished; the table has the rest")


def plan(study: Study, experiments: Mapping[str, Path], args: list[str]) -> list[Point]:
    """Returns the runs of a study: networks to look into first. Loads torch where something is to be trained."""
    print(f"netprism study {study.name}: loading torch and Lightning, some seconds", file=sys.stderr, flush=True)
    from netprism.cli.study_configs import Planner

    return Planner(experiments, args).plan(study)


def overview(points: Sequence[Point]) -> list[str]:
    """Returns how many runs there are in which state, and how long the missing ones take."""
    states = [point.state() for point in points]
    counts = ", ".join(f"{states.count(state)} {state}" for state in ("done", "failed", "stopped", "missing"))
    known = [seconds for point in points if point.done and (seconds := point.seconds()) is not None]
    left = states.count("missing") + states.count("stopped")
    line = f"{len(points)} runs: {counts}"
    if left and known:
        line += f"; about {duration(left * sum(known) / len(known))} to go, one at a time"
    return [line]


def duration(seconds: float) -> str:
    """Returns a duration as people say it: 40 s, 12 min, 3.5 h."""
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


class Pool:
    """Runs what is missing, some at a time, in forks of this process.

    Args:
        study: The study.
        points: Its runs, those that others need first.
        fit: Trains.
        jobs: Number of runs at a time.
    """

    def __init__(self, study: Study, points: Sequence[Point], fit: Fit, jobs: int) -> None:
        if jobs < 1:
            raise ValueError(f"jobs is {jobs}; expected a number >= 1")
        self.study, self.fit, self.jobs, self.all = study, fit, jobs, points
        self.waiting = [point for point in points if point.state() in ("missing", "stopped")]
        self.total, self.ended = len(self.waiting), 0
        self.working: dict[int, tuple[Point, int, float]] = {}  # by the id of the process: run, slot, begin
        self.gpus = _gpus() if jobs > 1 else []

    def run(self) -> None:
        """Runs them; asks those at work to save and stop when this process is to stop."""
        if not self.waiting:
            return
        os.environ.setdefault("WANDB_RUN_GROUP", self.study.name)
        if self.jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
            os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // self.jobs))
        before = signal.signal(signal.SIGTERM, _interrupt)
        try:
            while self.waiting or self.working:
                self._start()
                self._reap()
        except KeyboardInterrupt:
            print(f"\nstopping {len(self.working)} runs, which save first", flush=True)
            for child in self.working:
                os.kill(child, signal.SIGTERM)
            while self.working:
                self._reap()
            raise
        finally:
            signal.signal(signal.SIGTERM, before)

    def _start(self) -> None:
        at_work = {point.folder for point, _, _ in self.working.values()}
        coming = at_work | {point.folder for point in self.waiting}
        for point in list(self.waiting):
            if len(self.working) >= self.jobs:
                return
            if any(folder in coming for folder in point.needs) or point.folder in at_work:
                continue
            self.waiting.remove(point)
            if point.reason() is not None or point.done:  # its network failed, or another study has trained it
                self._say(point, 0.0)
                continue
            file = point.write(Path("studies", self.study.name, "runs"))
            slot = min(set(range(self.jobs)) - {used for _, used, _ in self.working.values()})
            gpu = self.gpus[slot % len(self.gpus)] if self.gpus else None
            child = fork_point(file, point, self.fit, gpu)
            self.working[child] = (point, slot, time.monotonic())
            at_work.add(point.folder)

    def _reap(self) -> None:
        for child in list(self.working):
            ended, status = os.waitpid(child, os.WNOHANG)
            if not ended:
                continue
            point, _, begin = self.working.pop(child)
            code = os.waitstatus_to_exitcode(status)
            if code < 0 and not point.done:
                name = signal.Signals(-code).name
                why = f"killed by {name}" + (", out of memory?" if name == "SIGKILL" else "")
                write_text(point.failure, why + "\n")
            elif code and point.state() == "missing":
                write_text(point.failure, f"ended with status {code}\n")
            self._say(point, time.monotonic() - begin)
        time.sleep(POLL)

    def _say(self, point: Point, seconds: float) -> None:
        self.ended += 1
        state = point.state()
        why = f": {point.reason()}" if state == "failed" else ""
        print(f"[{self.ended}/{self.total}] {text(point.setting)}: {state}, {duration(seconds)}{why}", flush=True)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _gpus() -> list[str]:
    """The GPUs that runs side by side share; none where there is one at most. CUDA is not touched before the forks."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        found = [name for name in given.split(",") if name]
    else:
        import torch

        found = [str(number) for number in range(torch.cuda.device_count())]
    return found if len(found) > 1 else []


def collect(study: Study, points: Sequence[Point]) -> Path:
    """Writes table, figure and page of the runs that are done; returns the folder."""
    folder = Path("studies", study.name)
    own = own_points(study, points)
    found = gather(study, own)
    by, quantities = study.grouped(), list(study.read)
    table = ""
    figures: list[str] = []
    further: dict[str, str] = {}
    if found:
        rows = summarise(found, by, quantities)
        table = markdown(rows, by, quantities, study.label)
        write_table(folder / "runs.csv", [{key: _cell(value) for key, value in row.items()} for row in found])
        write_table(folder / "table.csv", [{key: _cell(value) for key, value in row.items()} for row in rows])
        write_text(folder / "table.md", table)
        figures = draw(study, own, found, folder)
        further = tabulate(study, found, folder)
    verdicts = [check(claim, found) for claim in study.claims] if found else []
    write_text(folder / "study.md", page(study, points, verdicts, table, figures, further))
    print(
        "",
        table,
        *further.values(),
        *(f"{verdict.says}: {verdict} ({verdict.measured})" for verdict in verdicts),
        "",
        sep="\n",
    )
    print(f"page    {display_path(folder / 'study.md')}\ntable   {display_path(folder / 'table.csv')}")
    for name in figures:
        print(f"figure  {display_path(folder / name)}")
    return folder


def own_points(study: Study, points: Sequence[Point]) -> list[Point]:
    """Returns the runs that the table is about, without the networks that they look into."""
    settings = study.settings()
    return list(points)[len(points) - len(settings) :]


def gather(study: Study, points: Sequence[Point]) -> list[Record]:
    """Returns the records of all runs that are done, with the setting of each."""
    base = {"experiment": study.experiment} if study.experiment else {}
    found: list[Record] = []
    for point in points:
        if point.done:
            measured = point.result if point.measure else None
            own = {key: short(value) if isinstance(value, dict) else value for key, value in point.setting.items()}
            found += [{**base, **own, **row} for row in records(point.folder, measured, study.read, study.per)]
    keys = dict.fromkeys(key for record in found for key in record)
    return [{key: record.get(key, "") for key in keys} for record in found]


def draw(study: Study, points: Sequence[Point], found: Sequence[Record], folder: Path) -> list[str]:
    """Draws the figures as PNG and PDF; returns the names of the PNG files."""
    from netprism.figures._common import write_whole
    from netprism.figures.study import study_figure

    figures: dict[str, Any] = {}
    if study.figure:
        figures["figure"] = study_figure(found, study.figure, study.label)
    if study.draw:
        figures |= _function(study.draw)(found, [point.folder for point in points if point.done])
    for name, figure in figures.items():
        for suffix in (".png", ".pdf"):
            write_whole(folder / f"{name}{suffix}", partial(figure.savefig, dpi=150))
    return [f"{name}.png" for name in figures]


def tabulate(study: Study, found: Sequence[Record], folder: Path) -> dict[str, str]:
    """Writes the further tables, `<name>.csv`; returns them as Markdown by their names."""
    tables: Mapping[str, Rows] = _function(study.tabulate)(found) if study.tabulate else {}
    for name, rows in tables.items():
        write_table(folder / f"{name}.csv", [{key: _cell(value) for key, value in row.items()} for row in rows])
    return {name: with_spreads(rows) for name, rows in tables.items()}


def _function(name: str) -> Callable[..., Mapping[str, Any]]:
    module, _, attribute = name.rpartition(".")
    function: Callable[..., Mapping[str, Any]] = getattr(importlib.import_module(module), attribute)
    return function


def _cell(value: object) -> object:
    return repr(value) if isinstance(value, float) else short(value)


def parser() -> argparse.ArgumentParser:
    """The options of `netprism study`; all others go to `netprism fit`, for all runs."""
    made = argparse.ArgumentParser("netprism study", allow_abbrev=False, exit_on_error=False, description=__doc__)
    made.add_argument("study", nargs="?", metavar="STUDY", help="a name or a file; nothing: the list")
    made.add_argument("--jobs", type=int, default=1, help="runs at a time (1)")
    made.add_argument("--dry-run", action="store_true", help="show the runs, train nothing")
    made.add_argument("--retry", action="store_true", help="try again what failed")
    made.add_argument(
        "--table", action="store_true", help="train nothing, write table, figure and page of what is done"
    )
    made.add_argument("--run", type=Path, help=argparse.SUPPRESS)  # one run, in a process of its own
    return made

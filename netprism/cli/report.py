"""The commands `netprism report` and `netprism compare`: runs as pages. They load no torch."""

from __future__ import annotations

import argparse
from pathlib import Path

from netprism.runs.folder import display_path


def report(args: list[str]) -> Path:
    """Runs `netprism report` and returns the last page.

    Raises:
        argparse.ArgumentError: An argument is wrong.
        FileNotFoundError: There is no such run.
    """
    parser = _parser("report", "Writes runs as pages, report.html in each folder: one file that needs no network.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder, a glob, or an experiment")
    options = parser.parse_args(args)
    from netprism.report import find_runs, write_report

    for run in find_runs(options.runs):
        path = write_report(run.folder)
        print(f"report       {display_path(path)}")
    return path


def compare(args: list[str]) -> Path:
    """Runs `netprism compare` and returns the page.

    Raises:
        argparse.ArgumentError: An argument is wrong.
        FileNotFoundError: There is no such run.
        ValueError: There are fewer than two runs, or they have nothing in common.
    """
    parser = _parser("compare", "Writes one page with the curves of several runs over one another.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, globs, or experiments: all their runs")
    parser.add_argument("--out", type=Path, default=Path("compare.html"), help="the page (compare.html)")
    options = parser.parse_args(args)
    from netprism.report import find_runs, write_comparison

    path = write_comparison(find_runs(options.runs), options.out)
    print(f"comparison   {display_path(path)}")
    return path


def _parser(command: str, text: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"netprism {command}", description=text, exit_on_error=False, allow_abbrev=False
    )

"""The page of a study: what was asked, how many runs, what came out, what the paper says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from netprism.runs.folder import display_path
from netprism.studies.claims import Verdict
from netprism.studies.grid import text
from netprism.studies.points import Point
from netprism.studies.study import Study


def page(
    study: Study,
    points: Sequence[Point],
    verdicts: Sequence[Verdict],
    table: str,
    figures: Sequence[str],
    further: Mapping[str, str],
) -> str:
    """Returns `study.md`.

    Args:
        study: The study.
        points: Its runs.
        verdicts: The paper's findings, checked.
        table: The Markdown table.
        figures: Names of the pictures beside the page.
        further: Other Markdown tables, by their names.
    """
    done = [point for point in points if point.done]
    parts = [f"# {study.title}", study.asks]
    seeds = len({setting["seed"] for setting in study.settings()})  # networks may have seeds of their own
    trained = [point for point in points if point.config is not None]
    parts.append(
        f"`make study STUDY={study.name}`: {len(done)} of {len(points)} runs, {seeds} seed{'s' * (seeds != 1)}"
        + (f", of {', '.join(sorted({point.experiment or '' for point in trained}))}" if trained else "")
        + f". Time for all: {study.time}."
    )
    if study.paper:
        parts.append(f"## The paper\n\n{study.paper}\n\n{study.found}")
    if verdicts:
        lines = ["| the paper | here | verdict |", "| --- | --- | --- |"]
        lines += [f"| {verdict.says} | {verdict.measured} | {verdict} |" for verdict in verdicts]
        parts.append("## What came out\n\n" + "\n".join(lines))
        parts.append("Mean ± standard deviation over the seeds; a seed confirms a statement or does not.")
    for name in figures:
        parts.append(f"![{study.title}]({name})")
    if study.caption and figures:
        parts.append(study.caption)
    for name, other in further.items():
        parts.append(f"## {study.label(name).capitalize()}\n\n{other}")
    parts.append(f"## The numbers\n\n{table or 'No run is finished.'}")
    if failed := [point for point in points if point.state() == "failed"]:
        lines = [f"- {text(point.setting)}: {point.reason()} (`{display_path(point.folder)}`)" for point in failed]
        parts.append("## Runs that failed\n\n" + "\n".join(lines))
    if waiting := [point for point in points if point.state() in ("missing", "stopped")]:
        lines = [f"- {text(point.setting)}: {point.state()}" for point in waiting]
        parts.append("## Runs that are not finished\n\n" + "\n".join(lines))
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"

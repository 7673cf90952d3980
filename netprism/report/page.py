"""The page of a run."""

from __future__ import annotations

import json
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from netprism.files import write_text
from netprism.report.advice import warnings
from netprism.report.charts import charts_of, turnable
from netprism.report.pictures import pictures_of
from netprism.report.run import Run
from netprism.report.words import headlines, meaning

_LARGEST = 700_000  # bytes of one three-dimensional figure; larger ones stay in the folder
_SHORT = ("model", "model.net", "model.net.depth", "model.optimizer", "model.optimizer.lr", "data", "data.batch_size",
          "trainer.max_epochs", "seed_everything")  # fmt: skip


def write_report(folder: Path, path: Path | None = None, ended: bool | None = None) -> Path:
    """Writes the page of a run, whole or not at all: one file that needs no network.

    Args:
        folder: Run folder, also of a run that died.
        path: Path of the page; None for `report.html` in the folder.
        ended: Whether the training has ended well; None for what the folder says.

    Raises:
        FileNotFoundError: There is no run in the folder.
    """
    run = Run(folder)
    if not (folder / "metrics.csv").is_file() and not run.config:
        raise FileNotFoundError(f"run is '{folder}'; expected a folder with metrics.csv")
    sections = charts_of(run)
    if turned := turnable_figures(folder / "figures"):
        sections["in three dimensions"] = turned
    path = path or folder / "report.html"
    write_text(
        path,
        render(
            "run.html",
            title=run.name,
            run=run,
            ended=run.is_finished if ended is None else ended,
            headline=_headline(run),
            warnings=warnings(run, ended),
            short={key: run.settings[key] for key in _SHORT if key in run.settings},
            charts=sections,
            pictures=pictures_of(folder),
        ),
    )
    return path


def render(template: str, **values: Any) -> str:
    """Returns a page of `templates/`, with plotly in it."""
    charts = values.pop("charts")
    numbered = [chart for group in charts.values() for chart in group]
    return _environment().get_template(template).render(
        charts={name: [(numbered.index(chart), chart) for chart in group] for name, group in charts.items()},
        data=_script_safe([{key: chart[key] for key in ("data", "layout", "frames", "title")} for chart in numbered]),
        plotly=_plotly(),
        **values,
    )  # fmt: skip


def number(value: float | None) -> str:
    """Returns a number for people: four digits, and a dash where there is none."""
    return "–" if value is None else "NaN" if math.isnan(value) else f"{value:.4g}"


def _headline(run: Run) -> list[dict[str, Any]]:
    rows = []
    for key in headlines(list(run.curves)):
        series = run.curves[key]
        trained = [epoch for epoch in series if epoch >= 0]
        first, last = next(iter(series)), (trained or list(series))[-1]
        rows.append(
            {
                "key": key,
                "unit": meaning(key).unit,
                "text": meaning(key).text,
                "first": series[first],
                "first_epoch": "untrained" if first < 0 else f"epoch {first}",
                "last": series[last],
                "last_epoch": "untrained" if last < 0 else f"epoch {last}",
            }
        )
    return rows


def turnable_figures(folder: Path) -> list[dict[str, Any]]:
    """Returns the three-dimensional figures in the pages of a folder, at most six."""
    found = []
    for page in sorted(folder.glob("*.html")):
        if page.stat().st_size <= _LARGEST:
            try:
                chart = turnable(page.read_text(encoding="utf-8", errors="replace"), page.stem.replace("_", " "))
            except (ValueError, IndexError):  # half a file of a run that died
                continue
            found += [chart] if chart else []
    return found[:6]


def _script_safe(value: object) -> str:
    """JSON that cannot end the script it stands in."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return re.sub(r"</(?=script)", r"<\\/", str(get_plotlyjs()))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("netprism.report"), autoescape=select_autoescape(), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["number"] = number
    return environment

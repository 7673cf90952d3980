"""A study file: which runs, what is read from them, what the paper found.

Neither torch nor Lightning, so that `make study` lists all of them at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from netprism.studies.grid import Setting, expand

STUDIES = Path(__file__).parents[1] / "configs" / "study"
DIMENSIONS = ("epoch", "layer")


@dataclass(frozen=True)
class Study:
    """A grid of runs with a question.

    Attributes:
        name: Name of the study, which is that of its folder below `studies/`.
        title: What it shows, the first line of its file.
        paper: Authors, year, figures or tables, link.
        asks: The question, for the page.
        found: What the paper found.
        time: How long all its runs take, on what machine; measured.
        waits_for: What is missing before it can run; it is listed, and refused.
        experiment: The experiment that all runs start from; the grid may name another one per run.
        overrides: Options of `netprism fit` that all runs share.
        grid: {option: values}; every combination is a run.
        zip: {option: values}, of one length; the values of one position belong together.
        runs: Settings that are listed one by one; each is combined with the grid.
        seeds: Number of seeds from 0 up, or a list of them.
        seed_options: Options that a seed is given to, besides `seed_everything` and that of the analysed networks.
        measure: Function of a finished run, as a dotted name: `f(run: Path, **arguments) -> rows`. Without an
            experiment it is the run: nothing is trained.
        arguments: Its arguments; `measure.NAME` in the grid varies one.
        read: {quantity: column of metrics.csv}; see `netprism.studies.values`.
        per: What a row of a run is of: `epoch`, `layer`, or columns of the measured rows; nothing: the whole run.
        group: Options that the table has a row for; None: all that vary. Mean and spread are over the others.
        labels: {option or quantity: words with a unit}, for table and figure.
        claims: What the paper found, as statements to check; see `netprism.studies.claims`.
        figure: Panels of the figure; see `netprism.figures.study`.
        draw: Function of the records and the folders of the runs that draws further figures, as a dotted name.
        tabulate: Function of the records that makes further tables, {name: rows}, as a dotted name.
        caption: Text below the figure.
    """

    name: str
    title: str
    paper: str = ""
    asks: str = ""
    found: str = ""
    time: str = "not measured"
    waits_for: str = ""
    experiment: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, list[Any]] = field(default_factory=dict)
    zip: Mapping[str, list[Any]] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)
    seeds: int | list[int] = 1
    seed_options: list[str] = field(default_factory=list)
    measure: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    read: Mapping[str, Any] = field(default_factory=dict)
    per: list[str] = field(default_factory=list)
    group: list[str] | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    claims: list[dict[str, Any]] = field(default_factory=list)
    figure: list[dict[str, Any]] = field(default_factory=list)
    draw: str | None = None
    tabulate: str | None = None
    caption: str = ""

    def settings(self) -> list[Setting]:
        """Returns the runs of the grid, in its order.

        Raises:
            ValueError: The grid is empty or contradicts itself.
        """
        if self.waits_for:
            return []
        found = expand(self.grid, self.zip, self.runs, self.seeds)
        for setting in found:
            if not (setting.get("experiment", self.experiment) or self.measure):
                raise ValueError(f"{self.name}: a run has no experiment; expected `experiment` or `measure`")
        return found

    def label(self, name: str) -> str:
        """Returns the words for an option or a quantity."""
        return str(self.labels.get(name, name))

    def grouped(self) -> list[str]:
        """Returns the columns that a row of the table is of."""
        varied = dict.fromkeys(key for setting in self.settings() for key in setting if key != "seed")
        return [*(self.group if self.group is not None else varied), *self.per]


def read_study(path: Path, name: str) -> Study:
    """Reads a study file; `extends` takes what it does not say from another one, a file relative to it or a name.

    Raises:
        ValueError: It is no study: unreadable, without runs or quantities, or with a key that means nothing.
    """
    given = _merged(path)
    known = [one.name for one in fields(Study) if one.name not in ("name", "title")]
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, 1)
            hint = f", close: {close[0]}" if close else ""
            raise ValueError(f"{path}: key is {key!r}; expected one of {', '.join(known)}{hint}")
    for one in fields(Study):
        wanted = {"Mapping": dict, "list": list, "str": str}.get(str(one.type).split("[")[0].split(" ")[0])
        value = given.get(one.name)
        if wanted and value is not None and not isinstance(value, wanted):
            raise ValueError(f"{path}: {one.name} is {value!r}; expected a {wanted.__name__}")
    study = Study(name, title_of(path), **given)
    if not study.waits_for:
        study.settings()
        if not study.read:
            raise ValueError(f"{path}: read is empty; expected quantities, such as accuracy: val/accuracy")
    return study


def _merged(path: Path) -> dict[str, Any]:
    try:
        loaded = OmegaConf.load(path)
        given = OmegaConf.to_container(loaded, resolve=True)
    except (OmegaConfBaseException, YAMLError, OSError) as error:
        raise ValueError(f"{path} is no study file: {' '.join(str(error).split())}") from error
    if not isinstance(given, dict):
        raise ValueError(f"{path} is no study file: it has no keys")
    base = given.pop("extends", None)
    if base is None:
        return {str(key): value for key, value in given.items()}
    beside, named = path.parent / f"{base}", STUDIES / f"{base}.yaml"
    return {
        **_merged(named if named.is_file() and not beside.is_file() else beside),
        **{str(key): value for key, value in given.items()},
    }


def title_of(path: Path) -> str:
    """Returns the first line of a study file, which says what it shows."""
    with path.open(encoding="utf-8") as file:
        line = file.readline()
    return line.strip("# \n") if line.startswith("#") else path.stem


def shipped() -> dict[str, Path]:
    """Returns the studies that come with netprism, by name."""
    return {file.relative_to(STUDIES).with_suffix("").as_posix(): file for file in sorted(STUDIES.rglob("*.yaml"))}


def find_study(name: str) -> Study:
    """Returns the study of that name, or that of a file.

    Raises:
        FileNotFoundError: There is neither; names those that are close.
        ValueError: It is no study.
    """
    known = shipped()
    if name in known:
        return read_study(known[name], name)
    path = Path(name)
    if path.is_file():
        inside = path.resolve().is_relative_to(STUDIES.resolve())
        return read_study(
            path, path.resolve().relative_to(STUDIES.resolve()).with_suffix("").as_posix() if inside else path.stem
        )
    close = difflib.get_close_matches(name, known) or [other for other in known if name in other] or list(known)
    raise FileNotFoundError(f"no file and no study {name!r}; close: {', '.join(close)}")


def listing() -> str:
    """Returns two lines for each study that comes with netprism: what it shows; the paper, its runs and their time."""
    lines = []
    for name, path in shipped().items():
        study = read_study(path, name)
        runs = f"{len(study.settings())} runs, {study.time}" if not study.waits_for else f"waits for {study.waits_for}"
        lines += [f"  {name}  {study.title}", f"      {study.paper.partition(', http')[0]}; {runs}"]
    return "\n".join(lines)

"""What was found in trained networks: as a table, a figure, and a folder with a page."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from netprism.analysis.pictures import draw
from netprism.callbacks import InformationDiscarding
from netprism.callbacks._monitor import Monitor
from netprism.figures._common import save
from netprism.files import csv_text, write_text
from netprism.plots import layer_profiles
from netprism.report.analysis import write_analysis
from netprism.report.words import meaning, split_key

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PROFILED = (
    "gates/entropy", "gates/class_information", "discarding/SID", "discarding/RU", "discarding/concentration",
    "knowledge/points", "knowledge/reliable", "knowledge/ratio", "components/significance", "components/accuracy",
)  # fmt: skip
PER_IMAGE = ("SID", "error", "ratio", "unseen", "concentration", "RU")


@dataclass(frozen=True)
class Analysis:
    """The numbers of trained networks.

    Attributes:
        values: {network: {key: value}}, with the keys that the monitors log in a training.
        monitors: {network: monitors that have measured}.
        notes: What was left out, and why.
        names: Names of the images in the order of the data set, or None.
    """

    values: dict[str, dict[str, float]]
    monitors: dict[str, list[Monitor]] = field(repr=False)
    notes: list[str] = field(default_factory=list)
    names: list[str] | None = field(default=None, repr=False)

    def table(self) -> list[dict[str, Any]]:
        """Returns one row per number: network, quantity, layer (or order), value, unit.

        `pandas.DataFrame(result.table())` makes a data frame of it.
        """
        return [
            {"network": name, "quantity": quantity, "layer": layer, "value": value, "unit": meaning(key).unit}
            for name, values in self.values.items()
            for key, value in values.items()
            for quantity, layer in [split_key(key)]
        ]

    def per_image(self) -> list[dict[str, Any]]:
        """Returns one row per image and layer of discarding; concentration where the objects are known.

        The columns are network, image, layer, SID and its error (nats), ratio (1: the constraint holds), unseen
        (fraction of the pixels that the layer does not see), concentration and RU (nats).
        """
        rows = []
        for name, monitors in self.monitors.items():
            for monitor in monitors:
                if isinstance(monitor, InformationDiscarding):
                    rows += [{"network": name, **row} for row in _rows(monitor, self.names)]
        return rows

    def plot(self) -> tuple[Figure, list[Axes]]:
        """Returns a figure with one panel per quantity that layers have, and its panels: a line per network."""
        return layer_profiles(self._profiles())

    def save(self, folder: str | Path, title: str = "", about: dict[str, Any] | None = None) -> Path:
        """Writes numbers, pictures and the page `report.html` into a folder; returns the page.

        The folder gets `analysis.csv`, `per_image.csv` where there was discarding, `figures/`, `maps/`, `tables/`.

        Args:
            folder: The folder; it is made.
            title: Title of the page.
            about: What the page says first, such as where the images are from.
        """
        folder = Path(folder)
        _write_table(self.table(), folder / "analysis.csv")
        if rows := self.per_image():
            _write_table(sorted(rows, key=lambda row: (row["network"], row["image"])), folder / "per_image.csv")
        if profiles := self._profiles():
            save(layer_profiles(profiles)[0], folder / "figures" / "layers.png")
        draw({_slug(name): monitors for name, monitors in self.monitors.items()}, folder)
        return write_analysis(folder, self.values, title or ", ".join(self.values), about or {}, self.notes)

    def __str__(self) -> str:
        """The numbers of whole networks, and those of layers that are not gates."""
        keys = dict.fromkeys(key for values in self.values.values() for key in values)
        shown = [key for key in keys if not split_key(key)[1] or not key.startswith("gates/")]
        width, cell = max(map(len, shown), default=0), max(12, *(len(name) + 2 for name in self.values))
        lines = [" " * width + "".join(f"{name:>{cell}}" for name in self.values)]
        for key in shown:
            cells = [values.get(key) for values in self.values.values()]
            text = "".join(f"{'-' if value is None else f'{value:.4g}':>{cell}}" for value in cells)
            lines.append(f"{key:{width}}{text}  {meaning(key).unit}".rstrip())
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def _profiles(self) -> dict[str, dict[str, dict[str, list[float]]]]:
        found: dict[str, dict[str, dict[str, list[float]]]] = {}
        images: dict[tuple[str, str, str], list[float]] = {}
        for row in self.per_image():
            for quantity in PER_IMAGE:
                if quantity in row:
                    images.setdefault((row["network"], f"discarding/{quantity}", row["layer"]), []).append(
                        row[quantity]
                    )
        for row in self.table():
            quantity, layer, network = row["quantity"], row["layer"], row["network"]
            if quantity in PROFILED and layer:
                unit = f", {row['unit']}" if row["unit"] else ""
                values = images.get((network, quantity, layer), [row["value"]])
                found.setdefault(f"{quantity}{unit}", {}).setdefault(network, {})[layer] = values
        return found


def beside(*analyses: Analysis) -> Analysis:
    """Returns several analyses as one, their networks side by side.

    Raises:
        ValueError: Two networks have one name.
    """
    names = [name for each in analyses for name in each.values]
    if len(set(names)) < len(names):
        raise ValueError(f"names of networks are {', '.join(names)}; expected different ones")
    return Analysis(
        {name: values for each in analyses for name, values in each.values.items()},
        {name: monitors for each in analyses for name, monitors in each.monitors.items()},
        [note for each in analyses for note in each.notes],
        analyses[0].names,
    )


def _rows(monitor: InformationDiscarding, names: list[str] | None) -> Iterator[dict[str, Any]]:
    layers = [key.removeprefix("SID/") for key in monitor.images if key.startswith("SID/")]
    for i, index in enumerate(monitor.indices):
        for layer in layers:
            found = {q: monitor.images[f"{q}/{layer}"] for q in PER_IMAGE if f"{q}/{layer}" in monitor.images}
            numbers = {quantity: float(values[i]) for quantity, values in found.items() if not _is_empty(values)}
            yield {"image": index if names is None else names[index], "layer": layer, **numbers}


def _is_empty(values: torch.Tensor) -> bool:
    return bool(values.isnan().all())


def _write_table(rows: list[dict[str, Any]], path: Path) -> None:
    def cell(value: object) -> object:
        return ("" if math.isnan(value) else f"{value:.6g}") if isinstance(value, float) else value

    columns = dict.fromkeys(key for row in rows for key in row)
    write_text(path, csv_text([{key: cell(row.get(key)) for key in columns} for row in rows], list(columns)))


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)

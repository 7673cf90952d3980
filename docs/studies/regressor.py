"""How well do accuracy and loss follow from reliable and unreliable components? The table of docs/reliability.md.

    python docs/studies/regressor.py TABLE.csv [FIGURE.png]

The table has a row for each network and order, as `netprism.components.component_ratios` reads them, and the columns
model, train_samples, test_accuracy (per cent) and test_loss. Takes 17 s on one core of an AMD EPYC.
"""

from __future__ import annotations

import csv
import sys
from itertools import groupby
from pathlib import Path

import numpy as np

from netprism.components.regressor import component_ratios, cross_validate, fit_plane
from netprism.figures._common import save
from netprism.figures.regressor import regression_plane


def main(table: str, picture: str | None = None) -> None:
    """Prints the errors of four regressions for accuracy and loss; draws the plane of the accuracy."""
    with open(table) as file:
        rows = list(csv.DictReader(file))
    networks = [list(group) for _, group in groupby(rows, key=lambda row: (row["model"], row["train_samples"]))]
    ratios = np.array([component_ratios(network) for network in networks])
    samples = np.log([[float(network[0]["train_samples"])] for network in networks])
    numbers = {
        "8 numbers": ratios,
        "4 reliable": ratios[:, :4],
        "4 unreliable": ratios[:, 4:],
        "log training samples": samples,
        "none: the mean": np.zeros_like(samples),
    }
    for column, unit in (("test_accuracy", "points"), ("test_loss", "nats")):
        performance = np.array([float(network[0][column]) for network in networks])
        print(f"{column}: {performance.min():.2f} to {performance.max():.2f} {unit}, mean absolute error from")
        for name, features in numbers.items():
            found = cross_validate(features, performance)
            print(f"  {name:22}{found.error:6.2f} (per division: +- {found.spread:.2f})")
    if picture:
        accuracy = [float(network[0]["test_accuracy"]) for network in networks]
        models = [network[0]["model"] for network in networks]
        save(regression_plane(fit_plane(ratios, accuracy), accuracy, models, "test accuracy, %"), Path(picture))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""How well do accuracy and loss follow from reliable and unreliable components? The table of docs/reliability.md.

    python docs/studies/regressor.py TABLE.csv [FIGURE.png]

The table is `runs.csv` of the study `components/sample_size` or of one with its columns, see
`netprism.studies.regression`, or the published one: a row for each network and order, as
`netprism.components.component_ratios` reads them, and the columns model, train_samples, test_accuracy (per cent) and
test_loss. Takes 7 CPU seconds on an AMD EPYC.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from netprism.components.disentangler import FEW_ORDERS
from netprism.figures._common import save
from netprism.studies.regression import planes, tables
from netprism.studies.table import with_spreads


def as_record(row: Mapping[str, str]) -> dict[str, Any]:
    """Returns a row of the published table as a record of a study."""
    parts = {
        part: float(row[f"var_{part}_component"]) / float(row["var_feature"]) for part in ("reliable", "unreliable")
    }
    performance = {"accuracy": float(row["test_accuracy"]), "loss": float(row["test_loss"])}
    return {"label": row["model"], "train samples": row["train_samples"], "order": row["order"], **parts, **performance}


def main(table: str, picture: str | None = None) -> None:
    """Prints errors and weights of the regressions for accuracy and loss; draws the plane of the accuracy."""
    with open(table, encoding="utf-8", newline="") as file:
        records: list[dict[str, Any]] = list(csv.DictReader(file))
    if records and "var_feature" in records[0]:
        records = [as_record(row) for row in records]
    records = [record for record in records if int(record["order"]) in FEW_ORDERS]
    for rows in tables(records).values():
        print(with_spreads(rows))
    if picture:
        save(planes(records)["regressor"], Path(picture))


if __name__ == "__main__":
    main(*sys.argv[1:])

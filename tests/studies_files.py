"""Study files and stand-ins for trainings, for the tests of studies."""

import json
import time
from pathlib import Path

from netprism.files import write_text
from netprism.runs.folder import FINISHED
from netprism.studies.points import Point

EPOCHS = 6


def fake_fit(command, args):
    """Takes the place of `netprism fit`: an epoch takes 20 ms, and a stopped run goes on where it was."""
    import os

    folder = Path(os.environ["NETPRISM_RUN"])
    config = json.loads(Path(args[0].removeprefix("--config=")).read_text().split("\n", 1)[1])
    write_text(folder / "config.yaml", json.dumps(config))
    if config["fails"]:
        raise ValueError(f"value is {config['value']}; expected another")
    last = folder / "checkpoints" / "last.ckpt"
    state = json.loads(last.read_text()) if last.is_file() else {"epoch": 0, "sum": 0.0}
    rows = (folder / "metrics.csv").read_text().splitlines()[: state["epoch"] + 1] if state["epoch"] else []
    rows = rows or ["epoch,step,val/sum"]
    for epoch in range(state["epoch"], EPOCHS):
        time.sleep(0.02)
        state = {"epoch": epoch + 1, "sum": (state["sum"] + config["value"]) * 1.1}
        rows.append(f"{epoch},{epoch},{state['sum']!r}")
        write_text(folder / "metrics.csv", "\n".join(rows) + "\n")
        write_text(last, json.dumps(state))
        with (folder / "epochs.txt").open("a") as file:
            file.write(f"{epoch}\n")
    write_text(folder / FINISHED, "")


def fake_points(root, values, fails=()):
    """One run per value."""
    return [
        Point({"value": value, "seed": 0}, f"key{number}", root / "runs" / "fake" / f"key{number}", "fake",
              json.dumps({"value": value, "fails": value in fails}))
        for number, value in enumerate(values)
    ]  # fmt: skip


def extremes(records):
    """A further table of a study: its lowest total."""
    return {"extremes": [{"total": min(record["total"] for record in records), "total sd": 0.1}]}

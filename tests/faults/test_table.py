"""docs/faults.md: every fault has a row, and every row names tests that are there."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
ROWS = [line for line in (TESTS.parent / "docs/faults.md").read_text().splitlines() if line.startswith("| ")]
CELLS = [[cell.strip() for cell in row.strip("|").split("|")] for row in ROWS]
TABLE = {fault: cells for fault, *cells in CELLS if fault not in ("fault", "---")}
FAULTS = [
    "kill -9 in training",
    "kill -9 in a monitor",
    "kill -9 while a checkpoint is written",
    "kill -9 while `metrics.csv`",
    "one rank dies",
    "disk full",
    "W&B unreachable from the start",
    "W&B lost in the middle",
    "wrong key",
    "NaN in the loss",
    "NaN in activations",
    "NaN in energies",
    "a monitor that raises",
    "a monitor runs out of memory",
    "a loader worker is killed",
    "the run folder is removed",
    "corrupt or truncated checkpoint",
    "checkpoint of another model",
    "malicious pickle",
    "uneven ranks",
    "a rank with no monitor sample",
    "two runs started in the same second",
    "read-only run folder",
    "data set half downloaded",
    "kill -9 after a best epoch",
    "kill -9 after the last checkpoint",
    "a resume that fails",
    "resume of a run without `last.ckpt`",
    "the launching process is killed",
    "forked or spawned",
    "a run folder with",
    "a checkpoint plugin",
]


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_has_a_row(fault):
    assert [row for row in TABLE if fault in row]


@pytest.mark.parametrize("fault", TABLE)
def test_every_row_says_all_and_names_tests_that_are_there(fault):
    seen, kept, tests = TABLE[fault]
    assert seen
    assert kept
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", tests)
    assert named
    for file, test in named:
        assert f"\ndef {test}(" in (TESTS / file).read_text(), f"{file} has no {test}"

"""Signals at the parent, at one rank or at all of a training on two processes; shared memory that is full."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small_runs import SMALL, UNMONITORED, environment_of_a_desk, rows

from netprism.runs.folder import RUN

pytestmark = pytest.mark.kill
EPOCHS = 40
CPU = ["--trainer.accelerator=cpu", "--config=gates/digits_mlp", f"--trainer.max_epochs={EPOCHS}", UNMONITORED, *SMALL]
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp", *CPU]


@pytest.fixture(autouse=True)
def at_a_desk(tmp_path, monkeypatch):
    environment_of_a_desk(monkeypatch, tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so its children


def start(folder, *args, before=()):
    command = [*before, sys.executable, "-m", "netprism", "fit", "--ckpt_path=last", *args]
    environment = os.environ | {RUN: str(folder)}
    return subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(training):
    said = training.communicate(timeout=250)[0]
    assert training.returncode == 0, said


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid):
    """Whether there is a process, and no zombie for which nobody waits."""
    file = Path(f"/proc/{pid}/stat")
    return file.exists() and file.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(start(folder, *TWO))
    return rows(folder)


@pytest.mark.parametrize("whom", ["parent", "rank 1", "all"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_all_processes_end_and_the_training_goes_on_to_the_same_curves(number, whom, tmp_path, undisturbed):
    folder = tmp_path / "run"
    training = start(folder, *TWO)
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / "last.ckpt").exists():
        assert training.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (rank,) = children(training.pid)
    targets = {"parent": [training.pid], "rank 1": [rank], "all": [training.pid, rank]}
    for pid in targets[whom]:
        os.kill(pid, number)
    said = training.communicate(timeout=100)[0]
    assert training.returncode != 0, said
    if number != signal.SIGINT:
        assert training.returncode == 128 + number, said
        assert f"{number.name}: saved" in said
    while is_running(rank):
        assert time.monotonic() < deadline, "a rank is left over"
        time.sleep(0.05)
    torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    finish(start(folder, *TWO))
    assert rows(folder) == undisturbed


def test_shared_memory_that_is_full_is_one_line(tmp_path):
    own = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"', "sh"]
    if subprocess.run([*own, "true"], check=False, capture_output=True).returncode:
        pytest.skip("a mount namespace of its own needs root")
    training = start(tmp_path / "run", *CPU, "--data.num_workers=2", "--data.batch_size=512", before=own)
    said = training.communicate(timeout=200)[0]
    assert training.returncode == 1, said
    (line,) = (line for line in said.splitlines() if line.startswith("netprism: error: "))
    assert "num_workers" in line, said

"""Ranks that somebody launched: they end with their launcher, and hand their weights back."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from small_runs import EXPERIMENT, SMALL, UNMONITORED, environment_of_a_desk, rows

from netprism.cli import teacher_runs
from netprism.cli.keys import network_key
from netprism.cli.main import main
from netprism.runs.folder import FINISHED

RANK = (
    "import time\n"
    "from netprism.cli.main import die_with_launcher\n"
    "die_with_launcher()\n"
    "print('up', flush=True)\n"
    "time.sleep(120)\n"
)
LAUNCHER = (
    "import os, subprocess, sys, time\n"
    "rank = subprocess.Popen([sys.executable, '-c', sys.argv[1]], env={**os.environ, 'LOCAL_RANK': '1'},"
    " stdout=subprocess.PIPE, text=True)\n"
    "rank.stdout.readline()\n"
    "print(rank.pid, flush=True)\n"
    "time.sleep(120)\n"
)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a process that its parent has died")
def test_a_rank_ends_with_the_process_that_launched_it():
    with subprocess.Popen([sys.executable, "-c", LAUNCHER, RANK], stdout=subprocess.PIPE, text=True) as launcher:
        rank = int(launcher.stdout.readline())
        was_alive = is_alive(rank)
        launcher.send_signal(signal.SIGKILL)
    try:
        assert was_alive
        end = time.monotonic() + 10
        while is_alive(rank) and time.monotonic() < end:
            time.sleep(0.05)
        assert not is_alive(rank)
    finally:
        if is_alive(rank):
            os.kill(rank, signal.SIGKILL)


@pytest.mark.parametrize("devices", [1, 2])
def test_forked_ranks_hand_their_weights_back(devices, tmp_path, monkeypatch):
    environment_of_a_desk(monkeypatch, tmp_path)
    strategy = ["--trainer.strategy=ddp_fork", f"--trainer.devices={devices}", "--trainer.accelerator=cpu"]
    unfit = "--model.net.init_args.widths=[1024,16,3]"  # fitted to ten digits, in the ranks only
    main(["fit", f"--config={EXPERIMENT}", "--trainer.max_epochs=1", *SMALL, UNMONITORED, *strategy, unfit])
    (mark,) = (tmp_path / "runs").rglob(FINISHED)
    assert 0 in rows(mark.parent)


def test_of_two_runs_that_miss_a_teacher_one_trains_it(tmp_path, monkeypatch):
    environment_of_a_desk(monkeypatch, tmp_path)
    trained = []

    def train(experiment, config, seed):
        trained.append(experiment)
        time.sleep(0.3)
        folder = tmp_path / "runs" / experiment / "1"
        folder.mkdir(parents=True)
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "best.ckpt").touch()
        (folder / "config.yaml").write_text("{}")
        (folder / FINISHED).touch()

    monkeypatch.setattr(teacher_runs, "_train", train)
    arguments = ("classify/digits_mlp", None, lambda name, seed: network_key({}))
    runs = [threading.Thread(target=teacher_runs.train_once, args=arguments) for _ in range(4)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert trained == ["classify/digits_mlp"]

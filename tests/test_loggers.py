"""The curves of a run: `metrics.csv`, and W&B as it is met by a user without a key, a network or a terminal."""

import csv
import ctypes
import http.server
import json
import logging
import math
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import traceback
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import wandb

from netprism.cli.main import main
from netprism.loggers import OfflineFallbackWandbLogger, ResumableCSVLogger

KEY = "0123456789abcdef0123456789abcdef01234567"  # well formed, and nobody's
NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing listens
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000  # of linux/sched.h


# metrics.csv


def read(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_one_row_an_epoch_end_in_the_order_of_appearance(tmp_path):
    logger = ResumableCSVLogger(tmp_path)
    logger.log_metrics({"gates/entropy": 5.5, "epoch": -1}, step=0)
    logger.log_metrics({"epoch": 0, "val/loss": 2.0}, step=9)
    logger.log_metrics({"train/loss": 1.0, "epoch": 0}, step=9)
    logger.log_metrics({"train/loss_step": 0.5, "epoch": 1}, step=12)
    logger.finalize("success")
    assert (tmp_path / "metrics.csv").read_text() == (
        "epoch,step,gates/entropy,val/loss,train/loss,train/loss_step\n-1,0,5.5,,,\n0,9,,2.0,1.0,\n1,12,,,,0.5\n"
    )


def test_a_resumed_run_goes_on_and_replaces_what_it_runs_again(tmp_path):
    first = ResumableCSVLogger(tmp_path)
    for step in range(0, 60, 10):  # two rows an epoch
        first.log_metrics({"epoch": step // 20, "loss": 0.5 + step}, step=step)
    first.finalize("failed")
    resumed = ResumableCSVLogger(tmp_path)
    resumed.log_metrics({"epoch": 1, "new": 1.0}, step=20)
    resumed.finalize("success")
    rows = [(row["epoch"], row["step"], row["loss"], row["new"]) for row in read(tmp_path)]
    assert rows == [("0", "0", "0.5", ""), ("0", "10", "10.5", ""), ("1", "20", "20.5", "1.0")]


def test_opening_a_run_changes_nothing_until_something_is_logged(tmp_path):
    first = ResumableCSVLogger(tmp_path)
    first.log_metrics({"epoch": 0, "loss": 1.0}, step=0)
    first.finalize("success")
    again = ResumableCSVLogger(tmp_path)
    again.save()
    again.finalize("failed")
    assert [row["loss"] for row in read(tmp_path)] == ["1.0"]


def test_nan_is_kept_and_what_is_no_number_left_out(tmp_path):
    logger = ResumableCSVLogger(tmp_path)
    values = {"nan": math.nan, "inf": -math.inf, "np": np.float32(0.5), "int": 3, "image": object(), "name": "a"}
    logger.log_metrics({"epoch": 0, **values}, step=0)
    logger.finalize("success")
    assert read(tmp_path) == [{"epoch": "0", "step": "0", "nan": "nan", "inf": "-inf", "np": "0.5", "int": "3"}]


def test_values_come_back_exactly(tmp_path):
    value = 0.1 + 0.2
    logger = ResumableCSVLogger(tmp_path)
    logger.log_metrics({"epoch": 0, "value": value}, step=0)
    logger.finalize("success")
    resumed = ResumableCSVLogger(tmp_path)
    resumed.log_metrics({"epoch": 1, "value": value}, step=1)
    resumed.finalize("success")
    assert [float(row["value"]) for row in read(tmp_path)] == [value, value]


def test_a_checkpoint_is_never_newer_than_the_table(tmp_path):
    logger = ResumableCSVLogger(tmp_path)
    for epoch in range(50):
        logger.log_metrics({"epoch": epoch, "loss": 1.0}, step=epoch)
        logger.save()
        logger.after_save_checkpoint(None)
        assert len(read(tmp_path)) == epoch + 1


def test_writing_takes_a_small_part_of_the_time(tmp_path, monkeypatch):
    """A clock on which each write takes 1 s and each epoch 2 s: 40 writes of 40 without a limit, 1 in 20 s with it."""
    now, writes = [0.0], []

    def write(self):
        now[0] += 1
        writes.append(now[0])

    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr(ResumableCSVLogger, "_write", write)
    logger = ResumableCSVLogger(tmp_path)
    for epoch in range(40):
        logger.log_metrics({"epoch": epoch, "loss": 1.0}, step=epoch)
        logger.save()
        now[0] += 2
    assert 4 <= len(writes) <= 5


def test_the_run_folder_is_the_log_dir(tmp_path):
    assert ResumableCSVLogger(tmp_path / "a").save_dir == str(tmp_path / "a")
    assert not (tmp_path / "a").exists()


# W&B, in this process


@pytest.fixture(autouse=True)
def no_wandb(monkeypatch, tmp_path):
    """Nothing of the user's: neither variables nor a key in the home folder; no service left running."""
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    yield
    if wandb.run:
        wandb.run.finish()
    wandb.teardown()


def records(folder):
    """{kind: records} of all offline runs of a run folder, oldest first."""
    found = defaultdict(list)
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", file]
        for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
            record = json.loads(line)
            found[record["type"]].append(record[record["type"]])
    return found


def axes(found):
    """{key: key on the x axis}."""
    return {metric["name"]: metric.get("step_metric") for metric in found["metric"]}


def test_a_resumed_run_joins_its_curve(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for epoch in range(2):
        logger = OfflineFallbackWandbLogger(tmp_path / "quickstart" / "20260101-000000-abcdef")
        logger.log_metrics({"epoch": epoch, "gates/entropy": 1.0 + epoch, "train/loss_step": 3.0}, step=epoch)
        logger.finalize("success")
    found = records(tmp_path / "quickstart" / "20260101-000000-abcdef")
    assert {run["run_id"] for run in found["run"]} == {"quickstart-20260101-000000-abcdef"}
    assert [row["item"]["gates/entropy"] for row in found["history"]] == [1.0, 2.0]
    assert axes(found) == {"gates/entropy": "epoch", "train/loss_step": "trainer/global_step"}


def test_a_logger_that_breaks_is_given_up_in_one_line(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = OfflineFallbackWandbLogger(tmp_path / "run")
    logger.log_metrics({"epoch": 0, "loss": 1.0}, step=0)

    def reset(*args, **kwargs):
        raise ConnectionResetError("Connection reset by peer")

    monkeypatch.setattr(logger.experiment, "log", reset)
    with caplog.at_level("INFO"):
        for epoch in range(1, 4):
            logger.log_metrics({"epoch": epoch, "loss": 1.0}, step=epoch)
        logger.log_image("figure", [np.zeros((2, 2))])
        logger.log_hyperparams({"lr": 1})
        logger.finalize("success")
    stopped = [record.getMessage() for record in caplog.records if "W&B: stopped" in record.getMessage()]
    assert stopped == ["W&B: stopped, metrics.csv continues (Connection reset by peer)"]


def test_even_a_mode_that_does_not_exist_stops_no_training(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "onlin")
    logger = OfflineFallbackWandbLogger(tmp_path / "run")
    with caplog.at_level("INFO"):
        logger.experiment  # noqa: B018  as Lightning does
        logger.log_metrics({"epoch": 0, "loss": 1.0}, step=0)
        logger.finalize("success")
    assert len([record for record in caplog.records if "W&B: off" in record.getMessage()]) == 1


def test_disabled_is_obeyed(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = OfflineFallbackWandbLogger(tmp_path / "run")
    logger.log_metrics({"epoch": 0, "loss": 1.0}, step=0)
    logger.finalize("success")
    assert logger.where == ""
    assert not (tmp_path / "run").exists()


class Refusal(http.server.BaseHTTPRequestHandler):
    """A server that knows no key."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        body = b'{"errors": [{"message": "user is not logged in"}]}'
        self.send_response(401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def refusing_server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusal)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_refused_key_means_offline(tmp_path, monkeypatch, caplog, refusing_server):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", refusing_server)
    logger = OfflineFallbackWandbLogger(tmp_path / "run")
    with caplog.at_level("INFO"):
        logger.log_metrics({"epoch": 0, "loss": 1.0}, step=0)
        logger.finalize("success")
    (told,) = (record.getMessage() for record in caplog.records if "W&B: " in record.getMessage())
    assert told.startswith(f"W&B: offline, {logger.where} (")
    assert "user is not logged in" in told
    assert [row["item"]["loss"] for row in records(tmp_path / "run")["history"]] == [1.0]
    assert not list(tmp_path.glob("run/wandb/run-*")), "what the try to go online left"


# W&B, as a user meets it: the whole command, in a terminal of its own, without a network


def in_a_terminal(work):
    """Does `work` in a forked process whose input and output are a terminal, where a prompt would wait.

    Returns:
        (status, what it said).
    """
    process, ours = pty.fork()
    if process == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        sys.stdout.flush()
        os._exit(0)
    watch = threading.Timer(100, os.kill, (process, signal.SIGKILL))
    watch.start()
    said = b""
    try:
        while part := os.read(ours, 4096):
            said += part
    except OSError:  # Linux: the other end of the terminal is closed
        pass
    os.close(ours)
    watch.cancel()
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), said.decode()


def leave_the_network():
    """As `unshare --map-root-user --net` does, where that is allowed."""
    user, group, libc = os.getuid(), os.getgid(), ctypes.CDLL(None)
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")


def train(home, variables):
    """The command in a process forked from this one, which has seconds of imports behind it."""

    def work():
        leave_the_network()
        os.chdir(home)
        for name in [name for name in os.environ if name.startswith(("WANDB", "NETPRISM"))]:
            del os.environ[name]
        os.environ.update({"HOME": str(home), "WANDB_BASE_URL": NOWHERE, **variables})
        for stream in ("stdin", "stdout", "stderr"):
            setattr(sys, stream, open(getattr(sys, f"__{stream}__").fileno(), "r" if stream == "stdin" else "w", 1))
        logging.getLogger().handlers.clear()  # pytest's, for which Lightning has made none of its own
        for package in ("pytorch_lightning", "lightning.pytorch"):  # the one that was imported last gets the lines
            logging.getLogger(package).handlers[:] = [logging.StreamHandler()]
        main(["fit", "--config=gates/digits_mlp", *small, *quick])

    small = ["--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1", "--trainer.callbacks.num_images=20"]
    quick = ["--trainer.max_epochs=2", "--trainer.enable_progress_bar=false", "--trainer.logger.init_timeout=2"]
    return in_a_terminal(work)


CASES = {
    "no key": ({}, "No API key configured"),
    "no server": ({"WANDB_API_KEY": KEY}, "deadline exceeded|Timed out"),
    "malformed key": ({"WANDB_API_KEY": KEY[:5]}, "WANDB_API_KEY invalid"),
}


@pytest.fixture(scope="module")
def trainings(tmp_path_factory):
    """{case: (folder it ran in, status, what it said)}."""
    homes = {case: tmp_path_factory.mktemp("home") for case in CASES}
    return {case: (homes[case], *train(homes[case], variables)) for case, (variables, _) in CASES.items()}


@pytest.mark.parametrize("case", CASES)
def test_without_wandb_a_training_is_whole_offline_and_says_so_once(case, trainings):
    home, status, said = trainings[case]
    assert status == 0, said
    told = [line for line in said.splitlines() if line.startswith("W&B: ")]
    (folder,) = (home / "runs" / "gates" / "digits_mlp").iterdir()
    (run,) = folder.glob("wandb/offline-run-*")
    assert len(told) == 1, said
    assert told[0].startswith(f"W&B: offline, {run.relative_to(home)} (")
    assert re.search(CASES[case][1], told[0])
    assert "wandb: " not in said, "its own chatter"
    assert not list(folder.glob("wandb/run-*")), "what the try to go online left"
    assert f"wandb leet {run.parent.relative_to(home)}" in said


@pytest.mark.parametrize("case", CASES)
def test_the_offline_run_has_the_curves_of_the_table(case, trainings):
    (folder,) = (trainings[case][0] / "runs" / "gates" / "digits_mlp").iterdir()
    logged, found = {}, records(folder)
    for row in found["history"]:
        values = {key: value for key, value in row["item"].items() if not key.startswith(("_", "trainer/"))}
        logged.setdefault(values.pop("epoch", None), {}).update(values)  # a figure has no epoch
    table = {int(row.pop("epoch")): row for row in read(folder)}
    for row in table.values():
        del row["step"]
    assert list(table) == [-1, 0, 1]
    wanted = {epoch: {key: float(cell) for key, cell in row.items() if cell} for epoch, row in table.items()}
    assert {
        epoch: {key: row[key] for key in wanted[epoch]} for epoch, row in logged.items() if epoch in wanted
    } == wanted
    assert {axes(found).get(key) for row in wanted.values() for key in row} == {"epoch"}


@pytest.mark.parametrize("case", CASES)
def test_a_key_is_written_nowhere(case, trainings):
    home, _, said = trainings[case]
    key = CASES[case][0].get("WANDB_API_KEY", KEY)
    if case != "malformed key":  # its five characters may stand anywhere
        assert key not in said
        assert not [path for path in Path(home).rglob("*") if path.is_file() and key.encode() in path.read_bytes()]


def test_the_waits_for_the_server_are_the_ones_asked_for(tmp_path, monkeypatch):
    seen = {}

    def init(**options):
        seen.update(options["settings"])
        raise RuntimeError("no server in this test")

    monkeypatch.setattr("wandb.init", init)
    logger = OfflineFallbackWandbLogger(tmp_path, init_timeout=3, finish_timeout=4)
    logger.log_metrics({"a": 1.0}, step=0)
    assert (seen["init_timeout"], seen["finish_timeout"]) == (3, 4)

"""W&B whose server goes away in the middle of a run; what is not there from the start is in `test_loggers.py`."""

import http.server
import json
import re
import subprocess
import sys
import threading
import time

import pytest
import wandb
from deadline import deadline
from small_runs import environment_of_a_desk

from netprism.loggers import OfflineFallbackWandbLogger

KEY = "0123456789abcdef0123456789abcdef01234567"  # well formed, and nobody's
BUCKET = {"id": "1", "name": "run", "displayName": "run", "config": "{}", "historyLineCount": 0}
PROJECT = {"name": "netprism", "entity": {"name": "nobody"}}
ANSWERS = {
    "upsertBucket": {"upsertBucket": {"bucket": {**BUCKET, "project": PROJECT}, "inserted": True}},
    "viewer": {"viewer": {"id": "1", "entity": "nobody", "username": "nobody", "flags": "{}", "teams": {"edges": []}}},
}


class Server(http.server.BaseHTTPRequestHandler):
    """As much of W&B's as it takes to start a run."""

    def do_POST(self):
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode(errors="replace")
        if "file_stream" in self.path:
            self.server.streamed.set()
        data = next((answer for word, answer in ANSWERS.items() if word in asked), {})
        body = json.dumps({"data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.daemon_threads, server.streamed = True, threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def a_key_and_nothing_else(monkeypatch, tmp_path, server):
    environment_of_a_desk(monkeypatch, tmp_path)
    for name, value in {"HOME": tmp_path, "WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("WANDB_MODE")
    wandb.teardown()  # it has read the variables once and for all
    yield
    wandb.teardown()


def logged(folder):
    """The losses in the file of a run."""
    (file,) = folder.glob("wandb/run-*/*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", file]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    return [record["history"]["item"]["loss"] for record in map(json.loads, lines) if record["type"] == "history"]


def test_a_server_that_goes_away_costs_a_wait_at_the_end_and_no_row(tmp_path, server, caplog):
    caplog.set_level("INFO")
    logger = OfflineFallbackWandbLogger(tmp_path / "run", finish_timeout=1)
    logger.log_metrics({"epoch": 0, "loss": 0.0}, step=0)
    assert server.streamed.wait(30), "the run did not go online"
    server.shutdown()
    server.server_close()
    begin = time.monotonic()
    for epoch in range(1, 200):
        logger.log_metrics({"epoch": epoch, "loss": float(epoch)}, step=epoch)
    assert time.monotonic() - begin < 5
    with deadline(10):
        logger.finalize("success")
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("W&B: ")]
    assert len(told) == 2
    assert told[0] == f"W&B: online, {logger.where}"
    assert re.fullmatch(r"W&B: not all was uploaded within 1 s; `wandb sync run/wandb/run-\S+` does the rest", told[1])
    wandb.teardown()  # as at the end of the process
    assert logged(tmp_path / "run") == [float(epoch) for epoch in range(200)]

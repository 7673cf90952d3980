import csv

import pytest
import torch
from small_runs import environment_of_a_desk, said, train

from netprism.cli.compress import compress
from netprism.cli.main import main
from netprism.runs.teachers import trained


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    environment_of_a_desk(monkeypatch, tmp_path)
    return train(epochs=1) / "checkpoints" / "last.ckpt"


def test_a_run_is_compressed_and_read_again(checkpoint, capsys):
    main(["compress", "--checkpoint", str(checkpoint), "--prune", "1.0", "--bits", "8", "5"])
    out = checkpoint.with_name("compressed.ckpt")
    printed = capsys.readouterr().out
    assert "times smaller" in printed
    assert "accuracy" in printed
    net = trained(checkpoint=str(out))
    assert len(net.fc2.weight.unique()) == 33
    assert 0.2 < float((net.fc2.weight != 0).float().mean()) < 0.65
    with out.with_suffix(".csv").open() as file:
        rows = {row["layer"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"fc1", "fc2", "fc3", "fc4"}
    assert int(rows["fc1"]["bytes_after"]) < int(rows["fc1"]["bytes_before"]) / 4
    assert set(torch.load(out, weights_only=True)) == set(net.state_dict())


def test_one_of_torchvision(tmp_path, monkeypatch):
    environment_of_a_desk(monkeypatch, tmp_path)
    out = compress(["--net", "squeezenet1_1", "--checkpoint", "untrained", "--bits", "4", "4", "--out", "net.ckpt"])
    assert trained(checkpoint=str(out), net="squeezenet1_1").features[0].weight.unique().numel() == 16


def test_bad_input_ends_in_one_line(checkpoint, capsys):
    assert "--prune and --bits are missing" in said(capsys, "compress", "--checkpoint", str(checkpoint))
    assert "leaves no weight" in said(capsys, "compress", "--checkpoint", str(checkpoint), "--prune", "90")
    asked = "compress", "--checkpoint", str(checkpoint), "--bits", "8", "14", "--layers", "fc4"
    assert "different weights; expected at least 16384" in said(capsys, *asked)
    assert "no checkpoint" in said(capsys, "compress", "--checkpoint", "none.ckpt", "--experiment", "quickstart",
                                   "--bits", "8", "5")  # fmt: skip
    assert not checkpoint.with_name("compressed.ckpt").exists()

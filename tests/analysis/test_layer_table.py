"""The table of layers says what the measures then do."""

import pytest
import torch
from torch import nn

from netprism.analysis.layer_table import layer_table, run_on_some
from netprism.cli.main import main
from netprism.gates import record_gates


class Net(nn.Module):
    """Maps, a skip around `late`, and a functional ReLU."""

    def __init__(self):
        super().__init__()
        self.early = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU())
        self.late = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.early(x)
        x = torch.relu(x + self.late(x))
        return self.head(x.mean((2, 3)))


def test_a_row_says_what_each_measure_can_use():
    net, x = Net().eval(), torch.randn(2, 1, 6, 6)
    table = layer_table(net, x)
    rows = {row.name: row for row in table.rows}
    assert list(rows) == ["early", "early.0", "early.1", "late", "head", ":relu#0"]
    assert rows["early"].shape == (4, 6, 6)
    assert [rows[name].components for name in ("early", "late", "head")] == [True, False, False]
    assert [rows[name].knowledge for name in ("early", "late", "head")] == [True, True, False]
    with record_gates(net) as gates:
        net(x)
    assert {name: row.gates for name, row in rows.items() if row.gates} == {
        "early": 144, "early.1": 144, ":relu#0": 144
    }  # fmt: skip
    assert set(gates.layers) == {"early.1", ":relu#0"}


def test_inputs_are_found_by_trying():
    assert run_on_some(nn.Linear(64, 2)).shape == (2, 64)
    assert run_on_some(nn.Embedding(5, 2), tokens=7).shape == (2, 7)
    with pytest.raises(ValueError, match="Linear runs on no input of size 3x224x224, .* expected --size or --tokens"):
        run_on_some(nn.Linear(5, 2))


def test_the_command_takes_experiments_and_class_paths(capsys, tmp_path, monkeypatch):
    main(["layers", "quickstart"])
    out = capsys.readouterr().out
    assert out.startswith("ResNet, on samples of 1x32x32: 73,728 gates in all")
    assert "layers taken where none are given: relu, layer1, layer2, layer3" in out
    for network, said in (
        ("resnet181", "close: resnet18"),
        ("torch.nn.Linear", "needs in_features, out_features"),
        ("torch.nn.ReLUU", "did you mean ReLU"),
        ("no.Net", "no module 'no'"),
        ("nowhere.ckpt", "no checkpoint nowhere.ckpt"),
    ):
        with pytest.raises(SystemExit):
            main(["layers", network])
        assert said in capsys.readouterr().err

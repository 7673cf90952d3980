import pytest
import torch
from torch import nn

from netprism.gates.record import record_gates
from netprism.nets import LeNet5
from netprism.taps import layer_names, tap


def test_number_of_parameters_by_hand():
    # 6 x 25 + 6, 16 x 6 x 25 + 16, 400 x 120 + 120, 120 x 84 + 84, 84 x 10 + 10
    assert sum(p.numel() for p in LeNet5().parameters()) == 156 + 2416 + 48120 + 10164 + 850


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32)])
def test_shapes(channels, size):
    net = LeNet5(num_classes=7, in_channels=channels, image_size=size)
    with tap(net, ["pool1", "pool2", "relu3", "relu4"]) as features:
        logits = net(torch.randn(2, channels, size, size))
    assert [tuple(feature.shape) for feature in features.values()] == [(2, 6, 14, 14), (2, 16, 5, 5), (2, 120), (2, 84)]
    assert logits.shape == (2, 7)


def test_five_layers_have_weights():
    assert len([module for module in LeNet5().modules() if isinstance(module, nn.Conv2d | nn.Linear)]) == 5


def test_wrong_image_size_is_named():
    with pytest.raises(ValueError, match=r"^image_size must be 28 or 32, got 64$"):
        LeNet5(image_size=64)


def test_gating_layers_are_what_record_gates_sees():
    net = LeNet5()
    with record_gates(net) as gates:
        net(torch.randn(2, 1, 28, 28))
    assert net.gating_layers == tuple(gates.states)


def test_tap_points_exist():
    assert set(LeNet5.tap_points) <= set(layer_names(LeNet5()))

import math

import pytest
import torch
import torchvision
from torch import nn

from netprism.gates.record import record_gates
from netprism.nets import VGG11
from netprism.taps import layer_names, tap


def test_convolutions_and_poolings_are_those_of_torchvision():
    def plan(net: nn.Module) -> list[object]:
        layers = (module for module in net.features if isinstance(module, nn.Conv2d | nn.MaxPool2d))
        return [layer.weight.shape if isinstance(layer, nn.Conv2d) else "pool" for layer in layers]

    with torch.device("meta"):
        assert plan(VGG11()) == plan(torchvision.models.vgg11_bn())


def test_number_of_parameters_by_hand():
    with torch.device("meta"):
        net = VGG11()
    pairs = ((3, 64), (64, 128), (128, 256), (256, 256), (256, 512), (512, 512), (512, 512), (512, 512))
    assert sum(p.numel() for p in net.parameters()) == sum(9 * i * o + 2 * o for i, o in pairs) + 512 * 10 + 10


@pytest.mark.parametrize(("channels", "size", "sides"), [(3, 32, [16, 8, 4, 2, 1]), (1, 28, [14, 7, 4, 2, 1])])
def test_shapes(channels, size, sides):
    net = VGG11(num_classes=7, in_channels=channels, width=2)
    with tap(net, net.tap_points) as features:
        logits = net(torch.randn(2, channels, size, size))
    assert logits.shape == (2, 7)
    assert [feature.shape[-1] for feature in features.values()] == sides
    assert [feature.shape[1] for feature in features.values()] == [2, 4, 8, 16, 16]


def test_large_image_is_named():
    with pytest.raises(ValueError, match=r"^VGG11 takes images of at most 32 x 32 pixels, got 32 x 64$"):
        VGG11(width=2)(torch.zeros(2, 3, 32, 64))


def test_gating_layers_are_what_record_gates_sees():
    net = VGG11(width=2).eval()
    with record_gates(net) as gates:
        net(torch.randn(2, 3, 32, 32))
    assert net.gating_layers == tuple(gates.states)


def test_pooling_that_rounds_up_has_gates():
    net = VGG11(in_channels=1, width=2).eval()
    with record_gates(net, kinds=("max_pool",)) as gates:
        net(torch.randn(2, 1, 28, 28))
    assert list(gates.states) == [f"features.pool{stage}" for stage in range(1, 6)]
    assert all((states.sum(dim=-1) == 1).all() for states in gates.states.values())


def test_convolutions_start_as_kaiming_says():
    weight = VGG11(width=16).features.conv4_1.weight  # 64 to 128 channels
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (128 * 9)), rel=0.02)  # 73728 draws: 8 standard errors


def test_tap_points_exist():
    assert set(VGG11.tap_points) <= set(layer_names(VGG11(width=2)))

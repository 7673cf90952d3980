import math

import pytest
import torch
from torch import nn

from netprism.gates.record import record_gates
from netprism.nets import PreActResNet, PreActResNet18, PreActResNet34, ResNet
from netprism.nets._layers import subsample_and_pad
from netprism.nets.resnet import BasicBlock, PreActBlock
from netprism.taps import layer_names, tap

NETS = (ResNet, PreActResNet)


def parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def identity_convs(block: nn.Module) -> nn.Module:
    """The block in eval mode, with convolutions that copy each pixel and BatchNorms that do nothing."""
    for module in block.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.dirac_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-30  # 0 is refused by torch 2.11
    return block.eval()


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_number_of_parameters_is_that_of_table_6(net, depth, millions):
    assert parameters(net(depth)) / 1e6 == pytest.approx(millions, abs=0.005 if depth < 110 else 0.05)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("depth", [8, 14, 20, 32, 44])
def test_depth_counts_convolutions_and_linear_layers(net, depth):
    weighted = [module for module in net(depth).modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(weighted) == depth


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("depth", [2, -4, 18, 21])
def test_wrong_depth_is_named(net, depth):
    with pytest.raises(ValueError, match=rf"^depth must be 6n \+ 2 \(8, 14, 20, .*\), got {depth}$"):
        net(depth)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28), (2, 17)])
def test_shapes_of_stages_and_logits(net, channels, size):
    model = net(depth=8, num_classes=7, in_channels=channels, width=6)
    with tap(model, ["layer1", "layer2", "layer3"]) as features:
        logits = model(torch.randn(2, channels, size, size))
    half, quarter = math.ceil(size / 2), math.ceil(size / 4)
    assert logits.shape == (2, 7)
    assert [tuple(feature.shape[1:]) for feature in features.values()] == [
        (6, size, size),
        (12, half, half),
        (24, quarter, quarter),
    ]


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("depth", [8, 20])
def test_gating_layers_are_what_record_gates_sees(net, depth):
    model = net(depth=depth, width=2).eval()
    with record_gates(model) as gates:
        model(torch.randn(2, 3, 8, 8))
    assert model.gating_layers == tuple(gates.states)
    assert len(model.gating_layers) == depth - 1


@pytest.mark.parametrize("net", NETS)
def test_tap_points_exist(net):
    model = net(depth=8)
    assert set(model.tap_points) <= set(layer_names(model))


def test_names_read_like_torchvision():
    assert [name for name, _ in ResNet().named_children()] == [
        "conv1", "bn1", "relu", "layer1", "layer2", "layer3", "avgpool", "fc",
    ]  # fmt: skip


def test_shortcut_by_hand():
    x = torch.arange(9.0).reshape(1, 1, 3, 3)
    assert subsample_and_pad(x, 3, 2).tolist() == [[[[0, 2], [6, 8]], [[0, 0], [0, 0]], [[0, 0], [0, 0]]]]
    assert subsample_and_pad(x, 2, 1).tolist() == [[x[0, 0].tolist(), [[0, 0, 0]] * 3]]
    assert subsample_and_pad(x, 1, 1) is x


def test_basic_block_by_hand():
    block = identity_convs(BasicBlock(1, 1))  # relu(relu(x) + x)
    assert block(torch.tensor([[[[-1.0, 2.0]]]])).tolist() == [[[[0.0, 4.0]]]]


def test_basic_block_with_stride_by_hand():
    block = identity_convs(
        BasicBlock(1, 2, stride=2)
    )  # every second pixel; dirac_ leaves the second channel's weights at 0
    assert block(torch.tensor([[[[-1.0, 5.0, 2.0]]]])).tolist() == [[[[0.0, 4.0]], [[0.0, 0.0]]]]


@pytest.mark.parametrize(("activate_shortcut", "expected"), [(False, [-1.0, 4.0]), (True, [0.0, 4.0])])
def test_pre_activation_block_by_hand(activate_shortcut, expected):
    block = identity_convs(PreActBlock(1, 1, activate_shortcut=activate_shortcut))  # relu(x) + (x or relu(x))
    assert block(torch.tensor([[[[-1.0, 2.0]]]])).flatten().tolist() == expected


def test_only_the_first_pre_activation_block_activates_its_shortcut():
    blocks = [module for module in PreActResNet(20).modules() if isinstance(module, PreActBlock)]
    assert [block.activate_shortcut for block in blocks] == [True] + 8 * [False]


@pytest.mark.parametrize("net", NETS)
def test_every_parameter_gets_a_gradient(net):
    model = net(depth=8, width=4)
    model(torch.randn(4, 3, 8, 8)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("net", NETS)
def test_convolutions_start_as_kaiming_says(net):
    weight = net(depth=8).layer3[0].conv1.weight  # 32 to 64 channels
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.03)  # 18432 draws: 6 standard errors


@pytest.mark.parametrize(("kind", "millions"), [(PreActResNet18, 11.17), (PreActResNet34, 21.28)])
def test_four_stages_have_the_published_size_and_their_layers_run(kind, millions):
    with torch.device("meta"):
        net = kind(num_classes=10).eval()
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.02)
    assert net.gating_layers[:2] == ("layer1.0.relu", "layer1.0.relu#1")
    small = kind(small_images=True, width=4).eval()
    with tap(small, small.tap_points) as features, record_gates(small) as gates:
        assert small(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert [f.shape[-1] for f in features.values()] == [32, 16, 8, 4, 4]
    assert tuple(gates.states) == small.gating_layers

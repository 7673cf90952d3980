import pytest
import torch
from torch import nn

from netprism.gates.record import record_gates
from netprism.nets import MLP, MLP_ALPHA, MLP_BETA, MLP_CIFAR10, MLP_MNIST, ResidualMLP
from netprism.taps import layer_names


def linear_layers(net: nn.Module) -> list[nn.Linear]:
    return [module for module in net.modules() if isinstance(module, nn.Linear)]


@pytest.mark.parametrize(("widths", "layers"), [(MLP_MNIST, 5), (MLP_ALPHA, 11), (MLP_BETA, 5), (MLP_CIFAR10, 5)])
def test_widths_of_the_paper(widths, layers):
    net = MLP(widths)
    assert [layer.in_features for layer in linear_layers(net)] + [net(torch.zeros(1, widths[0])).shape[1]] == list(
        widths
    )
    assert len(linear_layers(net)) == layers
    assert len(net.gating_layers) == layers - 1


def test_number_of_parameters_by_hand():
    assert sum(p.numel() for p in MLP((4, 3, 2)).parameters()) == (4 * 3 + 3) + (3 * 2 + 2)
    assert sum(p.numel() for p in ResidualMLP(width=4, depth=3, num_classes=2).parameters()) == 2 * (4 * 4 + 4) + 10


def test_mlp_by_hand():
    net = MLP((2, 2, 1))  # relu([x0 - x1, x1 - x0]) summed, minus 5: |x0 - x1| - 5, a logit that no ReLU touches
    with torch.no_grad():
        net.fc1.weight.copy_(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
        net.fc1.bias.zero_()
        net.fc2.weight.fill_(1.0)
        net.fc2.bias.fill_(-5.0)
    assert net(torch.tensor([[3.0, 1.0], [1.0, 10.0]])).tolist() == [[-3.0], [4.0]]


def test_residual_mlp_by_hand():
    net = ResidualMLP(width=1, depth=3, num_classes=1)  # two hidden layers x <- relu(x - 3 x + 4), then the logit -x
    with torch.no_grad():
        for layer in net.layers:
            layer.fc.weight.fill_(-3.0)
            layer.fc.bias.fill_(4.0)
        net.fc.weight.fill_(-1.0)
        net.fc.bias.zero_()
    # 1 -> 2 -> 0 -> 0; 3 -> relu(-2) = 0 -> 4 -> -4
    assert net(torch.tensor([[1.0], [3.0]])).tolist() == [[0.0], [-4.0]]


def test_residual_mlp_of_the_paper():
    with torch.device("meta"):
        net = ResidualMLP()
    assert [(layer.in_features, layer.out_features) for layer in linear_layers(net)] == 9 * [(3072, 3072)] + [
        (3072, 10)
    ]
    assert len(net.gating_layers) == 9


@pytest.mark.parametrize("net", [MLP((48, 8, 7)), ResidualMLP(width=48, depth=3, num_classes=7)])
def test_images_are_flattened(net):
    images = torch.randn(2, 3, 4, 4)
    assert net(images).shape == (2, 7)
    assert torch.equal(net(images), net(images.reshape(2, 48)))


@pytest.mark.parametrize("net", [MLP((64, 10)), ResidualMLP(width=64, depth=2)])
def test_input_of_another_size_is_named(net):
    with pytest.raises(ValueError, match=r"^this net takes 64 numbers per sample, got 48 \(shape \(2, 3, 4, 4\)\)$"):
        net(torch.zeros(2, 3, 4, 4))


def test_impossible_sizes_are_named():
    with pytest.raises(ValueError, match=r"^widths must be two numbers or more, input to logits, got \(10,\)$"):
        MLP((10,))
    with pytest.raises(ValueError, match=r"^depth must be 2 or more, got 1$"):
        ResidualMLP(depth=1)


@pytest.mark.parametrize("net", [MLP((12, 8, 6, 4)), ResidualMLP(width=12, depth=4)])
def test_gating_layers_are_what_record_gates_sees(net):
    with record_gates(net) as gates:
        net(torch.randn(2, 12))
    assert net.gating_layers == tuple(gates.states)


@pytest.mark.parametrize("net", [MLP((12, 8, 6, 4)), ResidualMLP(width=12, depth=4)])
def test_tap_points_exist(net):
    assert set(net.tap_points) <= set(layer_names(net))

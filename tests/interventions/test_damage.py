import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from netprism.interventions import cut_shortcut, damaged, insert_layer, narrow_layer, replace_layer
from netprism.nets import PreActResNet, ResNet


def test_a_layer_of_torchvision_is_replaced_and_the_rest_stays():
    model = resnet18().eval()
    before = model.layer1
    assert replace_layer(model, "layer1", nn.Identity()) is before
    x = torch.randn(1, 3, 64, 64)
    expected = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    assert torch.equal(model.layer1(expected), expected)
    assert model(x).shape == (1, 1000)


def test_a_function_gets_the_layer():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    replace_layer(model, "1", lambda old: nn.Linear(old.in_features, 7))
    assert model(torch.ones(1, 3)).shape == (1, 7)


def test_a_layer_is_put_behind_another():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU())
    x = torch.randn(2, 1, 8, 8)
    expected = nn.functional.max_pool2d(model[0](x), 2).relu()
    insert_layer(model, "0", nn.MaxPool2d(2))
    assert torch.equal(model(x), expected)


def test_a_narrow_layer_keeps_its_largest_filters_and_zeros_for_the_others():
    conv = nn.Conv2d(2, 5, 3, padding=1)
    with torch.no_grad():
        conv.weight.mul_(torch.tensor([1.0, 9.0, 0.1, 7.0, 8.0]).view(5, 1, 1, 1))
    model, x = nn.Sequential(conv), torch.randn(3, 2, 6, 6)
    expected = conv(x) * torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0]).view(1, 5, 1, 1)
    narrow_layer(model, "0", keep=0.6)
    torch.testing.assert_close(model(x), expected)
    assert model[0].conv.weight.shape == (3, 2, 3, 3)


def test_a_narrow_layer_with_the_filters_of_the_paper():
    model = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.ReLU())
    x = torch.randn(1, 8, 9, 9)
    narrow_layer(model, "0", keep=4, kernel_size=7)
    assert model(x).shape == (1, 16, 9, 9)
    assert model[0].conv.weight.shape == (4, 8, 7, 7)
    assert int((model[0](x).abs().amax(dim=(0, 2, 3)) > 0).sum()) == 4


@pytest.mark.parametrize("kind", [ResNet, PreActResNet])
def test_without_its_shortcut_a_block_is_its_main_path(kind):
    model, x = kind(depth=8, in_channels=1, width=2).eval(), torch.randn(2, 1, 8, 8)
    block, seen = model.layer2[0], {}
    last = block.bn2 if kind is ResNet else block.conv2
    last.register_forward_hook(lambda module, args, output: seen.update(main=output))
    block.register_forward_hook(lambda module, args, output: seen.update(block=output))
    names = set(model.state_dict())
    cut_shortcut(model, "layer2.0")
    model(x)
    assert torch.equal(seen["block"], seen["main"].relu() if kind is ResNet else seen["main"])
    assert set(model.state_dict()) == names


def test_shortcuts_of_torchvision_are_cut_where_shapes_change_and_where_not():
    model, x = resnet18(num_classes=3).eval(), torch.randn(1, 3, 32, 32)
    for name in ("layer1.0", "layer2.0"):
        block, seen = model.get_submodule(name), {}
        block.bn2.register_forward_hook(lambda module, args, output, seen=seen: seen.update(main=output.clone()))
        block.register_forward_hook(lambda module, args, output, seen=seen: seen.update(block=output))
        cut_shortcut(model, name)
        model(x)
        assert torch.equal(seen["block"], seen["main"].relu())


def test_a_damaged_network_can_be_trained():
    net = ResNet(depth=8, in_channels=1, width=2).requires_grad_(False)
    net = damaged(net, narrow=["layer2.0.conv2"], cut=["layer2.0"], pool=["layer1"])
    assert net.layer2(net.layer1(net.relu(net.bn1(net.conv1(torch.randn(2, 1, 16, 16)))))).shape == (2, 4, 4, 4)
    net(torch.randn(2, 1, 16, 16)).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "narrow, pool and cut are empty; expected names of layers"),
        ({"narrow": ["fc"]}, r"layer 'fc' is Linear\(.*; expected a convolution of one group"),
        ({"narrow": ["conv1"], "keep": 2.5}, "keep is 2.5; expected a fraction below 1, or 1 to 3 filters"),
        ({"narrow": ["conv1"], "keep": 4}, "keep is 4; expected"),
        ({"narrow": ["conv1"], "kernel_size": 2}, "kernel_size is 2; expected an odd number"),
        ({"cut": ["layer1"]}, "layer 'layer1' is a Sequential; expected a residual block with"),
    ],
)
def test_what_cannot_be_damaged_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        damaged(ResNet(depth=8, width=4), **options)


def test_bad_input_ends_in_one_line():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(2, 2), relu, nn.Linear(2, 2), relu)
    with pytest.raises(ValueError, match="has no layer 'fc'"):
        replace_layer(model, "fc", nn.ReLU())
    with pytest.raises(ValueError, match=r"is in 2 places \(1, 3\); expected one"):
        replace_layer(model, "1", nn.ReLU())

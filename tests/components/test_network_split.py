import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netprism.components.network_split import SplitNetwork, logits_of
from netprism.nets import MLP, LeNet5, PreActResNet, ResNet


def split_of(network, layer, x, head=None):
    split = SplitNetwork(network.eval(), layer, head)
    with torch.no_grad():
        split.find_head(x)
    return split


IMAGES = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layer", ["layer1", "layer2.0", "layer3", "layer3.0.relu#1", "conv1", "avgpool", "relu"])
@torch.no_grad()
def test_the_head_on_the_feature_gives_the_logits_of_the_network(layer):
    network = ResNet(8, width=4)
    split = split_of(network, layer, IMAGES)
    torch.testing.assert_close(split.head(split.feature(IMAGES)), network(IMAGES))


@torch.no_grad()
def test_a_residual_block_is_cut_before_its_last_relu():
    network = ResNet(8, width=4)
    block, inputs = network.eval().layer3[0], []
    block.relu.register_forward_pre_hook(lambda module, args: inputs.append(args[0].clone()))
    feature = split_of(network, "layer3", IMAGES).feature(IMAGES)
    assert torch.equal(feature, inputs[-1])
    assert feature.min() < 0
    behind = split_of(network, "layer3.0.relu#1", IMAGES).feature(IMAGES)
    assert torch.equal(behind, feature.relu()), "the activation's own module: behind it"


@torch.no_grad()
def test_a_block_that_ends_otherwise_is_cut_at_its_output():
    network = PreActResNet(8, width=4).eval()
    outputs = []
    network.layer3.register_forward_hook(lambda module, args, output: outputs.append(output.clone()))
    assert torch.equal(split_of(network, "layer3", IMAGES).feature(IMAGES), outputs[-1])


class Functional(nn.Module):
    """Functional ReLUs in place, and a head that asks the input for the batch size."""

    def __init__(self):
        super().__init__()
        self.block = Block()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        feature = self.block(x)
        return {"logits": self.fc(feature.mean((2, 3)).view(x.shape[0], -1))}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        y = self.conv(F.relu(x))
        return F.relu(y + 1, inplace=True)


@torch.no_grad()
def test_functional_relus_in_place_and_a_head_that_asks_for_the_batch_size():
    network = Functional()
    split = split_of(network, "block", IMAGES)
    feature = split.feature(IMAGES)
    torch.testing.assert_close(feature, network.block.conv(IMAGES.relu()) + 1)
    kept = feature.clone()
    torch.testing.assert_close(split.head(feature[:2]), network(IMAGES[:2])["logits"])
    assert torch.equal(feature, kept), "the head does not overwrite what it is given"


class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.around, self.fc = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.fc(self.inner(x) + self.around(x))


def test_a_head_that_cannot_be_found_says_how_to_name_it():
    with pytest.raises(ValueError, match=r"the head cannot be found: Around .* layer 'inner'; .* head=\[\"avgpool\""):
        split_of(Around(), "inner", torch.randn(3, 6))
    split_of(Around(), "fc", torch.randn(3, 6))


@torch.no_grad()
def test_a_head_by_the_names_of_its_modules_or_as_a_module():
    network = ResNet(8, width=4)
    x = IMAGES
    for head in (["avgpool", "fc"], nn.Sequential(network.avgpool, nn.Flatten(), network.fc)):
        split = split_of(network, "layer3", x, head)
        torch.testing.assert_close(split.head(split.feature(x)), network(x))
    with pytest.raises(ValueError, match=r"the head \['fc'\] makes other logits of layer 'layer2'"):
        split_of(network, "layer2", x, ["fc"])
    with pytest.raises(ValueError, match="ResNet has no module 'pool' for its head"):
        split_of(network, "layer3", x, ["pool", "fc"])


@torch.no_grad()
def test_vectors_and_the_networks_of_the_house():
    x = torch.randn(4, 64)
    mlp = MLP((64, 16, 8, 3))
    split = split_of(mlp, "fc2", x)
    assert split.feature(x).shape == (4, 8)
    torch.testing.assert_close(split.head(split.feature(x)), mlp(x))
    digits = torch.randn(4, 1, 28, 28)
    lenet = LeNet5().eval()
    split = split_of(lenet, lenet.tap_points[1], digits)
    torch.testing.assert_close(split.head(split.feature(digits)), lenet(digits))


def test_gradients_flow_through_the_head_and_nothing_is_left_behind():
    network = ResNet(8, width=4)
    split = split_of(network, "layer3", IMAGES)
    feature = split.feature(IMAGES).requires_grad_()
    split.head(feature).sum().backward()
    assert feature.grad.abs().sum() > 0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_bad_layers_are_named():
    with pytest.raises(ValueError, match=r"ResNet has no layer 'layer4', did you mean 'layer\d'\? it has conv1, bn1"):
        split_of(ResNet(8, width=4), "layer4", IMAGES)

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.two = Two()

        def forward(self, x):
            return self.two(x)[0]

    class Two(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(TypeError, match=r"layer 'two' returns tuple of \(Tensor, Tensor\), not one tensor"):
        split_of(Pair(), "two", IMAGES)
    with pytest.raises(RuntimeError, match="call find_head first"):
        SplitNetwork(ResNet(8, width=4), "layer3").head(torch.zeros(1))
    with pytest.raises(TypeError, match="returns tuple without logits"):
        logits_of((1, 2))

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netprism.components.network_split import SplitNetwork, logits_of
from netprism.nets import MLP, LeNet5, PreActResNet, ResNet


def cut_of(network, layer, x, head=None):
    cut = SplitNetwork(network.eval(), layer, head)
    with torch.no_grad():
        cut.find_head(x)
    return cut


IMAGES = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layer", ["layer1", "layer2.0", "layer3", "layer3.0.relu#1", "conv1", "avgpool", "relu"])
@torch.no_grad()
def test_the_head_on_the_feature_gives_the_logits_of_the_network(layer):
    network = ResNet(8, width=4)
    cut = cut_of(network, layer, IMAGES)
    torch.testing.assert_close(cut.head(cut.feature(IMAGES)), network(IMAGES))


@torch.no_grad()
def test_a_residual_block_is_cut_before_its_last_relu():
    network = ResNet(8, width=4)
    block, inputs = network.eval().layer3[0], []
    block.relu.register_forward_pre_hook(lambda module, args: inputs.append(args[0].clone()))
    feature = cut_of(network, "layer3", IMAGES).feature(IMAGES)
    assert torch.equal(feature, inputs[-1])
    assert feature.min() < 0
    behind = cut_of(network, "layer3.0.relu#1", IMAGES).feature(IMAGES)
    assert torch.equal(behind, feature.relu()), "the activation's own module: behind it"


@torch.no_grad()
def test_a_block_that_ends_otherwise_is_cut_at_its_output():
    network = PreActResNet(8, width=4).eval()
    outputs = []
    network.layer3.register_forward_hook(lambda module, args, output: outputs.append(output.clone()))
    assert torch.equal(cut_of(network, "layer3", IMAGES).feature(IMAGES), outputs[-1])


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
    cut = cut_of(network, "block", IMAGES)
    feature = cut.feature(IMAGES)
    torch.testing.assert_close(feature, network.block.conv(IMAGES.relu()) + 1)
    kept = feature.clone()
    torch.testing.assert_close(cut.head(feature[:2]), network(IMAGES[:2])["logits"])
    assert torch.equal(feature, kept), "the head does not overwrite what it is given"


class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.around, self.fc = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.fc(self.inner(x) + self.around(x))


def test_a_head_that_cannot_be_found_says_how_to_name_it():
    with pytest.raises(ValueError, match=r"the head cannot be found: Around .* layer 'inner'; .* head=\[\"avgpool\""):
        cut_of(Around(), "inner", torch.randn(3, 6))
    cut_of(Around(), "fc", torch.randn(3, 6))


@torch.no_grad()
def test_a_head_by_the_names_of_its_modules_or_as_a_module():
    network = ResNet(8, width=4)
    x = IMAGES
    for head in (["avgpool", "fc"], nn.Sequential(network.avgpool, nn.Flatten(), network.fc)):
        cut = cut_of(network, "layer3", x, head)
        torch.testing.assert_close(cut.head(cut.feature(x)), network(x))
    with pytest.raises(ValueError, match=r"head is \['fc'\]; expected one that makes the logits of ResNet of 'layer2'"):
        cut_of(network, "layer2", x, ["fc"])
    with pytest.raises(ValueError, match="ResNet has no layer 'pool', did you mean 'avgpool'"):
        cut_of(network, "layer3", x, ["pool", "fc"])


@torch.no_grad()
def test_vectors_and_the_networks_of_the_house():
    x = torch.randn(4, 64)
    mlp = MLP((64, 16, 8, 3))
    cut = cut_of(mlp, "fc2", x)
    assert cut.feature(x).shape == (4, 8)
    torch.testing.assert_close(cut.head(cut.feature(x)), mlp(x))
    digits = torch.randn(4, 1, 28, 28)
    lenet = LeNet5().eval()
    cut = cut_of(lenet, lenet.tap_points[1], digits)
    torch.testing.assert_close(cut.head(cut.feature(digits)), lenet(digits))


def test_gradients_flow_through_the_head_and_nothing_is_left_behind():
    network = ResNet(8, width=4)
    cut = cut_of(network, "layer3", IMAGES)
    feature = cut.feature(IMAGES).requires_grad_()
    cut.head(feature).sum().backward()
    assert feature.grad.abs().sum() > 0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_bad_layers_are_named():
    with pytest.raises(ValueError, match=r"ResNet has no layer 'layer4', did you mean 'layer\d'\? it has conv1, bn1"):
        cut_of(ResNet(8, width=4), "layer4", IMAGES)
    with pytest.raises(RuntimeError, match="call find_head first"):
        SplitNetwork(ResNet(8, width=4), "layer3").head(torch.zeros(1))
    with pytest.raises(TypeError, match="returns tuple without logits"):
        logits_of((1, 2))


@torch.no_grad()
def test_a_head_that_begins_with_a_relu_in_place_leaves_the_feature():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3072, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    cut = cut_of(network, "1", IMAGES)
    feature = cut.feature(IMAGES)
    kept = feature.clone()
    torch.testing.assert_close(cut.head(feature), network(IMAGES))
    assert torch.equal(feature, kept)
    assert (kept < 0).any()

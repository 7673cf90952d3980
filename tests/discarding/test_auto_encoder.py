import pytest
import torch

from netprism.discarding import AutoEncoder
from netprism.nets import ResNet


def test_what_lies_before_the_layer_and_the_decoder_are_trained():
    encoder = ResNet(depth=8, in_channels=1, width=2).requires_grad_(False).eval()  # as `trained` gives it
    net = AutoEncoder(encoder, "layer2", (1, 8, 8), width=2, blocks=1)
    net(torch.randn(3, 1, 8, 8)).square().sum().backward()
    for name, parameter in net.named_parameters():
        behind = name.startswith(("encoder.layer3", "encoder.fc"))
        assert parameter.requires_grad is not behind
        assert (parameter.grad is None) is behind
    assert net.tap_points == ("encoder.relu", "encoder.layer1", "encoder.layer2")


def test_the_encoder_is_in_the_mode_of_the_whole():
    net = AutoEncoder(ResNet(depth=8, in_channels=1, width=2), "layer3", (1, 8, 8), width=2, blocks=1)
    assert int(net.encoder.bn1.num_batches_tracked) == 0  # what it was tried on has left no trace
    net.eval()(torch.randn(2, 1, 8, 8))
    assert int(net.encoder.bn1.num_batches_tracked) == 0
    net.train()(torch.randn(2, 1, 8, 8))
    assert int(net.encoder.bn1.num_batches_tracked) == 1


def test_a_layer_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="has no layer 'layer9'"):
        AutoEncoder(ResNet(depth=8, in_channels=1, width=2), "layer9", (1, 8, 8))

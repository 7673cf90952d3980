import pytest
import torch
from torch import nn

from netprism.discarding.decoder import Decoder


@pytest.mark.parametrize(
    ("features", "image", "doubling"),
    [
        ((64, 8, 8), (1, 32, 32), 2),
        ((16, 32, 32), (3, 32, 32), 0),
        ((64, 2, 2), (3, 32, 32), 4),
        ((8, 64, 64), (3, 32, 32), 0),  # an upsampling layer
        ((10,), (1, 32, 32), 4),
        ((64, 1, 1), (3, 32, 32), 4),
        ((16, 5, 5), (1, 28, 28), 3),  # LeNet-5: 28 / 5 is no power of two
        ((4, 4, 8), (3, 16, 32), 2),
        ((10,), (3, 20, 34), 4),
        ((2, 1, 3), (1, 200, 600), 6),  # no block is left for the seventh doubling
    ],
)
def test_comes_back_to_the_size_of_the_image(features, image, doubling):
    decoder = Decoder(features, image, width=2)
    assert decoder(torch.zeros(2, *features)).shape == (2, *image)
    assert [block.doubles for block in decoder.blocks] == [True] * doubling + [False] * (6 - doubling)


def test_a_doubling_block_has_transposed_convolutions_on_both_tracks():
    decoder = Decoder((8, 8, 8), (1, 16, 16), width=4)
    kinds = [[type(track) for track in (block.conv1, block.shortcut)] for block in decoder.blocks]
    assert kinds == [[nn.ConvTranspose2d] * 2] + [[nn.Conv2d, nn.Identity]] * 5


def test_channels_are_those_of_the_full_size_times_two_times_four():
    decoder = Decoder((64, 4, 4), (3, 32, 32), width=3, blocks=5)
    assert [block.conv2.out_channels for block in decoder.blocks] == [12, 6, 3, 3, 3]


def test_every_feature_reaches_every_pixel_it_should():
    decoder = Decoder((2, 4, 4), (1, 16, 16), width=4).eval()
    features = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (gradient,) = torch.autograd.grad(decoder(features).sum(), features)
    assert (gradient != 0).all()


def test_can_learn_to_be_exact():
    torch.manual_seed(0)
    images = torch.randn(8, 1, 8, 8)
    features = torch.nn.functional.pixel_unshuffle(images, 2)  # nothing is lost, only moved
    decoder = Decoder((4, 4, 4), (1, 8, 8), width=16)
    optimizer = torch.optim.Adam(decoder.parameters(), 0.01)
    for _ in range(150):
        optimizer.zero_grad()
        loss = (decoder(features) - images).square().mean()
        loss.backward()
        optimizer.step()
    assert loss < 0.05


def test_features_of_another_layer_are_refused():
    message = r"^a decoder of features \(8, 4, 4\) was given \(8, 2, 2\), another layer's\?$"
    with pytest.raises(ValueError, match=message):
        Decoder((8, 4, 4), (1, 8, 8), width=2)(torch.zeros(1, 8, 2, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"feature_shape": (17, 8)}, r"^features of an image have the shape \(17, 8\); expected \(C, H, W\)"),
        ({"feature_shape": (0,)}, r"^features of an image have the shape \(0,\)"),
        ({"input_shape": (8, 8)}, r"^images have the shape \(8, 8\); expected \(C, H, W\)$"),
        ({"blocks": 0}, r"^width is 32 and blocks is 0; both must be at least 1$"),
        ({"width": 0}, r"^width is 0 and blocks is 6"),
    ],
)
def test_impossible_shapes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Decoder(**{"feature_shape": (8, 4, 4), "input_shape": (1, 8, 8)} | arguments)


def test_the_scale_of_the_features_does_not_matter():
    torch.manual_seed(0)
    decoder, features = Decoder((4, 4, 4), (1, 8, 8), width=4), torch.randn(16, 4, 4, 4)
    torch.testing.assert_close(decoder(1000 * features), decoder(features), atol=1e-3, rtol=1e-3)

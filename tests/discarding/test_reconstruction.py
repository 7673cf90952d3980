import math

import pytest
import torch
from reference.reconstruction import entropies, largest, matrices
from torch import nn

from netprism.discarding.decoder import Decoder
from netprism.discarding.reconstruction import GAUSSIAN, SMALLEST_ERROR, reconstruction_uncertainty
from netprism.discarding.reconstruction import reconstruction_uncertainty as from_discarding

ALPHA = 1.5e-4
ARGUMENTS = {"alpha": ALPHA, "seed": 3}


def linear(matrix):
    """A layer that multiplies by a matrix."""
    matrix = torch.as_tensor(matrix)
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, dtype=matrix.dtype)
    with torch.no_grad():
        layer.weight.copy_(matrix)
    return layer


def network(*layers):
    return nn.Sequential(*layers)


@pytest.fixture
def random():
    return torch.Generator().manual_seed(0)


class Smooth(nn.Module):
    """Two convolutions on 1 x 5 x 5 pixels; the features are 6 x 3 x 3."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3)

    def forward(self, x):
        return self.conv2(torch.tanh(self.conv1(x))).flatten(1)


@pytest.fixture
def smooth():
    """A small network, a decoder of its second convolution that is far from perfect, and images; float64."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        decoder = nn.Sequential(nn.ConvTranspose2d(6, 4, 3), nn.Tanh(), nn.Conv2d(4, 1, 3, padding=1))
        return Smooth().double(), decoder.double(), torch.randn(3, 1, 5, 5, dtype=torch.float64)


def test_an_invertible_pair_gives_the_entropy_that_sigma_implies(random):
    matrix = torch.randn(12, 12, generator=random)
    images = torch.randn(4, 12, generator=random)
    found = reconstruction_uncertainty(
        network(linear(matrix)), "0", linear(matrix.inverse()), images, num_vjps=4096, **ARGUMENTS
    )
    # what comes back is the noisy input itself: H_i = log sigma_i + C, and the best sigma is that of the SID
    torch.testing.assert_close(found.entropy_map, found.sigma.log() + GAUSSIAN, atol=1e-3, rtol=0)
    closed_form = (ALPHA * matrix.square().sum() / 12 / matrix.square().sum(0)).log() / 2 + GAUSSIAN
    assert (found.entropy_map - closed_form).mean(0).abs().mean() < 0.02
    assert found.mse.max() < 1e-9


@pytest.mark.parametrize("method", ["linear", "optimized"])
def test_equal_sensitivity_gives_half_log_alpha(method):
    model = network(linear(3 * torch.eye(64)))
    found = reconstruction_uncertainty(model, "0", linear(torch.eye(64) / 3), torch.zeros(2, 64), method=method)
    assert found.entropy_map.shape == (2, 64)
    assert found.mean.tolist() == pytest.approx([-2.983, -2.983], abs=0.02)
    assert found.ratio.tolist() == pytest.approx([1, 1], abs=0.05)


def test_the_sum_of_all_pixels_gives_none_of_them_back():
    """The example of the paper: both pixels become (x1 + x2) / 2. E = budget / 4 = alpha / 2, whatever the noise."""
    model, decoder = network(linear([[1.0, 1.0]])), linear([[0.5], [0.5]])
    images = torch.tensor([[0.3, 0.1], [0.5, 0.5]])
    around_reconstruction = ALPHA / 2
    around_input = torch.tensor([0.1**2, 0.0]) + around_reconstruction
    for center, errors in (("reconstruction", torch.tensor([around_reconstruction] * 2)), ("input", around_input)):
        found = reconstruction_uncertainty(
            model, "0", decoder, images, center=center, noise_samples=512, chunk_size=512, **ARGUMENTS
        )
        expected = (errors.log() / 2 + GAUSSIAN)[:, None].expand(2, 2)
        torch.testing.assert_close(found.entropy_map, expected, atol=0.04, rtol=0)
    assert found.mse.tolist() == pytest.approx([0.01, 0], abs=1e-6)


@pytest.mark.parametrize("center", ["input", "reconstruction"])
def test_finds_the_largest_entropy_that_there_is(smooth, center):
    model, decoder, images = smooth
    found = reconstruction_uncertainty(
        model,
        "conv2",
        decoder,
        images,
        center=center,
        num_vjps=256,
        noise_samples=64,
        chunk_size=256,
        steps=16,
        **ARGUMENTS,
    )

    def encode(x):
        return model.conv2(torch.tanh(model.conv1(x)))

    pairs = [matrices(encode, decoder, image) for image in images]
    budget = ALPHA * sum(J.square().sum() for J, _ in pairs) / len(pairs)
    for number, (J, B) in enumerate(pairs):
        bias = (images[number] - decoder(encode(images[number][None]))[0]).detach().flatten()
        bias = bias if center == "input" else torch.zeros_like(bias)
        best, missing = largest(J, B, bias, budget)
        assert missing < 1e-3
        assert found.mean[number] == pytest.approx(best, abs=0.05)
        # and the map is what these sigma do, image by image and pixel by pixel
        expected = entropies(found.sigma[number].flatten(), B, bias)
        torch.testing.assert_close(found.entropy_map[number].flatten(), expected, atol=0.35, rtol=0)
        assert (found.entropy_map[number].flatten() - expected).mean().abs() < 0.02


def test_expectation_maximisation_beats_the_noise_of_the_strict_discarding(smooth):
    model, decoder, images = smooth
    means = [
        reconstruction_uncertainty(
            model, "conv2", decoder, images, center="reconstruction", steps=steps, noise_samples=64, **ARGUMENTS
        ).mean.mean()
        for steps in (0, 1, 8)
    ]
    assert means[0] + 0.02 < means[1] < means[2] - 0.02


def test_optimized_is_no_worse_and_keeps_the_constraint(smooth):
    model, decoder, images = smooth
    linear_one, optimized = (
        reconstruction_uncertainty(
            model, "conv2", decoder, images, method=method, center="reconstruction", noise_samples=32, **ARGUMENTS
        )
        for method in ("linear", "optimized")
    )
    assert (optimized.mean > linear_one.mean - 0.05).all()
    for found in (linear_one, optimized):
        assert (found.ratio - 1).abs().max() < 0.2  # 32 noises on 54 features, to rescale and to measure
        assert (found.ratio.mean() - 1).abs() < 0.1


@pytest.mark.parametrize("method", ["linear", "optimized"])
def test_scaling_a_layer_changes_nothing(method):
    """conv1 / 4 and conv2 * 4 leave conv2's features as they are, the decoder of conv1 takes 4 times its own."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = network(nn.Conv2d(1, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 6, 3, bias=False)).eval()
        decoders = {"0": nn.ConvTranspose2d(4, 1, 3, bias=False), "2": nn.ConvTranspose2d(6, 1, 5, bias=False)}
        images = torch.randn(2, 1, 6, 6)

    def measure():
        return {
            layer: reconstruction_uncertainty(model, layer, decoder, images, method=method, **ARGUMENTS)
            for layer, decoder in decoders.items()
        }

    before = measure()
    with torch.no_grad():
        model[0].weight /= 4
        model[2].weight *= 4
        decoders["0"].weight *= 4
    after = measure()
    for layer in decoders:
        torch.testing.assert_close(after[layer].entropy_map, before[layer].entropy_map, atol=1e-3, rtol=0)


def test_noise_of_few_draws_has_the_moments_of_many(smooth):
    """A perfect pair again: with 2 noises the unit's own noise must not be taken for another size than it has."""
    model = network(linear(torch.eye(9)))
    found = reconstruction_uncertainty(model, "0", linear(torch.eye(9)), torch.zeros(1, 9), noise_samples=2, steps=0)
    torch.testing.assert_close(found.entropy_map, found.sigma.log() + GAUSSIAN, atol=1e-4, rtol=0)


def test_units_at_the_cap_leave_their_budget_to_the_others():
    model = network(linear(torch.diag(torch.tensor([1.0, 1.0, 1e-3]))))
    decoder = linear(torch.diag(torch.tensor([1.0, 1.0, 1e3])))
    found = reconstruction_uncertainty(
        model, "0", decoder, torch.zeros(1, 3), alpha=0.05, scale=2.0, max_sigma=0.5, num_vjps=4096, noise_samples=256
    )
    # a third of .1 each would be sigma = .18, .18, 183
    assert found.sigma[0].tolist() == pytest.approx([math.sqrt(0.05), math.sqrt(0.05), 0.5], rel=0.03)
    assert found.ratio.item() == pytest.approx(1, abs=0.1)


def test_a_unit_that_the_layer_does_not_see_gets_no_noise():
    model, decoder = network(linear([[1.0, 0.0]])), linear([[1.0], [0.0]])
    found = reconstruction_uncertainty(model, "0", decoder, torch.tensor([[0.5, 0.0]]), center="reconstruction")
    assert found.sigma[0, 1] == 0
    assert found.entropy_map[0, 1].item() == pytest.approx(0.5 * math.log(SMALLEST_ERROR) + GAUSSIAN)
    assert found.entropy_map[0, 0].item() == pytest.approx(0.5 * math.log(ALPHA) + GAUSSIAN, abs=0.05)


@pytest.mark.parametrize("method", ["linear", "optimized"])
def test_an_image_at_which_the_layer_is_dead_keeps_what_the_decoder_cannot_rebuild(method):
    model, decoder = network(linear(torch.eye(2)), nn.ReLU()), linear(torch.eye(2))
    images = torch.tensor([[-30.0, -20.0], [3.0, 2.0]])
    found = reconstruction_uncertainty(model, "1", decoder, images, method=method)
    assert found.ratio[0] == 0
    assert found.entropy_map[0].tolist() == pytest.approx([math.log(30) + GAUSSIAN, math.log(20) + GAUSSIAN])


def small():
    """A network with BatchNorm and Dropout in train mode, a decoder likewise, and images."""
    model = network(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.MaxPool2d(2))
    return model, Decoder((4, 4, 4), (3, 8, 8), width=2), torch.randn(3, 3, 8, 8)


def snapshot(*modules):
    return [
        (flag, value.clone(), parameter)
        for module in modules
        for flag in [[m.training for m in module.modules()]]
        for name, value in module.state_dict().items()
        for parameter in [dict(module.named_parameters()).get(name)]
    ]


@pytest.mark.parametrize("method", ["linear", "optimized"])
def test_leaves_no_trace(method):
    model, decoder, images = small()
    model[0].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before, state = snapshot(model, decoder), torch.get_rng_state()
    found = reconstruction_uncertainty(model, "4", decoder, images, method=method, num_vjps=4, noise_samples=2)
    with pytest.raises(ValueError, match="rebuilds"):
        reconstruction_uncertainty(model, "4", nn.Identity(), images, num_vjps=4, noise_samples=2)
    after = snapshot(model, decoder)
    assert torch.equal(torch.get_rng_state(), state)
    for (flags, value, parameter), (flags_after, value_after, _) in zip(before, after, strict=True):
        assert flags == flags_after
        assert torch.equal(value, value_after)
        if parameter is not None:
            assert parameter.requires_grad
            assert parameter.grad is None or torch.equal(parameter.grad, torch.ones_like(parameter))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any(value.requires_grad for value in vars(found).values())


def test_the_same_seed_gives_the_same_bits_and_another_one_does_not():
    model, decoder, images = small()
    first, again, other = (
        reconstruction_uncertainty(model, "4", decoder, images, seed=seed, num_vjps=8, noise_samples=4)
        for seed in (0, 0, 1)
    )
    assert torch.equal(first.entropy_map, again.entropy_map)
    assert not torch.equal(first.entropy_map, other.entropy_map)
    torch.testing.assert_close(first.mean, other.mean, atol=0.3, rtol=0)


@pytest.mark.parametrize("method", ["linear", "optimized"])
def test_no_pass_has_more_rows_than_the_chunk(method):
    model, decoder, images = small()
    rows = []
    model.register_forward_hook(lambda *args: rows.append(len(args[2])))
    decoder.register_forward_hook(lambda *args: rows.append(len(args[2])))
    whole = reconstruction_uncertainty(model, "4", decoder, images, method=method, noise_samples=8, scale=2.0)
    assert 24 <= max(rows) <= 64
    rows.clear()
    parts = reconstruction_uncertainty(
        model, "4", decoder, images, method=method, noise_samples=8, scale=2.0, chunk_size=8
    )
    assert max(rows) == 8
    torch.testing.assert_close(whole.mean, parts.mean, atol=0.1, rtol=0)


def test_works_in_inference_mode_and_under_autocast():
    model, decoder, images = small()
    expected = reconstruction_uncertainty(model, "4", decoder, images, num_vjps=4, noise_samples=2)
    with torch.inference_mode():
        inside = reconstruction_uncertainty(model, "4", decoder, images.clone(), num_vjps=4, noise_samples=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = reconstruction_uncertainty(model, "4", decoder, images, num_vjps=4, noise_samples=2)
    assert torch.equal(inside.entropy_map, expected.entropy_map)
    assert torch.equal(autocast.entropy_map, expected.entropy_map)


def test_one_image():
    model, decoder, images = small()
    found = reconstruction_uncertainty(model, "4", decoder, images[:1], num_vjps=4, noise_samples=2)
    assert (found.entropy_map.shape, found.mean.shape, found.ratio.shape) == ((1, 3, 8, 8), (1,), (1,))
    torch.testing.assert_close(found.mean, found.entropy_map.mean((1, 2, 3)))


def test_is_part_of_the_discarding_functions():
    assert from_discarding is reconstruction_uncertainty


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"method": "exact"}, ValueError, "^method is 'exact'; expected 'linear' or 'optimized'$"),
        ({"center": "x"}, ValueError, "^center is 'x'; expected 'input' or 'reconstruction'$"),
        ({"noise_samples": 1}, ValueError, "^noise_samples is 1; expected a number >= 2$"),
        ({"steps": -1}, ValueError, "^steps is -1; expected a number >= 0$"),
        ({"chunk_size": 0}, ValueError, "^chunk_size is 0; expected a number >= 1$"),
        ({"layer": "7"}, ValueError, "has no layer '7'"),
        ({"x": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, TypeError, "images are torch.uint8"),
        (
            {"x": torch.full((2, 3, 8, 8), torch.nan)},
            ValueError,
            "^images hold NaN or infinity; expected finite values$",
        ),
        ({"decoder": Decoder((8, 4, 4), (3, 8, 8), width=1)}, ValueError, "a decoder of features .8, 4, 4. was given"),
        (
            {"decoder": Decoder((4, 4, 4), (3, 16, 16), width=1)},
            ValueError,
            r"^the decoder of layer '4' rebuilds \(3, 16, 16\); expected \(3, 8, 8\), as the images are$",
        ),
        (
            {"scale": 0.0},
            ValueError,
            "^delta_f.2 of layer '4' is 0.0; expected a number > 0: no image reaches the layer$",
        ),
    ],
)
def test_bad_input_is_named(change, error, message):
    model, decoder, images = small()
    arguments = {"model": model, "layer": "4", "decoder": decoder, "x": images, "num_vjps": 2, "noise_samples": 2}
    with pytest.raises(error, match=message):
        reconstruction_uncertainty(**arguments | change)

import copy
import math

import pytest
import torch
from reference import discarding as reference
from torch import nn

from netprism.discarding.concentration import concentration
from netprism.discarding.layer_view import LayerView
from netprism.discarding.noise import MOST_NOISES, feature_change, optimize_sigma, water_filling_sigma
from netprism.discarding.sensitivity import column_norms, feature_scale, jacobian_norms
from netprism.discarding.sid import ALPHA, strict_information_discarding

UNIFORM = -2.983  # 1/2 log alpha + C


@pytest.fixture(autouse=True)
def few_noises(monkeypatch):
    """Ratios need not be exact in most tests here."""
    monkeypatch.setattr("netprism.discarding.sid.MOST_NOISES", 200)


class Scaled(nn.Module):
    """f_i = w_i x_i: every column norm is w_i^2."""

    def __init__(self, weights):
        super().__init__()
        self.register_buffer("weights", weights)

    def forward(self, x):
        return x * self.weights


class Half(nn.Module):
    """Reads the left half of the image only."""

    def forward(self, x):
        return x[..., : x.shape[-1] // 2].flatten(1)


class Blind(nn.Module):
    """Does not depend on its input, in two ways that autograd tells apart."""

    def __init__(self, connected):
        super().__init__()
        self.connected = connected
        self.constant = nn.Parameter(torch.ones(3))
        self.out = nn.Identity()

    def forward(self, x):
        rows = self.constant.expand(len(x), 3)
        return self.out(rows + (x.flatten(1)[:, :1] * 0 if self.connected else 0))


def convnet(seed=0, channels=2):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.Tanh(), nn.Flatten(),
        nn.Linear(72, 5),
    )  # fmt: skip


def images(count=3, channels=2, size=8, seed=0):
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def linear(seed=0, inputs=12, outputs=30):
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(inputs, outputs)
    scales = torch.logspace(-1, 1, inputs)  # columns of very different size
    with torch.no_grad():
        layer.weight.copy_(torch.randn(outputs, inputs, generator=generator) * scales)
    return nn.Sequential(layer)


# The Jacobian


@pytest.mark.parametrize("layer", ["0", "3", "5"])
def test_column_norms_are_those_of_the_whole_jacobian(layer):
    model, x = convnet(), images(2)
    num_vjps = 3000
    norms = column_norms(LayerView(model, layer, 1), x, num_vjps=num_vjps)[layer]
    assert norms.shape == (1, *x.shape)
    part = copy.deepcopy(model[: int(layer) + 1]).double()
    for estimate, image in zip(norms[0], x, strict=True):
        exact = torch.from_numpy(reference.column_norms(part, image))
        error = (estimate / exact - 1).flatten()
        assert error.abs().max() < 5.5 * math.sqrt(2 / num_vjps)
        assert error.square().mean().sqrt() == pytest.approx(math.sqrt(2 / num_vjps), rel=0.2)


def test_groups_share_the_products_and_average_to_the_whole():
    model, x = convnet(), images(2)
    whole = column_norms(LayerView(model, ["3"]), x, num_vjps=6)["3"]
    groups = column_norms(LayerView(model, ["3"]), x, num_vjps=6, groups=3)["3"]
    torch.testing.assert_close(groups.mean(0, keepdim=True), whole)
    assert not torch.allclose(groups[0], groups[1])


def test_the_feature_scale_is_the_mean_squared_jacobian_over_all_images():
    model, x = convnet(), images(5)
    part = copy.deepcopy(model[:4]).double()
    exact = sum(reference.column_norms(part, image).sum() for image in x) / len(x)
    batches = [(x[:2], torch.zeros(2)), (x[2:], torch.zeros(3))]
    assert feature_scale(LayerView(model, "3"), batches, num_vjps=500)["3"] == pytest.approx(exact, rel=0.02)
    assert jacobian_norms(LayerView(model, "3"), x, num_vjps=500)["3"].mean() == pytest.approx(exact, rel=0.02)
    finite = [feature_change(LayerView(model, "3"), x, torch.full_like(x, 1e-3), noise_samples=400).mean() / 1e-6]
    assert finite[0] == pytest.approx(exact, rel=0.05)
    with pytest.raises(ValueError, match="hold no image"):
        feature_scale(LayerView(model, "3"), [])


def test_several_layers_share_one_forward_pass_in_chunks():
    model, rows = convnet(), []
    model[0].register_forward_hook(lambda module, args, output: rows.append(len(output)))
    column_norms(LayerView(model, ["0", "3", "5"], 2), images(5), num_vjps=2)
    assert rows == [2, 2, 1]


def test_no_pass_is_larger_than_the_chunk_size():
    model, rows = convnet(), []
    model[0].register_forward_hook(lambda module, args, output: rows.append(len(output)))
    options = {"noise_samples": 4, "chunk_size": 8, "num_vjps": 2, "steps": 2}
    strict_information_discarding(model, "3", images(5), method="optimized", **options)
    assert max(rows) == 8


# Sigma


@pytest.mark.parametrize("cap", [1e9, 1.0, 0.3, 0.01])
def test_closed_form_fills_up_to_the_cap(cap):
    generator = torch.Generator().manual_seed(1)
    norms = torch.rand(4, 9, generator=generator, dtype=torch.float64) ** 6
    found = water_filling_sigma(norms, budget=0.5, max_sigma=cap)
    for row, expected in zip(found, norms, strict=True):
        torch.testing.assert_close(row, torch.from_numpy(reference.sigma(expected, 0.5, cap)))
    used = (found.square() * norms).sum(1)
    assert used.max() <= 0.5 + 1e-12
    assert ((used > 0.5 - 1e-9) | (found == cap).all(1)).all()


def test_without_a_cap_in_reach_it_is_the_formula_of_the_paper():
    norms = torch.rand(2, 3, 4, 4) + 0.1
    expected = (0.01 / (48 * norms.double())).sqrt()
    torch.testing.assert_close(water_filling_sigma(norms, 0.01, max_sigma=10.0), expected)


@pytest.mark.parametrize("method", ["linear", "optimized"])
def test_a_linear_layer_of_known_weights(method):
    model, x = linear(), torch.randn(4, 12)
    norms = model[0].weight.detach().double().square().sum(0)
    expected = reference.entropy(reference.sigma(norms, ALPHA * norms.sum().item()))
    sid = strict_information_discarding(
        model, "0", x, method=method, num_vjps=4000, noise_samples=128, steps=40, chunk_size=1024
    )
    assert (sid.entropy_map - torch.from_numpy(expected)).abs().mean() < 0.02
    torch.testing.assert_close(sid.mean, sid.entropy_map.mean(1))
    assert sid.scale == pytest.approx(norms.sum().item(), rel=0.02)
    sharp = feature_change(LayerView(model, "0"), x, sid.sigma, noise_samples=4000) / (ALPHA * sid.scale)
    assert (sharp - 1).abs().max() < 0.05


def test_uniform_sensitivity():
    model = nn.Sequential(Scaled(torch.full((1, 100, 100), 7.0)))
    sid = strict_information_discarding(model, "0", torch.randn(1, 1, 100, 100), num_vjps=64)
    assert sid.mean.item() == pytest.approx(UNIFORM, abs=0.005)
    assert sid.entropy_map.std().item() == pytest.approx(1 / math.sqrt(2 * 64), rel=0.1)


class Flip(nn.Module):
    """Changes the sign of all units but the first where the first is positive: it can be undone, and turns no angle."""

    def forward(self, x):
        return torch.cat([x[:, :1], torch.where(x[:, :1] > 0, -x[:, 1:], x[:, 1:])], dim=1)


def test_an_invertible_network_discards_nothing_until_it_makes_units_small():
    generator = torch.Generator().manual_seed(0)
    turns = [nn.Linear(64, 64) for _ in range(3)]
    for turn in turns:
        nn.init.orthogonal_(turn.weight, generator=generator)
    whole = nn.Sequential(turns[0], Flip(), turns[1], Flip(), turns[2])
    # Halved units can be doubled again, but noise on them moves the features less: Ma et al. 2019, appendix B. The
    # entropy of the largest noise grows by half the log of arithmetic over geometric mean of the squares, 1 and 1/4.
    halved = nn.Sequential(Scaled(torch.tensor([0.5, 1.0]).repeat(32)), *whole)
    for model, excess in ((whole, 0.0), (halved, 0.5 * math.log((1 + 0.25) / 2 / 0.5))):
        layers = [str(i) for i in range(len(model))]
        x = torch.randn(8, 64, generator=generator)
        found = strict_information_discarding(model, layers, x, num_vjps=128, measure_ratio=False)
        assert all(abs(sid.mean.mean() - UNIFORM - excess) < 0.01 for sid in found.values())


@pytest.mark.parametrize("num_vjps", [2, 8, 10])
def test_few_products_are_noisy_but_not_biased(num_vjps):
    """The plain logarithm of a mean of 8 squares would be 1 / 16 nats too high."""
    model, x = nn.Sequential(Scaled(torch.ones(40_000))), torch.zeros(1, 40_000)
    options = {"num_vjps": num_vjps, "scale": 40_000.0, "max_sigma": 1e6}
    sid = strict_information_discarding(model, "0", x, **options)
    assert sid.mean.item() == pytest.approx(UNIFORM, abs=0.12 if num_vjps == 2 else 0.02)


def test_the_error_is_the_spread_over_seeds():
    model, x = convnet(), images(4)
    runs = [
        strict_information_discarding(model, "3", x, num_vjps=16, scale=50.0, seed=seed) for seed in range(0, 400, 8)
    ]
    spread = torch.stack([run.mean for run in runs]).std(0)
    claimed = torch.stack([run.error for run in runs]).square().mean(0).sqrt()
    torch.testing.assert_close(claimed, spread, rtol=0.35, atol=0)


def test_the_ratio_is_measured_as_well_where_the_feature_has_one_dimension(monkeypatch):
    monkeypatch.setattr("netprism.discarding.sid.MOST_NOISES", MOST_NOISES)
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 1), nn.Tanh()), torch.randn(3, 6)
    sid = strict_information_discarding(model, "1", x, method="optimized", alpha=1e-4, seed=1, chunk_size=512)
    slopes = (1 - model(x).detach() ** 2) * model[0].weight.detach()  # sigma is so small that the tangent does
    change = (slopes * sid.sigma).square().sum(1)
    torch.testing.assert_close(sid.ratio, change / (1e-4 * sid.scale), rtol=0.05, atol=0)  # three standard errors
    torch.testing.assert_close(sid.ratio, torch.ones(3), rtol=0.12, atol=0)  # scaled by 1600 noises


def test_optimisation_finds_more_entropy_at_the_same_constraint():
    torch.manual_seed(3)

    # The first unit saturates within the noise: to first order it costs 400, in fact 1.
    class Saturating(nn.Module):
        def forward(self, x):
            return torch.cat([(20 * x[:, :1]).tanh(), 0.1 * x[:, 1:]], dim=1)

    model, x = nn.Sequential(Saturating()), torch.zeros(2, 8)
    options = {
        "alpha": 0.05,
        "scale": 400.0,
        "max_sigma": 100.0,
        "noise_samples": 64,
        "num_vjps": 256,
        "chunk_size": 512,
    }
    first = strict_information_discarding(model, "0", x, **options)
    best = strict_information_discarding(model, "0", x, method="optimized", steps=150, **options)
    achieved = feature_change(LayerView(model, "0"), x, best.sigma, noise_samples=8000) / 20
    assert (achieved - 1).abs().max() < 0.05
    assert (best.ratio - achieved).abs().max() < 0.08
    assert (feature_change(LayerView(model, "0"), x, first.sigma, noise_samples=4000) < 0.95 * 20).all()
    scaled = water_filling_sigma(column_norms(LayerView(model, "0"), x)["0"].mean(0), 1.0, 100.0)
    for _ in range(20):
        change = feature_change(LayerView(model, "0"), x, scaled, noise_samples=512)
        scaled = scaled * (20.0 / change).sqrt().view(-1, 1)
    assert (best.sigma.log().mean(1) > scaled.log().mean(1) + 0.02).all()


def test_the_optimised_sigma_meets_the_constraint_of_a_network():
    model, x = convnet(), images(3)
    best = strict_information_discarding(model, "5", x, method="optimized", noise_samples=64, chunk_size=512)
    ratio = feature_change(LayerView(model, "5"), x, best.sigma, noise_samples=2000, seed=9) / (ALPHA * best.scale)
    assert (ratio - 1).abs().max() < 0.05
    assert best.error.isnan().all()


def test_an_entropy_of_ones_own_is_maximised():
    """Twice the entropy of the first half of the units, none of the others: these go down."""
    model, x = nn.Sequential(Scaled(torch.ones(8))), torch.zeros(1, 8)
    weights = torch.tensor([2.0] * 4 + [1.0] * 4)

    def entropy(images, features):
        return (weights * features.square().mean(1).log() / 2).sum(1)

    start = torch.full((1, 8), 0.1)
    sigma = optimize_sigma(LayerView(model, "0", 64), x, start, 0.08, entropy=entropy, steps=300, noise_samples=64)
    share = sigma.square() / sigma.square().sum()
    torch.testing.assert_close(share, weights.unsqueeze(0) / 12, rtol=0.1, atol=0)  # p_i ~ weight_i, Lagrange


def test_one_sigma_a_pixel():
    model, x = convnet(), images(2)
    sid = strict_information_discarding(model, "3", x, share_channels=True, num_vjps=2000)
    part = copy.deepcopy(model[:4]).double()
    for result, image in zip(sid.entropy_map, x, strict=True):
        norms = reference.column_norms(part, image).sum(0)
        expected = reference.entropy(reference.sigma(norms, ALPHA * sid.scale, 1.0)).reshape(norms.shape)
        assert result.shape == image.shape
        assert (result - torch.from_numpy(expected)).abs().mean() < 0.03
    assert sid.sigma.shape == sid.unseen.shape == x.shape
    best = strict_information_discarding(model, "3", x, share_channels=True, method="optimized", noise_samples=64)
    assert torch.equal(best.sigma[:, 0], best.sigma[:, 1])
    assert (best.ratio - 1).abs().max() < 0.15


# What must not matter


@pytest.mark.parametrize("factor", [0.25, 4.0, 1000.0])
def test_scaling_a_layer_and_undoing_it_changes_gradients_but_no_entropy(factor):
    model, x = convnet(), images(3)
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        scaled[0].weight *= factor
        scaled[0].bias *= factor
        scaled[2].weight /= factor
    for method in ("linear", "optimized"):
        before = strict_information_discarding(model, ["1", "3", "5"], x, method=method, num_vjps=16, steps=5)
        after = strict_information_discarding(scaled, ["1", "3", "5"], x, method=method, num_vjps=16, steps=5)
        for layer in before:
            torch.testing.assert_close(after[layer].entropy_map, before[layer].entropy_map, rtol=0, atol=1e-3)
        assert after["1"].scale == pytest.approx(before["1"].scale * factor**2, rel=1e-3)


def test_network_and_random_state_are_left_as_they_were():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten()).train()
    model[1].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before, flags = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    x = images(2)
    kept, random_state = x.clone(), torch.get_rng_state()
    for method in ("linear", "optimized"):
        strict_information_discarding(model, "4", x, method=method, num_vjps=2, steps=2)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == flags
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert model[0].bias.grad is None
    assert torch.equal(x, kept)
    assert not x.requires_grad
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_flags_are_put_back_after_an_error():
    model = convnet().train()
    with pytest.raises(ValueError, match="no layer 'conv9'"):
        strict_information_discarding(model, "conv9", images(1))
    with pytest.raises(RuntimeError):
        strict_information_discarding(model, "5", images(1, size=9))
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("method", ["linear", "optimized"])
def test_inside_inference_mode_and_autocast_it_is_the_same(method):
    options = {"method": method, "num_vjps": 4, "steps": 2}
    model = convnet()
    expected = strict_information_discarding(model, "5", images(2), **options)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = strict_information_discarding(model, "5", images(2), **options)
    torch.testing.assert_close(found.entropy_map, expected.entropy_map)
    with torch.no_grad():
        found = strict_information_discarding(model, "5", images(2), **options)
    torch.testing.assert_close(found.ratio, expected.ratio)


def test_an_image_counts_the_same_alone_and_in_a_batch():
    model, x = convnet(), images(3)
    options = {"scale": 20.0, "chunk_size": 1, "num_vjps": 4}
    together = strict_information_discarding(model, "5", x, **options)
    alone = strict_information_discarding(model, "5", x[:1], **options)
    torch.testing.assert_close(alone.entropy_map, together.entropy_map[:1])
    torch.testing.assert_close(alone.error, together.error[:1])


def test_double_precision():
    sid = strict_information_discarding(convnet().double(), "5", images(2).double(), num_vjps=4, method="optimized")
    assert sid.entropy_map.dtype == torch.float64


def test_a_layer_that_runs_twice_has_two_results():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(4, 4), relu, nn.Linear(4, 4), relu)
    both = strict_information_discarding(model, ["1"], torch.randn(2, 4), num_vjps=4)
    assert list(both) == ["1", "1#1"]
    assert strict_information_discarding(model, "1#1", torch.randn(2, 4), num_vjps=4).scale > 0


def test_ties_behind_a_max_pool_are_not_left_to_rounding():
    """Images with a constant ground: the inputs of most windows are equal, to the last bit or nearly."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten()).double()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 1e-9 * torch.randn_like(parameter)
    x = torch.full((4, 1, 14, 14), -0.4, dtype=torch.float64)
    x[:, :, 5:9, 5:9] = torch.randn(4, 1, 4, 4, dtype=torch.float64)
    # Float32's rounding stands for the order in which another machine adds up.
    one, two = (strict_information_discarding(net.float(), "4", x.float(), num_vjps=64) for net in (model, other))
    torch.testing.assert_close(one.mean, two.mean, atol=1e-4, rtol=0)
    assert (one.unseen == two.unseen).all()


# What a layer does not see


@pytest.mark.parametrize("method", ["linear", "optimized"])
def test_what_a_layer_does_not_see_is_at_the_cap_and_said_to_be(method):
    sid = strict_information_discarding(nn.Sequential(Half()), "0", images(2), method=method, max_sigma=2.0)
    assert torch.equal(sid.unseen[..., 4:], torch.ones_like(sid.unseen[..., 4:]))
    assert not sid.unseen[..., :4].any()
    cap = reference.entropy(2.0)
    torch.testing.assert_close(sid.entropy_map[..., 4:], torch.full((2, 2, 8, 4), float(cap)))
    assert (sid.entropy_map <= cap + 1e-6).all()
    # The seen half shares the whole budget: 1 / n each, as the formula without a cap has it, would be 1/2 log 2 less.
    assert sid.entropy_map[..., :4].mean() == pytest.approx(UNIFORM, abs=0.02)


@pytest.mark.parametrize("connected", [True, False])
@pytest.mark.parametrize("method", ["linear", "optimized"])
def test_a_layer_without_gradient_has_forgotten_everything(connected, method):
    with pytest.warns(
        UserWarning, match="^layer 'out' does not depend on these 2 inputs: SID is the cap, ratio is NaN$"
    ):
        sid = strict_information_discarding(Blind(connected), "out", images(2), method=method)
    assert sid.unseen.all()
    assert sid.mean == pytest.approx(float(reference.entropy(1.0)))
    assert sid.ratio.isnan().all()
    assert sid.scale == 0


def test_a_dead_image_among_others():
    """ReLU of x where x is negative: nothing of the first image comes through."""
    x = torch.cat([-torch.rand(1, 6), torch.rand(1, 6)])
    sid = strict_information_discarding(nn.Sequential(nn.ReLU()), "0", x, num_vjps=64, max_sigma=1.0)
    assert sid.unseen[0].all()
    assert not sid.unseen[1].any()
    assert sid.mean[0] == pytest.approx(float(reference.entropy(1.0)))


# Bad input


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(1, 2, 8, 8, dtype=torch.uint8), TypeError, "images are torch.uint8; expected float images"),
        (torch.zeros(1, 2, 8, 8, dtype=torch.int64), TypeError, "images are torch.int64"),
        ([1.0], TypeError, "images are list"),
        (torch.zeros(0, 2, 8, 8), ValueError, r"images have shape \(0, 2, 8, 8\)"),
        (torch.zeros(3), ValueError, r"images have shape \(3,\)"),
        (torch.full((1, 2, 8, 8), math.nan), ValueError, "images hold NaN or infinity"),
    ],
)
def test_bad_images_are_named(x, error, message):
    with pytest.raises(error, match=message):
        strict_information_discarding(convnet(), "5", x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "exact"}, "method is 'exact'; expected linear or optimized"),
        ({"alpha": 0.0}, "alpha is 0.0; expected a number > 0"),
        ({"max_sigma": -1.0}, "max_sigma is -1.0"),
        ({"num_vjps": 0}, "num_vjps is 0"),
        ({"noise_samples": 1, "method": "optimized"}, "noise_samples is 1; expected a number >= 2"),
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"scale": -1.0}, "scale of layer '5' is -1.0"),
        ({"scale": 0.0}, "scale of layer '5' is 0; expected a number > 0"),
        ({"scale": {"3": 1.0}}, "scale has no layer '5'; it has 3"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        strict_information_discarding(convnet(), "5", images(1), **options)


def test_bad_features_are_named():
    class Counts(nn.Module):
        def forward(self, x):
            return (x > 0).sum((1, 2, 3))

    class Summed(nn.Module):
        def forward(self, x):
            return x.sum(0)

    with pytest.raises(TypeError, match="layer '0' gives torch.int64"):
        strict_information_discarding(nn.Sequential(Counts()), "0", images(2))
    with pytest.raises(ValueError, match="expected one row each"):
        strict_information_discarding(nn.Sequential(Summed()), "0", images(2))
    with pytest.raises(ValueError, match="not finite"):
        strict_information_discarding(nn.Sequential(Scaled(torch.tensor(math.inf))), "0", images(2))
    with pytest.raises(ValueError, match="budget is 0.0"):
        optimize_sigma(LayerView(convnet(), "5"), images(1), images(1).abs(), 0.0)


def test_concentration_is_exported():
    assert concentration(torch.zeros(1, 1, 2, 2), torch.eye(2)[None]).item() == 0

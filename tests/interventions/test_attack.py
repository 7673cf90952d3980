import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from netprism.interventions import Pixels, adversarial_distances, minimal_attack, pgd, pgd_steps, top_wrong_classes
from netprism.nets import ResNet


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 5))


@pytest.fixture
def x():
    return 0.3 + 0.4 * torch.rand(16, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def linear_distance(network, x, target):
    """The distance to the polyhedron where the target wins, a quadratic program by its dual (Hildreth), float64."""
    weights, bias = network[1].weight.detach().double(), network[1].bias.detach().double()
    others = [k for k in range(len(bias)) if k != target]
    a = weights[target] - weights[others]  # a d >= b
    b = -(a @ x.double().flatten() + bias[target] - bias[others])
    dual = torch.zeros(len(others), dtype=torch.float64)
    for _ in range(500):
        for i in range(len(others)):
            residual = b[i] - a[i] @ (a.T @ dual)
            dual[i] = (dual[i] + residual / (a[i] @ a[i])).clamp(min=0)
    return float((a.T @ dual).norm())


def test_pgd_on_two_classes_is_the_closed_form(x):
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    labels = torch.arange(16) % 2
    rows = network[1].weight.detach()
    direction = torch.sign(rows[1 - labels] - rows[labels]).view_as(x)
    assert torch.allclose(pgd(network, x, labels, eps=0.1), x + 0.1 * direction, atol=1e-6)
    targeted = pgd(network, x, targets=labels, eps=0.1)
    assert torch.allclose(targeted, x - 0.1 * direction, atol=1e-6)


def test_pgd_is_that_of_plain_autograd(linear, x):
    labels = linear(x).argmax(1)
    mine = x.clone()
    for _ in range(7):
        images = mine.clone().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(linear(images), labels, reduction="sum"), images)
        mine = torch.min(torch.max(mine + 0.01 * slope.sign(), x - 0.05), x + 0.05).clamp(0, 1)
    assert torch.allclose(pgd(linear, x, labels, eps=0.05, step_size=0.01, steps=7), mine, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_the_bound_and_the_range_are_never_passed(dtype):
    pixels = Pixels(mean=(0.3, 0.5, 0.4), std=(0.2, 0.3, 0.25))
    raw = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    given = ((raw - torch.tensor(pixels.mean).view(3, 1, 1)) / torch.tensor(pixels.std).view(3, 1, 1)).to(dtype)
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 5)).to(dtype)
    found = list(pgd_steps(network, given, eps=4 / 255, pixels=pixels))
    assert len(found) == 21
    scale, (low, high) = pixels.scale(given), pixels.bounds(given)
    for image in found:
        assert image.dtype == dtype
        change = (image.double() - given.double()).abs() * scale
        assert change.max() <= 4 / 255 * (1 + 1e-5)
    last = found[-1].float()
    slack = 1e-5 if dtype in (torch.float32, torch.float64) else 0.02
    assert (last >= low - slack).all()
    assert (last <= high + slack).all()
    assert change.max() > 3.5 / 255


def test_a_sure_network_is_attacked_all_the_same(linear, x):
    sure = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    sure.load_state_dict({key: 2000 * value for key, value in linear.state_dict().items()})
    labels = linear(x).argmax(1)
    loss = F.cross_entropy(sure(x), labels, reduction="none")
    assert (loss == 0).any(), "plain gradients vanish here"
    one = {"eps": 0.1, "steps": 1, "step_size": 0.1}
    changed = pgd(sure, x, labels, **one)
    assert ((changed - x).abs().flatten(1).amax(1) > 0.09).all()


def test_the_network_is_left_alone(x):
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(),
                            nn.Linear(64, 5))  # fmt: skip
    network[1].eval()
    network[0].weight.requires_grad_(False)
    network[5].weight.grad = torch.ones_like(network[5].weight)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    flags = [m.training for m in network.modules()]
    state = torch.get_rng_state()
    pgd(network, x)
    minimal_attack(network, x, torch.zeros(16, dtype=torch.long), steps=3)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert [m.training for m in network.modules()] == flags
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(network[5].weight.grad, torch.ones_like(network[5].weight))
    assert network[0].weight.grad is None
    assert not network[0].weight.requires_grad


def test_an_image_is_attacked_alike_in_any_batch(linear, x):
    labels = torch.arange(16) % 5
    all_ = pgd(linear, x, labels)
    assert torch.equal(all_[3:5], pgd(linear, x[3:5], labels[3:5]))


def test_the_smallest_attack_on_a_linear_network_is_the_true_distance(linear, x):
    targets = (linear(x).argmax(1) + 1 + torch.arange(16) % 4) % 5
    found = minimal_attack(linear, x, targets)
    assert found.success.all()
    assert torch.equal(linear(found.images).argmax(1), targets)
    assert torch.allclose((found.images - x).flatten(1).norm(dim=1), found.distances, atol=1e-5)
    true = torch.tensor([linear_distance(linear, x[i], int(targets[i])) for i in range(8)])
    ratio = found.distances[:8].double() / true
    assert ratio.min() > 0.999
    assert ratio.max() < 1.05, ratio


def test_distances_are_of_pixels_whatever_the_normalisation(x):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    pixels = Pixels((0.5, 0.4, 0.3), (0.2, 0.1, 0.3))

    class OfPixels(nn.Module):
        def forward(self, x):
            return plain(x * pixels.scale(x) + torch.tensor(pixels.mean).view(1, 3, 1, 1))

    normalised = (x - torch.tensor(pixels.mean).view(1, 3, 1, 1)) / pixels.scale(x)
    targets = (plain(x).argmax(1) + 1) % 4
    a = minimal_attack(plain, x, targets).distances
    b = minimal_attack(OfPixels(), normalised, targets, pixels=pixels).distances
    assert np.allclose(a, b, rtol=0.01)


def test_a_class_that_cannot_be_reached_is_said(x):
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    with torch.no_grad():
        network[1].bias[2] = -1e4
    found = minimal_attack(network, x, torch.full((16,), 2), steps=5)
    assert not found.success.any()
    assert found.distances.isinf().all()
    assert torch.equal(found.images, x)


def test_robustness_has_a_distance_for_each_top_wrong_class(linear, x):
    labels = linear(x).argmax(1)
    distances = adversarial_distances(linear, [(x[:8], labels[:8]), (x[8:], labels[8:])], num_classes=2)
    assert distances.shape == (16, 2)
    wrong = top_wrong_classes(linear(x), labels, 2)
    assert (wrong != labels[:, None]).all()
    expected = minimal_attack(linear, x, wrong[:, 0]).distances
    assert torch.allclose(distances[:, 0], expected, rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"eps": 0}, "eps is 0; expected a number > 0"),
        ({"eps": -0.1}, "eps is -0.1"),
        ({"steps": 0}, "steps is 0"),
        ({"step_size": 0.0}, "step_size is 0.0"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, r"classes are torch.int64 \(3,\); expected integers \(16,\)"),
        ({"labels": torch.full((16,), 5)}, "classes are 5 to 5; expected 0 to 4"),
        ({"pixels": Pixels((0.5,), (2.0,))}, "expected -0.25 to 0.25, pixels in .0, 1. with mean"),
    ],
)
def test_bad_options_end_in_one_line(linear, x, options, says):
    with pytest.raises(ValueError, match=says) as caught:
        pgd(linear, x, **options)
    assert "\n" not in str(caught.value)


def test_bad_networks_and_images_end_in_one_line(linear, x):
    with pytest.raises(ValueError, match="already probabilities"):
        pgd(nn.Sequential(linear, nn.Softmax(1)), x)
    with pytest.raises(ValueError, match="already probabilities"):
        minimal_attack(nn.Sequential(linear, nn.Softmax(1)), x, torch.zeros(16, dtype=torch.long))
    with pytest.raises(ValueError, match="images are .* expected 0 to 1, pixels"):
        pgd(linear, 255 * x)
    with pytest.raises(TypeError, match="uint8"):
        pgd(linear, (255 * x).byte())
    with pytest.raises(ValueError, match="NaN"):
        pgd(linear, x * torch.nan)
    with pytest.raises(ValueError, match="images have 3 channels; expected 2"):
        pgd(linear, x, pixels=Pixels((0, 0), (1, 1)))
    with pytest.raises(ValueError, match="std is"):
        Pixels((0,), (0,))
    with pytest.raises(ValueError, match="mean has 2 numbers"):
        Pixels((0, 0), (1,))


def test_inside_inference_mode(linear, x):
    expected = pgd(linear, x, eps=0.1)
    with torch.inference_mode():
        assert torch.equal(pgd(linear, x, eps=0.1), expected)


def test_a_convolutional_network_of_any_make(x):
    network = ResNet(depth=8, num_classes=5)
    labels = network.eval()(x).argmax(1)
    changed = pgd(network, x, labels, eps=0.2)
    before, after = (F.cross_entropy(network(images), labels, reduction="none") for images in (x, changed))
    assert (after > before).all()

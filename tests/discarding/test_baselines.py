import math
import sys

import pytest
import torch
from torch import nn

from netprism.discarding.baselines import class_activation_map, grad_cam, gradient_map, input_noise_entropy
from netprism.nets import ResNet


def convnet():
    """Its last feature map is as large as the image, so that nothing is enlarged."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1), nn.Tanh(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5),
    )  # fmt: skip


def images(count=3):
    return torch.randn(count, 2, 6, 7, generator=torch.Generator().manual_seed(0))


def gradient_and_feature(model, depth, x, target):
    feature = model[:depth](x).detach().requires_grad_()
    logit = model[depth:](feature)[range(len(x)), target].sum()
    return torch.autograd.grad(logit, feature)[0], feature.detach()


TARGET = torch.tensor([1, 4, 0])


def test_the_gradient_map_of_the_image_and_of_a_layer():
    model, x = convnet(), images()
    for depth, layer in [(0, None), (2, "1"), (4, "3")]:
        gradient, _ = gradient_and_feature(model, depth, x, TARGET)
        expected = gradient.square().sum(1, keepdim=True).sqrt()
        torch.testing.assert_close(gradient_map(model, x, TARGET, layer=layer), expected)


def test_grad_cam():
    model, x = convnet(), images()
    gradient, feature = gradient_and_feature(model, 4, x, TARGET)
    expected = (gradient.mean((2, 3), keepdim=True) * feature).sum(1, keepdim=True).relu()
    torch.testing.assert_close(grad_cam(model, "3", x, TARGET), expected)


def test_cam_is_what_the_head_sees_and_grad_cam_its_positive_part():
    model, x = convnet(), images()
    cam = class_activation_map(model, "3", "6", x, TARGET)
    logits = cam.mean((1, 2, 3)) + model[6].bias[TARGET]
    torch.testing.assert_close(logits, model(x)[range(3), TARGET])
    torch.testing.assert_close(grad_cam(model, "3", x, TARGET), (cam / 42).relu())


def test_small_maps_are_enlarged_and_the_class_is_found():
    model = ResNet(8, in_channels=1)
    x = torch.randn(2, 1, 16, 16)
    target = model.eval()(x).argmax(1)
    for found, given in [
        (gradient_map(model, x, layer="layer3"), gradient_map(model, x, target, layer="layer3")),
        (grad_cam(model, "layer3", x), grad_cam(model, "layer3", x, target)),
        (class_activation_map(model, "layer3", "fc", x), class_activation_map(model, "layer3", "fc", x, target)),
    ]:
        assert found.shape == (2, 1, 16, 16)
        torch.testing.assert_close(found, given)


def test_scaling_a_layer_and_undoing_it():
    """Gradient maps are not coherent; Grad-CAM is, though the paper says otherwise: its two factors cancel."""
    model, x = convnet(), images()
    scaled = convnet()
    with torch.no_grad():
        for value in scaled[0].parameters():
            value /= 4
        scaled[2].weight *= 4
    torch.testing.assert_close(scaled(x), model(x))
    torch.testing.assert_close(
        gradient_map(scaled, x, TARGET, layer="1"), 4 * gradient_map(model, x, TARGET, layer="1")
    )
    torch.testing.assert_close(grad_cam(scaled, "1", x, TARGET), grad_cam(model, "1", x, TARGET))


def test_the_network_is_left_as_it_was():
    model = ResNet(8, in_channels=1).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = torch.randn(2, 1, 16, 16)
    with torch.inference_mode():
        gradient_map(model, x)
    grad_cam(model, "layer2", x)
    class_activation_map(model, "layer3", "fc", x)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())


def test_mistakes_are_named():
    model, x = convnet(), images()
    with pytest.raises(ValueError, match="Sequential has no layer 'conv9'; it has 0, 1, 2"):
        grad_cam(model, "conv9", x)
    with pytest.raises(ValueError, match="layer '5' has no positions"):
        gradient_map(model, x, layer="5")
    with pytest.raises(ValueError, match="head '0' is Conv2d"):
        class_activation_map(model, "3", "0", x)
    with pytest.raises(TypeError, match=r"images are torch.uint8"):
        gradient_map(model, x.byte())


def test_without_captum_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'netprism\[baselines\]'"):
        gradient_map(convnet(), images())
    assert class_activation_map(convnet(), "3", "6", images()).shape == (3, 1, 6, 7)


def test_input_noise_behind_a_linear_map_has_a_closed_form():
    """sigma_i^2 = weight Var(f) / (2 ||W_i||^2); nothing of it depends on how large the features are."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6)), torch.randn(3, 4)
    model[0].weight.data *= torch.tensor([0.5, 1.0, 2.0, 0.0])  # the last unit is not seen
    expected = 0.5 * (0.1 * 7 / 2 / model[0].weight.square().sum(0)).log() + 0.5 * math.log(2 * math.pi * math.e)
    expected[3] = math.log(5) + 0.5 * math.log(2 * math.pi * math.e)
    options = {"variance": 7.0, "max_sigma": 5.0, "noise_samples": 64}
    found = input_noise_entropy(model, "0", x, steps=300, learning_rate=0.1, **options)
    torch.testing.assert_close(found, expected.expand(3, 4), atol=0.1, rtol=0)  # noise of the descent
    torch.testing.assert_close(input_noise_entropy(model, "0", x, steps=0, **options), found, atol=0.3, rtol=0)
    variance = (model(x) - model(x).mean(0)).square().sum(1).mean().item()
    own = input_noise_entropy(model, "0", x, steps=5)
    torch.testing.assert_close(own, input_noise_entropy(model, "0", x, steps=5, variance=variance))
    with pytest.raises(ValueError, match="variance is 0"):
        input_noise_entropy(nn.Sequential(nn.Flatten(), nn.ReLU()), "1", -torch.ones(2, 4))


def test_the_descent_leaves_a_start_that_is_wrong():
    """Of y = x^2 at 0 the Jacobian is 0 and sigma starts at the cap; 3 sigma^4 / V = weight log sigma has a minimum."""

    class Square(nn.Module):
        def forward(self, x):
            return x.square()

    sigma = (0.1 * 2 / 12) ** 0.25
    found = input_noise_entropy(
        nn.Sequential(Square()), "0", torch.zeros(2, 3), variance=2.0, max_sigma=1.0, steps=200, noise_samples=256
    )
    expected = math.log(sigma) + 0.5 * math.log(2 * math.pi * math.e)
    torch.testing.assert_close(found.mean(), torch.tensor(expected), atol=0.05, rtol=0)

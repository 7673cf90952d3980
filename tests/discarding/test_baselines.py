import sys

import pytest
import torch
from torch import nn

from netprism.discarding.baselines import class_activation_map, grad_cam, gradient_map
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

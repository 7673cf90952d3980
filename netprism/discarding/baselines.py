"""What else is drawn over images, to be compared with information discarding: gradients, Grad-CAM, CAM.

The gradients and Grad-CAM are captum's own; it comes with `pip install 'netprism[baselines]'`. Gradients are in units
of the logit over units of the feature: they change when a layer is scaled and the next one undoes it, while nothing
that the network knows does. Grad-CAM and CAM multiply by the feature again, which cancels that; they are in units of
the logit, and say nothing about pixels that are neither for nor against a class.
"""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from netprism.discarding.layer_view import LayerView, as_images, evaluating
from netprism.taps import layer_names


def gradient_map(model: nn.Module, x: Tensor, target: Tensor | None = None, *, layer: str | None = None) -> Tensor:
    """Norm over channels of the gradient of a logit: how much each place of the image or of a feature map counts.

    Args:
        model: Network from images `(N, C, H, W)` to logits `(N, classes)`.
        x: Images, floating.
        target: Class of each image `(N,)`, int64; None for the one that the model predicts.
        layer: Name of a layer with output `(N, K, h, w)`; None for the gradient at the images.

    Returns:
        `(N, 1, H, W)`, not negative, enlarged to the size of the images where the layer is smaller.

    Raises:
        ModuleNotFoundError: captum is not installed.
        ValueError: There is no such layer, or it has no positions.

    Source: sqrt(sum_k (dy / df_ijk)^2), Ma et al. 2019, section 4, https://openreview.net/forum?id=BygG3hEYvB.
    """
    attr = _captum()
    with evaluating(model):
        x, target = _prepare(model, x, target)
        if layer is None:
            gradient = attr.Saliency(model).attribute(x, target=target, abs=False)
        else:
            method = attr.LayerGradientXActivation(model, _module(model, layer), multiply_by_inputs=False)
            gradient = method.attribute(x, target=target)
        return _at_size_of(x, layer, gradient.square().sum(1, keepdim=True).sqrt())


def grad_cam(model: nn.Module, layer: str, x: Tensor, target: Tensor | None = None) -> Tensor:
    """Grad-CAM: the channels of a feature map, weighted by their mean gradient, where they speak for the class.

    Arguments, shapes and errors are those of :func:`gradient_map`.

    Source: Selvaraju et al. 2017, eqs. (1) and (2), https://arxiv.org/abs/1610.02391.
    """
    attr = _captum()
    with evaluating(model):
        x, target = _prepare(model, x, target)
        method = attr.LayerGradCam(model, _module(model, layer))
        return _at_size_of(x, layer, method.attribute(x, target=target, relu_attributions=True))


def class_activation_map(model: nn.Module, layer: str, head: str, x: Tensor, target: Tensor | None = None) -> Tensor:
    """CAM: the channels of the last feature map, weighted as the linear layer behind the average pooling does.

    Args:
        model: As in :func:`gradient_map`; its logits are `head(average over positions of layer)`.
        layer: Name of the last layer with positions, output `(N, K, h, w)`.
        head: Name of the linear layer from K channels to the classes.
        x: Images `(N, C, H, W)`.
        target: Class of each image `(N,)`; None for the one that the model predicts.

    Returns:
        `(N, 1, H, W)`, for the class where positive, against it where negative.

    Raises:
        ValueError: There is no such layer, it has no positions, or the head is not linear on its channels.

    Source: Zhou et al. 2016, eq. (2), https://arxiv.org/abs/1512.04150.
    """
    with evaluating(model), torch.no_grad():
        x, target = _prepare(model, x, target)
        linear = _module(model, head)
        features = LayerView(model, layer).feature(x)
        if not isinstance(linear, nn.Linear) or features.dim() != 4 or linear.in_features != features.shape[1]:
            shape = tuple(features.shape[1:])
            raise ValueError(
                f"head {head!r} is {linear}, and layer {layer!r} gives {shape}; expected a linear layer on K"
            )
        return _at_size_of(x, layer, torch.einsum("nk,nkhw->nhw", linear.weight[target], features).unsqueeze(1))


def _prepare(model: nn.Module, x: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor]:
    """Images that ask for gradients, and their classes."""
    x = as_images(x)
    if target is None:
        with torch.no_grad():
            target = model(x).argmax(1)
    return x.clone().requires_grad_(), target


def _module(model: nn.Module, name: str) -> nn.Module:
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if name not in modules or not name:
        names = layer_names(model)
        close = difflib.get_close_matches(name, names) or names[:20]
        raise ValueError(f"{type(model).__name__} has no layer {name!r}; it has {', '.join(close)}")
    return modules[name]


def _at_size_of(x: Tensor, layer: str | None, values: Tensor) -> Tensor:
    if values.dim() != 4:
        raise ValueError(f"layer {layer!r} has no positions: its map is {tuple(values.shape[1:])}, expected (1, h, w)")
    return F.interpolate(values.detach(), x.shape[2:], mode="bilinear", align_corners=False)


def _captum() -> Any:  # noqa: ANN401 - a module without types
    try:
        from captum import attr
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("this baseline is captum's: pip install 'netprism[baselines]'") from error
    return attr

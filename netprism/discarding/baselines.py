"""What information discarding is compared with: gradients, Grad-CAM, CAM, and the input noise of Guan et al.

The gradients and Grad-CAM are captum's own; it comes with `pip install 'netprism[baselines]'`. Gradients are in units
of the logit over units of the feature: they change when a layer is scaled and the next one undoes it, while nothing
that the network knows does. Grad-CAM and CAM multiply by the feature again, which cancels that; they are in units of
the logit, and say nothing about pixels that are neither for nor against a class. The input noise is in nats, as SID is,
but nothing says how far it moves the features.
"""

from __future__ import annotations

import difflib
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from netprism.checks import check_number
from netprism.discarding.constants import GAUSSIAN
from netprism.discarding.layer_view import LayerView, as_images, evaluating
from netprism.discarding.sensitivity import column_norms
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


def input_noise_entropy(
    model: nn.Module,
    layer: str,
    x: Tensor,
    *,
    variance: float | None = None,
    weight: float = 0.1,
    steps: int = 100,
    noise_samples: int = 8,
    learning_rate: float = 0.05,
    max_sigma: float = 10.0,
    seed: int = 0,
) -> Tensor:
    """Returns the entropy H_i = log sigma_i + 1/2 log(2 pi e) of noise on each input unit, as Guan et al. learn it.

    The noise x' = x + sigma delta, delta ~ N(0, I), minimises, of every image,

        E ||h(x') - h(x)||^2 / Var(f) - weight sum_i log sigma_i.

    Where h is linear, sigma_i^2 = weight Var(f) / (2 ||J_:,i||^2), from which the descent by Adam starts. So n units
    move the features by n weight Var(f) / 2, whatever their scale delta_f^2; SID fixes alpha delta_f^2 instead.

    Args:
        model: The network; it is called as `model(x)`, in eval mode.
        layer: Name of a layer as `netprism.taps.tap` takes it.
        x: Images `(N, ...)`, floating.
        variance: Var(f) = E ||f - E f||^2 over the data, > 0; None: over these images.
        weight: Weight of the entropy, > 0; the authors' code has .1.
        steps: Number of steps of the descent; 0 for the closed form of a linear h.
        noise_samples: Number of noises per image and step.
        learning_rate: Learning rate of Adam in log sigma; it falls to 0 over the steps.
        max_sigma: Cap of sigma, in units of the input; the authors' code has ten standard deviations.
        seed: Seed of all random numbers; the global random state is not used.

    Returns:
        H_i in nats, of the shape of x.

    Raises:
        ValueError: There is no such layer, a number is out of range, or features do not vary or are not finite.

    Cost: 64 backward passes per image, then `noise_samples` forward and backward passes per image and step.

    Source: Guan et al. 2019, "Towards a deep and unified understanding of deep neural models in NLP", section 3,
    http://proceedings.mlr.press/v97/guan19a.html; Ma et al. 2019, section 3.3, compare it with SID.
    """
    for name, value in (("weight", weight), ("max_sigma", max_sigma), ("learning_rate", learning_rate)):
        check_number(name, value, above=0)
    view = LayerView(model, layer)
    with view.evaluating():
        x = as_images(x)
        with torch.no_grad():
            clean = view.feature(x)
        if variance is None:
            variance = float((clean - clean.mean(0)).double().square().flatten(1).sum(1).mean())
        check_number("variance", variance, above=0)
        norms = column_norms(view, x, seed=seed)[layer].mean(0)
        start = (weight * variance / 2 / norms).sqrt().clamp(max=max_sigma).log()
        log_sigma = start.to(x).requires_grad_()
        optimizer = torch.optim.Adam([log_sigma], lr=learning_rate)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, max(steps, 1))
        generator = torch.Generator(x.device).manual_seed(seed)
        for _ in range(steps):
            shape = (noise_samples, *x.shape)
            delta = torch.randn(shape, generator=generator, device=x.device, dtype=x.dtype)
            moved = view.feature((x + log_sigma.exp() * delta).flatten(0, 1)).unflatten(0, shape[:2]) - clean
            loss = moved.square().sum() / (noise_samples * variance) - weight * log_sigma.sum()
            (log_sigma.grad,) = torch.autograd.grad(loss, log_sigma)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                log_sigma.clamp_(max=math.log(max_sigma))
        return log_sigma.detach() + GAUSSIAN


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

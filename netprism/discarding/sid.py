"""Strict information discarding (SID): how much of each input unit the features of a layer have forgotten, in nats.

Noise x' = x + sigma delta, delta ~ N(0, I), is put on an image until the features f = h(x) of a layer move by
E ||h(x') - f||^2 = alpha delta_f^2, a share alpha of how far they move for noise of size 1 on every unit. Among
all such noises the one of the largest entropy is taken. The layer has forgotten what it takes to tell x from x':

    H_i = log sigma_i + C,    C = 1/2 log(2 pi e),    SID = mean of H_i over the input units.

A unit of a large H_i may vary much without the layer's noticing. H is in the units of the input, so it compares layers
and networks: scaling a layer's features scales both sides of the constraint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args, overload

import torch
from torch import Tensor, nn

from netprism.discarding.concentration import concentration
from netprism.discarding.noise import PRECISION, feature_change, optimize_sigma, water_filling_sigma
from netprism.discarding.reconstruction import reconstruction_uncertainty
from netprism.discarding.sensitivity import as_images, column_norms, evaluating, feature_scale

__all__ = [
    "ALPHA",
    "Discarding",
    "Method",
    "concentration",
    "feature_scale",
    "reconstruction_uncertainty",
    "strict_information_discarding",
]

Method = Literal["linear", "optimized"]

ALPHA = 1.5e-4  # the paper's, in all its experiments
GAUSSIAN = 0.5 * math.log(2 * math.pi * math.e)  # C, nats: entropy of a standard Gaussian
_GROUPS = 8  # of vector-Jacobian products, for the jackknife


@dataclass(frozen=True)
class Discarding:
    """SID of N images in one layer.

    Attributes:
        entropy_map: H_i of each pixel and channel in nats, the shape of the images.
        mean: SID of each image `(N,)`, the mean of its H_i.
        sigma: of the noise on each pixel and channel, in units of the images and of their shape.
        unseen: bool, of their shape: units that the features do not depend on, to first order; their sigma is the cap.
        ratio: achieved E ||h(x') - f||^2 / (alpha delta_f^2) of each image `(N,)`, measured: to 1.5 % if optimised,
            else with 8 noises, to about 10 %. 1 where the constraint holds, NaN where delta_f^2 is 0.
        error: standard error of `mean` by the choice of random products, `(N,)`; NaN after optimisation. Each H_i by
            itself has 1 / sqrt(2 products).
        scale: delta_f^2 of the layer.
    """

    entropy_map: Tensor
    mean: Tensor
    sigma: Tensor
    unseen: Tensor
    ratio: Tensor
    error: Tensor
    scale: float


@overload
def strict_information_discarding(
    model: nn.Module,
    layers: str,
    x: Tensor,
    *,
    alpha: float = ...,
    method: Method = ...,
    share_channels: bool = ...,
    scale: float | Mapping[str, float] | None = ...,
    products: int = ...,
    steps: int = ...,
    noises: int = ...,
    max_sigma: float = ...,
    seed: int = ...,
    chunk_size: int = ...,
    measure_ratio: bool = ...,
) -> Discarding: ...


@overload
def strict_information_discarding(
    model: nn.Module,
    layers: list[str] | tuple[str, ...],
    x: Tensor,
    *,
    alpha: float = ...,
    method: Method = ...,
    share_channels: bool = ...,
    scale: float | Mapping[str, float] | None = ...,
    products: int = ...,
    steps: int = ...,
    noises: int = ...,
    max_sigma: float = ...,
    seed: int = ...,
    chunk_size: int = ...,
    measure_ratio: bool = ...,
) -> dict[str, Discarding]: ...


def strict_information_discarding(
    model: nn.Module,
    layers: str | list[str] | tuple[str, ...],
    x: Tensor,
    *,
    alpha: float = ALPHA,
    method: Method = "linear",
    share_channels: bool = False,
    scale: float | Mapping[str, float] | None = None,
    products: int = 64,
    steps: int = 24,
    noises: int = 16,
    max_sigma: float = 1.0,
    seed: int = 0,
    chunk_size: int = 64,
    measure_ratio: bool = True,
) -> Discarding | dict[str, Discarding]:
    """SID of images in one layer or in several.

    `linear`: sigma_i^2 = alpha delta_f^2 / (n ||J_:,i||^2), the largest entropy to first order, with the column norms
    of the Jacobian J from random vector-Jacobian products; `netprism.discarding.noise.water_filling_sigma` where the cap is
    reached. `optimized`: `netprism.discarding.noise.optimize_sigma` from there, for the features as they are.

    The model is run in eval mode; its flags, buffers and gradients, and all global random state, are left as they were.
    It works inside `torch.no_grad` and `torch.inference_mode`, too.

    Args:
        model: called as `model(x)`.
        layers: a name as `netprism.taps.tap` takes it, or several: they share the forward passes.
        x: images `(N, ...)`, floating, normalised as the model gets them.
        alpha: how far features may move, as a share of delta_f^2.
        method: "linear" or "optimized".
        share_channels: one sigma for a pixel and not for each of its channels (dimension 1).
        scale: delta_f^2 of the layer (or of each), see `netprism.discarding.sensitivity.feature_scale`. None: the mean
            over the images at hand, enough to compare their pixels, too little to compare with other images.
        products: vector-Jacobian products for each image and layer.
        steps: of the optimisation.
        noises: for each image in a step.
        max_sigma: what sigma is at most: noise as large as this has replaced the image. 1 is the standard deviation of
            normalised images.
        seed: of all random vectors.
        chunk_size: rows in a forward pass, images or noisy copies: what bounds the memory.
        measure_ratio: whether to; else `ratio` is NaN.

    Returns:
        The result of the layer named; a dict of results where `layers` is a list.

    Raises:
        TypeError: x is not floating.
        ValueError: no such layer or method, NaN, impossible numbers, feature scale 0 of a layer that does react.

    Cost: for each layer `products` backward passes to x and 8 forward passes; `optimized` has steps x noises
    passes forward and back in addition. Memory: the graph of `chunk_size` images, and 9 float64 values for each unit.

    Source: "Quantifying Layerwise Information Discarding of Neural Networks and Beyond", section 3.1.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 3))  # each unit alike: H = 1/2 log alpha + C
        >>> with torch.no_grad():
        ...     _ = model[0].weight.copy_(2 * torch.eye(3))
        >>> sid = strict_information_discarding(model, "0", torch.zeros(1, 3), products=4096)
        >>> round(sid.mean.item(), 2)
        -2.98
    """
    _check(alpha, method, max_sigma)
    results: dict[str, Discarding] = {}
    with evaluating(model):
        x = as_images(x)
        groups = max(1, min(_GROUPS, products))
        norms = column_norms(model, layers, x, products=products, groups=groups, seed=seed, chunk_size=chunk_size)
        for name, norm in norms.items():
            delta, precision = _scale(name, norm, scale), None
            sigma, error = _closed_form(norm.sum(2, keepdim=True) if share_channels else norm, alpha * delta, max_sigma)
            if method == "optimized" and delta > 0:
                sigma = optimize_sigma(
                    model, name, x, sigma, alpha * delta, steps=steps, noises=noises, max_sigma=max_sigma,
                    seed=seed, chunk_size=chunk_size,
                )  # fmt: skip
                error, precision = torch.full_like(error, torch.nan), PRECISION
            change = torch.full_like(error, torch.nan)
            if measure_ratio:
                change = feature_change(
                    model, name, x, sigma, precision=precision, seed=seed + 2, chunk_size=chunk_size
                )
            unseen = (norm.sum(0) == 0).all(1, keepdim=True) if share_channels else norm.sum(0) == 0
            results[name] = _result(x, sigma, unseen, change / (alpha * delta or math.nan), error, delta)
    return results[layers] if isinstance(layers, str) else results


def _closed_form(norms: Tensor, budget: float, max_sigma: float) -> tuple[Tensor, Tensor]:
    """Sigma `(N, ...)`, and the standard error `(N,)` of its mean logarithm, from groups `(G, N, ...)` of products.

    The logarithm of an estimate is low on average, by 1 / S for S products; the jackknife over groups takes that out.
    """
    whole = water_filling_sigma(norms.mean(0), budget, max_sigma).log()
    groups = len(norms)
    if groups == 1:
        return whole.exp(), torch.full_like(whole.flatten(1)[:, 0], torch.nan)
    rest = (norms.sum(0) - norms).clamp(min=0) / (groups - 1)  # without each of the groups in turn
    without = water_filling_sigma(rest.flatten(0, 1), budget, max_sigma).log().view(norms.shape)
    log_sigma = (groups * whole - (groups - 1) * without.mean(0)).clamp(max=math.log(max_sigma))
    return log_sigma.exp(), (groups - 1) ** 0.5 * without.flatten(2).mean(2).std(0, correction=0)


def _result(x: Tensor, sigma: Tensor, unseen: Tensor, ratio: Tensor, error: Tensor, scale: float) -> Discarding:
    """In the shape and type of the images."""
    entropy = (sigma.double().log() + GAUSSIAN).expand(x.shape)
    mean = entropy.flatten(1).mean(1)
    maps = (entropy.to(x), mean.to(x), sigma.to(x).expand(x.shape), unseen.expand(x.shape))
    return Discarding(*maps, ratio=ratio.to(x), error=error.to(x), scale=scale)


def _scale(layer: str, norms: Tensor, given: float | Mapping[str, float] | None) -> float:
    """delta_f^2 of a layer: the one given, or the mean over the images."""
    if given is None:
        return float(norms.mean(0).flatten(1).sum(1).mean())
    if isinstance(given, Mapping) and layer not in given:
        raise ValueError(f"scale has no layer {layer!r}; it has {', '.join(given) or 'none'}")
    scale = float(given[layer] if isinstance(given, Mapping) else given)
    if not 0 <= scale < math.inf:
        raise ValueError(f"scale of layer {layer!r} is {scale}; expected delta_f^2, a number >= 0")
    if scale == 0 and norms.any():
        raise ValueError(f"scale of layer {layer!r} is 0, but its features move with these images")
    return scale


def _check(alpha: float, method: str, max_sigma: float) -> None:
    if method not in get_args(Method):
        raise ValueError(f"unknown method {method!r}; allowed: {', '.join(get_args(Method))}")
    for name, value in (("alpha", alpha), ("max_sigma", max_sigma)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}; expected a number > 0")

"""Strict information discarding (SID): how much of each input unit the features of a layer discard, in nats.

Noise x' = x + sigma delta, delta ~ N(0, I), is put on an image until the features f = h(x) of a layer move by
E ||h(x') - f||^2 = alpha delta_f^2, a fraction alpha of how far they move for noise of size 1 on every unit.
Among all such noises the one of the largest entropy is taken. The layer discards the difference between x and x':

    H_i = log sigma_i + C,    C = 1/2 log(2 pi e),    SID = mean of H_i over the input units.

A unit of large H_i may vary much while the features hardly change. H is in the units of the input, so it compares
layers and networks: scaling a layer's features scales both sides of the constraint.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args, overload

import torch
from torch import Tensor, nn

from netprism.checks import check_number
from netprism.discarding.constants import ALPHA, GAUSSIAN, Method
from netprism.discarding.layer_view import LayerView, as_images
from netprism.discarding.noise import MOST_NOISES, PRECISION, feature_change, optimize_sigma, water_filling_sigma
from netprism.discarding.sensitivity import column_norms

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GROUPS = 8  # groups of vector-Jacobian products, for the jackknife


@dataclass(frozen=True)
class LayerDiscarding:
    """SID of N images in one layer.

    Attributes:
        entropy_map: H_i of each pixel and channel in nats, the shape of the images.
        mean: SID of each image `(N,)`, the mean of its H_i.
        sigma: Standard deviation of the noise on each pixel and channel, the shape and units of the images.
        unseen: Bool of their shape: units that the features do not depend on, to first order; their sigma is the cap.
        ratio: Achieved E ||h(x') - f||^2 / (alpha delta_f^2) of each image `(N,)`, measured to 1.5 % if optimised,
            otherwise with 8 noises, to 1 / sqrt(4 r) where the features move in r directions: 10 % for 25, 35 % for
            two. 1 where the constraint holds, NaN with a warning where delta_f^2 is 0.
        error: Standard error of `mean` by the choice of random vectors, `(N,)`; NaN after optimisation. That of a
            single H_i is 1 / sqrt(2 num_vjps).
        scale: delta_f^2 of the layer.
    """

    entropy_map: Tensor
    mean: Tensor
    sigma: Tensor
    unseen: Tensor
    ratio: Tensor
    error: Tensor
    scale: float

    def plot(self) -> tuple[Figure, list[Axes]]:
        """Returns a figure with H_i on the first eight images, the mean of the channels, and its panels."""
        from netprism.plots import plot_maps

        return plot_maps(self.entropy_map, "H of a pixel, nats")


@overload
def strict_information_discarding(model: nn.Module, layers: str, x: Tensor, **options: Any) -> LayerDiscarding: ...


@overload
def strict_information_discarding(
    model: nn.Module, layers: list[str] | tuple[str, ...], x: Tensor, **options: Any
) -> dict[str, LayerDiscarding]: ...


def strict_information_discarding(  # type: ignore[misc]  # the overloads leave the options to this signature
    model: nn.Module,
    layers: str | list[str] | tuple[str, ...],
    x: Tensor,
    *,
    alpha: float = ALPHA,
    method: Method = "linear",
    share_channels: bool = False,
    scale: float | Mapping[str, float] | None = None,
    num_vjps: int = 64,
    steps: int = 24,
    noise_samples: int = 16,
    max_sigma: float = 1.0,
    seed: int = 0,
    chunk_size: int = 64,
    measure_ratio: bool = True,
    relative_to: nn.Module | None = None,
) -> LayerDiscarding | dict[str, LayerDiscarding]:
    """Returns the SID of images in one layer or in several.

    `linear`: sigma_i^2 = alpha delta_f^2 / (n ||J_:,i||^2), the largest entropy to first order, with the column norms
    of the Jacobian J from random vector-Jacobian products; `water_filling_sigma` where the cap is reached. `optimized`:
    `optimize_sigma` from there, without the approximation.

    The model runs in eval mode; its flags, buffers and gradients, and all global random state, stay as they are.
    It works inside `torch.no_grad` and `torch.inference_mode`, too.

    Args:
        model: The network; it is called as `model(x)`.
        layers: Name of a layer as `netprism.taps.tap` takes it, or several names: they share the forward passes.
        x: Images `(N, ...)`, floating, normalised as the model gets them.
        alpha: How far features may move, as a fraction of delta_f^2.
        method: "linear" or "optimized".
        share_channels: One sigma per pixel, not one per pixel and channel (dimension 1).
        scale: delta_f^2 of the layer (or of each), see `feature_scale`. None: the mean over the images at hand, which
            is enough to compare their pixels and not enough to compare with other images.
        num_vjps: Number of vector-Jacobian products per image and layer.
        steps: Number of steps of the optimisation.
        noise_samples: Number of noises per image and step.
        max_sigma: Cap of sigma: noise as large as this has replaced the image. 1 is the standard deviation of
            normalised images.
        seed: Seed of all random vectors.
        chunk_size: Number of rows in a forward pass, images or noisy copies; it bounds the memory.
        measure_ratio: Whether to measure `ratio`; otherwise it is NaN.
        relative_to: Part of the model as seen from which layers may be named.

    Returns:
        The result of the layer named; a dict of results where `layers` is a list.

    Raises:
        TypeError: x is not floating.
        ValueError: There is no such layer or method, a value is NaN or out of range, or the scale of a layer that
            reacts is 0.

    Cost per layer: `num_vjps` backward passes to x and 8 forward passes; `optimized` needs steps x noise_samples passes
    forward and back in addition. Memory: the graph of `chunk_size` images, and 9 float64 values per unit.

    Source: Ma et al. 2019, section 3.1, https://openreview.net/forum?id=BygG3hEYvB.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 3))  # each unit alike: H = 1/2 log alpha + C
        >>> with torch.no_grad():
        ...     _ = model[0].weight.copy_(2 * torch.eye(3))
        >>> sid = strict_information_discarding(model, "0", torch.zeros(1, 3), num_vjps=4096)
        >>> round(sid.mean.item(), 2)
        -2.98
    """
    _check(alpha, method, max_sigma)
    results: dict[str, LayerDiscarding] = {}
    view = LayerView(model, layers, chunk_size, relative_to)
    with view.evaluating():
        x = as_images(x)
        groups = max(1, min(_GROUPS, num_vjps))
        norms = column_norms(view, x, num_vjps=num_vjps, groups=groups, seed=seed)
        for name, norm in norms.items():
            delta, precision = _scale(name, norm, scale), None
            if delta == 0 and scale is None:  # who gives a scale of 0 knows
                warnings.warn(
                    f"layer {name!r} does not depend on these {len(x)} inputs: SID is the cap, ratio is NaN",
                    stacklevel=2,
                )
            sigma, error = _closed_form(norm.sum(2, keepdim=True) if share_channels else norm, alpha * delta, max_sigma)
            if method == "optimized" and delta > 0:
                sigma = optimize_sigma(
                    view.layer(name), x, sigma, alpha * delta,
                    steps=steps, noise_samples=noise_samples, max_sigma=max_sigma, seed=seed,
                )  # fmt: skip
                error, precision = torch.full_like(error, torch.nan), PRECISION
            change = torch.full_like(error, torch.nan)
            if measure_ratio:
                change = feature_change(
                    view.layer(name), x, sigma, precision=precision, most_noises=MOST_NOISES, seed=seed + 2
                )
            unseen = (norm.sum(0) == 0).all(1, keepdim=True) if share_channels else norm.sum(0) == 0
            results[name] = _result(x, sigma, unseen, change / (alpha * delta or math.nan), error, delta)
    return results[layers] if isinstance(layers, str) else results


def _closed_form(norms: Tensor, budget: float, max_sigma: float) -> tuple[Tensor, Tensor]:
    """Sigma `(N, ...)`, and the standard error `(N,)` of its mean logarithm, from groups `(G, N, ...)` of products.

    The logarithm of an estimate is low on average, by 1 / S for S products; the jackknife over groups removes that
    bias.
    """
    whole = water_filling_sigma(norms.mean(0), budget, max_sigma).log()
    groups = len(norms)
    if groups == 1:
        return whole.exp(), torch.full_like(whole.flatten(1)[:, 0], torch.nan)
    rest = (norms.sum(0) - norms).clamp(min=0) / (groups - 1)  # without each of the groups in turn
    without = water_filling_sigma(rest.flatten(0, 1), budget, max_sigma).log().view(norms.shape)
    log_sigma = (groups * whole - (groups - 1) * without.mean(0)).clamp(max=math.log(max_sigma))
    return log_sigma.exp(), (groups - 1) ** 0.5 * without.flatten(2).mean(2).std(0, correction=0)


def _result(x: Tensor, sigma: Tensor, unseen: Tensor, ratio: Tensor, error: Tensor, scale: float) -> LayerDiscarding:
    """In the shape and type of the images."""
    entropy = (sigma.double().log() + GAUSSIAN).expand(x.shape)
    mean = entropy.flatten(1).mean(1)
    maps = (entropy.to(x), mean.to(x), sigma.to(x).expand(x.shape), unseen.expand(x.shape))
    return LayerDiscarding(*maps, ratio=ratio.to(x), error=error.to(x), scale=scale)


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
        raise ValueError(
            f"scale of layer {layer!r} is 0; expected a number > 0, since its features move with these images"
        )
    return scale


def _check(alpha: float, method: str, max_sigma: float) -> None:
    if method not in get_args(Method):
        raise ValueError(f"method is {method!r}; expected {' or '.join(get_args(Method))}")
    check_number("alpha", alpha, above=0)
    check_number("max_sigma", max_sigma, above=0)

"""How uncertain a reconstruction of the input is where the features of a layer may vary a little: RU.

A decoder g rebuilds the input x from the features f = h(x). Noise x' = x + sigma delta, delta ~ N(0, I), moves the
features by E ||h(x') - f||^2 = alpha delta_f^2, and with them the reconstruction x^' = g(h(x')). The uncertainty of
pixel i is the entropy of a Gaussian as wide as the error of its reconstruction,

    H_i = 1/2 log E[(x_i - x^'_i)^2] + C,    C = 1/2 log(2 pi e),

at the sigma for which sum_i H_i is largest.

To first order this is a concave problem. Let p_j = sigma_j^2 c_j be the power that the noise of unit j puts into the
features, c_j = ||J_:,j||^2 with the Jacobian J of h, B the Jacobian of g(h(x)), and b = x - g(h(x)). Then

    E[(x_i - x^'_i)^2] = b_i^2 + sum_j (B_ij^2 / c_j) p_j,    sum_j p_j = alpha delta_f^2,

and a sum of logarithms of mixtures with unknown weights p is what expectation-maximisation finds the maximum of:

    p_j <- p_j sum_i (B_ij^2 / c_j) / E[(x_i - x^'_i)^2],    rescaled to the budget.

Each step takes a few random noises and as many vector-Jacobian products, not B itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn

from netprism.checks import check_number
from netprism.discarding.constants import ALPHA, GAUSSIAN, Method
from netprism.discarding.layer_view import LayerView, as_images, evaluating
from netprism.discarding.noise import optimize_sigma, water_filling_sigma
from netprism.discarding.sensitivity import column_norms

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Center = Literal["input", "reconstruction"]
Draw = Callable[[], Tensor]

SMALLEST_ERROR = torch.finfo(torch.float32).eps ** 2  # squared error of a pixel of size 1: H_i >= -14.5 nats
_ROUNDS = 4  # sets of noises in a measurement
_TURNS = 3  # rounds of scaling; noise of size 1 used ten times the budget of an fc layer, once scaled a third of it


@dataclass(frozen=True)
class ReconstructionUncertainty:
    """RU of N images, in nats.

    Attributes:
        entropy_map: H_i of each pixel and channel, the shape of the images.
        mean: H_i averaged over an image, `(N,)`.
        sigma: Standard deviation of the noise on each input unit, the shape of the images; 0 where it changes nothing.
        ratio: Achieved E ||h(x') - f||^2 / (alpha delta_f^2), `(N,)`: 1 where the constraint holds, less where even the
            cap of sigma does not use the budget.
        mse: Mean squared error of the reconstruction without noise, `(N,)`: the part of RU that is the decoder's.
    """

    entropy_map: Tensor
    mean: Tensor
    sigma: Tensor
    ratio: Tensor
    mse: Tensor

    def plot(self) -> tuple[Figure, list[Axes]]:
        """Returns a figure with H_i on the first eight images, the mean of the channels, and its panels."""
        from netprism.plots import plot_maps

        return plot_maps(self.entropy_map, "H of a rebuilt pixel, nats")


def reconstruction_uncertainty(
    model: nn.Module,
    layer: str,
    decoder: nn.Module,
    x: Tensor,
    *,
    alpha: float = ALPHA,
    scale: float | None = None,
    method: Method = "linear",
    center: Center = "input",
    steps: int = 2,
    num_vjps: int = 64,
    noise_samples: int = 16,
    max_sigma: float = 1.0,
    seed: int = 0,
    chunk_size: int = 64,
    relative_to: nn.Module | None = None,
) -> ReconstructionUncertainty:
    """Measures how uncertain each pixel is that a decoder rebuilds from the features of a layer.

    Both networks run in eval mode; their flags, buffers and gradients, and the global random state, stay as they are.

    Args:
        model: The network; it is called as `model(x)`.
        layer: Name of a layer as `netprism.taps.tap` takes it.
        decoder: Network from features `(N, ...)` of the layer to images of the shape of x, trained for this very model.
        x: Images `(N, ...)`, floating, normalised as the model gets them.
        alpha: How far the features may move, as a fraction of delta_f^2.
        scale: delta_f^2 of the layer, see `feature_scale`. None: the mean over the images at hand.
        method: "linear": expectation-maximisation of the problem to first order. "optimized": gradient ascent from
            there, for the networks as they are.
        center: Where errors are counted from. "input": x, so that errors without noise count as well.
            "reconstruction": g(h(x)), so that only the effect of the noise counts.
        steps: Number of steps of expectation-maximisation; with 0, sigma is that of the strict information discarding.
            Behind fully connected layers, more than 2 steps followed the errors of c, which `num_vjps` reduces.
        num_vjps: Number of vector-Jacobian products for the column norms c.
        noise_samples: Number of noises per image and step, at least 2; H_i is then measured with four times as many.
            From S of them it is 1 / (2 S) nats low on average, as logarithms of estimates are.
        max_sigma: Cap of sigma, in units of the input.
        seed: Seed of all random numbers.
        chunk_size: Number of rows in a forward pass, images or noisy copies; it bounds the memory.
        relative_to: Part of the model as seen from which the layer may be named.

    Raises:
        ValueError: The method or center is unknown, a number is out of range, the decoder is of another layer or of
            images of another shape, images or features are not finite, or no image reaches the layer.
        TypeError: Images are not floating.

    Cost per image: `num_vjps` backward passes of the model, then `noise_samples` forward and backward passes of both
    networks per step, and sixteen times `noise_samples` forward passes of the model.

    Source: Ma et al. 2019, section 3.2, eq. 8 and 11, https://openreview.net/forum?id=BygG3hEYvB. The paper's gradient
    descent starts anywhere; expectation-maximisation is ours.
    """
    _check(method, center, noise_samples, steps)
    check_number("alpha", alpha, above=0)
    check_number("max_sigma", max_sigma, above=0)
    view = LayerView(model, layer, chunk_size, relative_to)
    x = as_images(x)
    # Fit and measure with independent noise: with one seed for both, 2.4 times the budget was measured as 1.
    seeds = torch.randint(2**31, (4,), generator=torch.Generator().manual_seed(seed)).tolist()
    path = _Path(view, decoder, center)
    with view.evaluating(), evaluating(decoder):
        norms = column_norms(view, x, num_vjps=num_vjps, seed=seeds[0])[layer].mean(0)
        budget = alpha * _positive(float(norms.flatten(1).sum(1).mean()) if scale is None else scale, layer)
        chunks = _chunks(x, noise_samples, chunk_size, seeds[1])
        parts = [_maximise(path, x[rows], norms[rows], budget, steps, max_sigma, draw) for rows, draw in chunks]
        sigma = torch.cat(parts)
        if method == "optimized":
            start = sigma.clamp(min=1e-6 * max_sigma)  # it goes by the logarithm
            sigma = optimize_sigma(
                view,
                x,
                start,
                budget,
                entropy=path.entropy,
                max_sigma=max_sigma,
                noise_samples=noise_samples,
                seed=seeds[2],
            )
        chunks = _chunks(x, noise_samples, chunk_size, seeds[3])
        measured = [_measure(path, x[rows], sigma[rows], budget, draw) for rows, draw in chunks]
    entropy_map, ratio, mse = (torch.cat(part) for part in zip(*measured, strict=True))
    return ReconstructionUncertainty(entropy_map, entropy_map.flatten(1).mean(1), sigma.to(x), ratio, mse)


@dataclass(frozen=True)
class _Path:
    """From images to features to rebuilt images, and where errors are counted from."""

    view: LayerView
    decoder: nn.Module
    center: Center

    def features(self, x: Tensor) -> Tensor:
        return self.view.feature(x)

    def rebuilt(self, features: Tensor, shape: torch.Size) -> Tensor:
        """Features (n, ...) to images (n, *shape)."""
        images: Tensor = self.decoder(features)
        if images.shape[1:] != shape:
            given, wanted = tuple(images.shape[1:]), tuple(shape)
            raise ValueError(
                f"the decoder of layer {self.view.layers!r} rebuilds {given}; expected {wanted}, as the images are"
            )
        return images

    def expected(self, x: Tensor) -> Tensor:
        if self.center == "input":
            return x
        with torch.no_grad():
            return self.rebuilt(self.features(x), x.shape[1:])

    def entropy(self, x: Tensor, features: Tensor) -> Tensor:
        """Sum of H_i (n,) from features (n, noises, ...) of noisy images."""
        rebuilt = self.rebuilt(features.flatten(0, 1), x.shape[1:]).unflatten(0, features.shape[:2])
        errors = (rebuilt - self.expected(x).unsqueeze(1)).square().mean(1)
        return _entropy(errors).flatten(1).sum(1)


def _maximise(path: _Path, x: Tensor, norms: Tensor, budget: float, steps: int, max_sigma: float, draw: Draw) -> Tensor:
    """Expectation-maximisation, from the sigma of the largest entropy of x'; float64, of the shape of x."""
    sigma = water_filling_sigma(norms, budget, max_sigma)
    expected = path.expected(x).unsqueeze(1)
    for _ in range(steps):
        delta = draw()
        noisy = _noisy(x, sigma, delta).requires_grad_()
        rebuilt = path.rebuilt(path.features(noisy), x.shape[1:])
        errors = (rebuilt.detach().unflatten(0, delta.shape[:2]) - expected).square().mean(1, keepdim=True)
        signs = draw().sign() / errors.clamp(min=SMALLEST_ERROR).sqrt()
        (product,) = torch.autograd.grad(rebuilt, noisy, signs.flatten(0, 1))
        gain = product.double().square().unflatten(0, delta.shape[:2]).mean(1)  # sum_i B_ij^2 / E[error_i^2]
        sigma = _pour(sigma.square() * gain, norms, budget, max_sigma)
    return _rescaled(path, x, sigma, budget, max_sigma, draw)


def _pour(weights: Tensor, norms: Tensor, budget: float, max_sigma: float) -> Tensor:
    """Returns the sigma that gives unit j a fraction of the budget as large as its weight, up to the cap.

    sigma_j^2 norms_j = min(t weights_j, max_sigma^2 norms_j), with t so that the sum over j is the budget; all units at
    the cap where even that does not use the budget. Units of weight 0 get no noise.
    """
    costs = norms.flatten(1) * max_sigma**2
    weights = weights.flatten(1)
    full = (costs / weights).nan_to_num(torch.inf)  # the t at which a unit reaches the cap
    order = full.argsort(1)
    cost, weight = costs.gather(1, order), weights.gather(1, order)
    level = (budget - cost.cumsum(1) + cost) / weight.flip(1).cumsum(1).flip(1)  # t, if this and later ones fit below
    fits = level <= full.gather(1, order)
    first = fits.int().argmax(1, keepdim=True)
    level = level.gather(1, first).where(fits.any(1, keepdim=True), torch.inf)
    fraction = (level / full).clamp(max=1).nan_to_num(0)
    return max_sigma * fraction.sqrt().view(norms.shape)


@torch.no_grad()
def _rescaled(path: _Path, x: Tensor, sigma: Tensor, budget: float, max_sigma: float, draw: Draw) -> Tensor:
    """Sigma scaled to the budget as measured: noise gathers where a norm came out low or holds for small noise only."""
    clean = path.features(x)
    for _ in range(_TURNS):
        excess = torch.stack([_moved(path, x, sigma, draw(), clean)[1] for _ in range(_ROUNDS)]).mean(0) / budget
        factors = excess.where(excess > 0, 1).rsqrt()
        sigma = (sigma * factors.view(-1, *[1] * (x.dim() - 1))).clamp(max=max_sigma)
    return sigma


@torch.no_grad()
def _measure(path: _Path, x: Tensor, sigma: Tensor, budget: float, draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
    """H_i, ratio and error without noise of images, from `_ROUNDS` lots of noise."""
    clean = path.features(x)
    expected = path.expected(x).unsqueeze(1)
    errors, change = torch.zeros_like(x, dtype=torch.float64), x.new_zeros(len(x), dtype=torch.float64)
    for _ in range(_ROUNDS):
        delta = draw()
        features, moved = _moved(path, x, sigma, delta, clean)
        rebuilt = path.rebuilt(features, x.shape[1:]).unflatten(0, delta.shape[:2])
        errors += (rebuilt - expected).double().square().mean(1) / _ROUNDS
        change += moved / _ROUNDS
    mse = (path.rebuilt(clean, x.shape[1:]) - x).square().flatten(1).mean(1)
    return _entropy(errors).to(x), (change / budget).to(x), mse


def _moved(path: _Path, x: Tensor, sigma: Tensor, delta: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """Features (n noises, ...) of x + sigma delta, and their mean squared distance to the clean ones, float64 (n,)."""
    features = path.features(_noisy(x, sigma, delta))
    distances = features.unflatten(0, delta.shape[:2]) - clean.unsqueeze(1)
    return features, distances.double().square().flatten(2).sum(2).mean(1)


def _noisy(x: Tensor, sigma: Tensor, delta: Tensor) -> Tensor:
    """The rows x + sigma delta, (n noises, ...)."""
    return (x.unsqueeze(1) + sigma.to(x).unsqueeze(1) * delta).flatten(0, 1)


def _entropy(errors: Tensor) -> Tensor:
    return errors.clamp(min=SMALLEST_ERROR).log() / 2 + GAUSSIAN


def _chunks(x: Tensor, noise_samples: int, chunk_size: int, seed: int) -> Iterator[tuple[slice, Draw]]:
    """Rows that go through the networks together, all noises of an image at once, and a source of noise for them."""
    size = max(1, chunk_size // noise_samples)
    for start in range(0, len(x), size):
        rows = slice(start, min(start + size, len(x)))
        generator = torch.Generator(x.device).manual_seed(seed + start)
        yield rows, partial(_noise, x[rows], noise_samples, generator)


def _noise(x: Tensor, noise_samples: int, generator: torch.Generator) -> Tensor:
    """Standard Gaussian noise (n, noises, ...), made to have mean 0 and variance 1 over the noises for every unit.

    That is what an infinite number of noises has. It takes away what few of them would add to the errors to first
    order: all of the term between b and the noise, and all that a unit's own noise does to its own pixel.
    """
    shape = (len(x), noise_samples, *x.shape[1:])
    noise = torch.randn(shape, generator=generator, device=x.device, dtype=x.dtype)
    noise -= noise.mean(1, keepdim=True)
    return noise / noise.square().mean(1, keepdim=True).sqrt()


def _positive(scale: float, layer: str) -> float:
    if not 0 < scale < torch.inf:
        raise ValueError(f"delta_f^2 of layer {layer!r} is {scale}; expected a number > 0: no image reaches the layer")
    return scale


def _check(method: str, center: str, noise_samples: int, steps: int) -> None:
    for name, value, allowed in (("method", method, get_args(Method)), ("center", center, get_args(Center))):
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}; expected {' or '.join(map(repr, allowed))}")
    for name, count, least in (("noise_samples", noise_samples, 2), ("steps", steps, 0)):
        if count < least:
            raise ValueError(f"{name} is {count}; expected a number >= {least}")

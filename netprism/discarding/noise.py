"""The largest noise on an image that hardly moves the features of a layer: sigma, one number per input unit.

x' = x + sigma delta with delta ~ N(0, I), and E ||h(x') - h(x)||^2 = budget. Among all such sigma the one of the
largest entropy is wanted: to first order in closed form (`water_filling_sigma`), otherwise by descent from there
(`optimize_sigma`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from netprism.checks import check_number, check_tensor
from netprism.discarding.layer_view import LayerView, as_images

Entropy = Callable[[Tensor, Tensor], Tensor]  # (images (n, ...), their features (n, noises, ...)) -> nats (n,)

_SOFTENED = 30  # steps are 1 / 30, 1 / 31, ...: larger ones, being random, would undo what the closed form has found
_STEEPEST = 6.0  # so that no sigma changes by more than a factor of e^.2 in a step
_SCALINGS = 4  # at the end, at most
_NEAR = 0.05  # a smaller change of sigma changes the constraint by its square only
PRECISION = 0.015  # relative standard error of the constraint of an optimised sigma
_NOISES_TO_SCALE = 100  # times the noises of a step, at most
MOST_NOISES = 10_000  # of an image: enough for that precision where the features move in one direction


def water_filling_sigma(norms: Tensor, budget: float, max_sigma: float = 1.0) -> Tensor:
    """Returns the sigma of largest sum_i log sigma_i with sum_i sigma_i^2 ||J_:,i||^2 = budget, sigma_i <= max_sigma.

    sigma_i^2 = min(max_sigma^2, mu / ||J_:,i||^2). Without a cap in reach mu = budget / n, which is the paper's case.
    The budget that units at the cap do not use goes to the others (water-filling).

    Args:
        norms: Squared column norms `(N, ...)`, >= 0.
        budget: alpha delta_f^2, the value of E ||h(x') - h(x)||^2.
        max_sigma: Cap of sigma, in units of the input.

    Returns:
        Sigma `(N, ...)` in float64; all at the cap where even that does not use the budget.

    Raises:
        TypeError: Norms are not floating.
        ValueError: A norm or the budget is negative or not finite, or the cap is not positive.

    Example:
        >>> water_filling_sigma(torch.tensor([[1.0, 4.0, 0.0]]), budget=0.5, max_sigma=2.0)
        tensor([[0.5000, 0.2500, 2.0000]], dtype=torch.float64)
    """
    check_number("budget", budget, least=0)
    check_number("max_sigma", max_sigma, above=0)
    check_tensor("norms", norms, least=0)
    costs = norms.double().flatten(1) * max_sigma**2  # what each unit uses at the cap
    ascending = costs.sort(1).values
    n = costs.shape[1]
    used = ascending.cumsum(1) - ascending  # by the units before, all of them at the cap
    level = (budget - used) / torch.arange(n, 0, -1, device=norms.device)  # for each of the others, if these were all
    fits = level <= ascending
    first = fits.int().argmax(1, keepdim=True)
    water = level.gather(1, first).where(fits.any(1, keepdim=True), torch.inf)
    fraction = (water / costs).clamp(max=1).nan_to_num(1)  # 0 / 0 = 1: zero budget, zero cost
    return max_sigma * fraction.sqrt().view(norms.shape)


def feature_change(
    view: LayerView,
    x: Tensor,
    sigma: Tensor,
    *,
    noise_samples: int = 8,
    precision: float | None = None,
    most_noises: int = MOST_NOISES,
    seed: int = 0,
) -> Tensor:
    """Measures E ||h(x + sigma delta) - h(x)||^2 of every image, float64 `(N,)`.

    Args:
        view: One layer of a model.
        x: Images `(N, ...)`.
        sigma: Sigma `(N, ...)`, broadcast to x.
        noise_samples: Number of noises per image, at least 2. The relative standard error is
            sqrt(2 / (noise_samples r)) where r is the number of directions in which the features move: about 10 % for 8
            noises and r = 25.
        precision: Continue until the relative standard error is below this for all images that are in a pass together,
            or for `most_noises`.
        most_noises: Features that move in r directions need 2 / (precision^2 r) noises, 8900 / r for 1.5 %.
        seed: Seed of the noise; the global random state is not used.

    Raises:
        ValueError: Features are not finite, or a number is out of range.
    """
    with view.evaluating(), torch.no_grad():
        x = as_images(x)
        change = torch.zeros(len(x), device=x.device, dtype=torch.float64)
        for rows in _rows(x, noise_samples, view.chunk_size):
            generator = torch.Generator(x.device).manual_seed(seed + rows.start)
            total, squares = change.new_zeros(2, len(x[rows]))
            count, error, fitting = 0, torch.inf, max(1, view.chunk_size // len(x[rows]))
            while count < noise_samples or (precision and error > precision and count < most_noises):
                delta = _noise(x[rows], fitting if precision else min(fitting, noise_samples - count), generator)
                _, drawn = _perturbed(view, x[rows], sigma[rows].to(x), delta)
                total, squares = total + drawn.double().sum(1), squares + drawn.double().square().sum(1)
                count += drawn.shape[1]
                mean = total / count
                spread = ((squares / count - mean.square()).clamp_min(0).sqrt() / mean).nan_to_num()
                error = float(spread.max()) / count**0.5
            change[rows] = total / count
    return change


def optimize_sigma(
    view: LayerView,
    x: Tensor,
    sigma: Tensor,
    budget: float,
    *,
    entropy: Entropy | None = None,
    steps: int = 24,
    noise_samples: int = 16,
    max_sigma: float = 1.0,
    seed: int = 0,
) -> Tensor:
    """Maximises the entropy of x + sigma delta, or another entropy, at E ||h(x + sigma delta) - h(x)||^2 = budget.

    Descends the loss (eq. 5) E ||h(x') - h(x)||^2 / delta_f^2 - lambda sum_i log sigma_i, scaled by 1 / lambda, in
    log sigma. At the optimum of a linear h its second derivatives are 2, so a step is half the gradient times
    1 / (t + 30), which averages the random gradients; Adam needed twice as many steps for the same entropy. lambda
    begins as 2 alpha / n and follows the constraint; at the end sigma is scaled so as to meet it.

    Args:
        view: One layer of a model. The noises of one image stay in one forward pass, also where they are more than
            `chunk_size`.
        x: Images `(N, ...)`; each is optimised by itself.
        sigma: Sigma to start from, `(N, ...)`, with 1 where units share theirs; best that of `water_filling_sigma`.
        budget: alpha delta_f^2, > 0.
        entropy: Function from images `(n, ...)` and features of x' `(n, noise_samples, ...)` to nats `(n,)`, which are
            maximised; differentiable in the features. None: sum_i log sigma_i.
        steps: Number of steps of the descent; each runs the model forward and back on N x noise_samples images.
        noise_samples: Number of noises per image and step.
        max_sigma: Cap of sigma, in units of the input.
        seed: Seed of the noise; the global random state is not used.

    Returns:
        Sigma `(N, ...)` of the given shape and type.

    Raises:
        ValueError: The budget is not positive, features are not finite, or a number is out of range.

    Source: Ma et al. 2019, equations 5 and 11, https://openreview.net/forum?id=BygG3hEYvB.
    """
    if not budget > 0:
        raise ValueError(f"budget is {budget}; expected alpha delta_f^2 > 0")
    with view.evaluating():
        x = as_images(x)
        best = torch.empty_like(sigma)
        for rows in _rows(x, noise_samples, view.chunk_size):
            generator = torch.Generator(x.device).manual_seed(seed + rows.start)
            start, cap = sigma[rows].to(x).clamp(max=max_sigma).log(), math.log(max_sigma)
            log_sigma = _descend(view, x[rows], start, budget, entropy, steps, noise_samples, cap, generator)
            best[rows] = log_sigma.exp().to(best)
        for turn in range(_SCALINGS):  # on the same noises each time
            change = feature_change(
                view, x, best, noise_samples=noise_samples, precision=PRECISION,
                most_noises=_NOISES_TO_SCALE * noise_samples, seed=seed + 1,
            )  # fmt: skip
            factor = (budget / change).sqrt().to(best).view(-1, *[1] * (best.dim() - 1))
            # Unseen units stay at the cap; all are scaled only where the others do not suffice.
            free = (best < max_sigma) | (turn >= _SCALINGS // 2)
            best = (best * factor).clamp(max=max_sigma).where(free, best)
            if ((factor - 1).abs() < _NEAR).all():
                break
    return best


def _descend(
    view: LayerView,
    x: Tensor,
    log_sigma: Tensor,
    budget: float,
    entropy: Entropy | None,
    steps: int,
    noise_samples: int,
    cap: float,
    generator: torch.Generator,
) -> Tensor:
    """Returns log sigma `(N, ...)` after the steps, each of which draws new noise."""
    multiplier = torch.ones(len(x), device=x.device, dtype=x.dtype)  # lambda in units of 2 alpha / n
    for step in range(steps):
        log_sigma.requires_grad_()
        features, change = _perturbed(view, x, log_sigma.exp(), _noise(x, noise_samples, generator))
        ratio = change.mean(1) / budget
        free = (log_sigma < cap).flatten(1).sum(1).clamp(min=1)  # those at the cap take no part in the constraint
        nats = log_sigma.flatten(1).sum(1) if entropy is None else entropy(x, features)
        loss = (free / 2 * ratio / multiplier - nats).sum()
        (gradient,) = torch.autograd.grad(loss, log_sigma)
        with torch.no_grad():
            rate = 1 / (step + _SOFTENED)
            log_sigma = (log_sigma - rate * (gradient / 2).clamp(-_STEEPEST, _STEEPEST)).clamp(max=cap)
            multiplier = multiplier * ratio.detach().clamp(1e-3, 1e3).pow(-rate)
    return log_sigma.detach()


def _rows(x: Tensor, noise_samples: int, chunk_size: int) -> list[slice]:
    """Images that go through the model together, each with all its noises."""
    if noise_samples < 2:
        raise ValueError(f"noise_samples is {noise_samples}; expected a number >= 2")
    size = max(1, chunk_size // noise_samples)
    return [slice(start, min(start + size, len(x))) for start in range(0, len(x), size)]


def _noise(x: Tensor, noise_samples: int, generator: torch.Generator) -> Tensor:
    """Independent delta `(N, noises, ...)`: a pair delta, -delta would, to first order, tell the same thing twice."""
    return torch.randn(len(x), noise_samples, *x.shape[1:], generator=generator, device=x.device, dtype=x.dtype)


def _perturbed(view: LayerView, x: Tensor, sigma: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Features `(N, noises, ...)` of x + sigma delta, and their squared distances `(N, noises)` to those of x."""
    with torch.no_grad():
        clean = view.feature(x)
    noisy = x.unsqueeze(1) + sigma.unsqueeze(1) * delta
    features = view.feature(noisy.flatten(0, 1)).unflatten(0, delta.shape[:2])
    return features, (features - clean.unsqueeze(1)).square().flatten(2).sum(2)

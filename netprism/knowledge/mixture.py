"""Mixtures of von Mises-Fisher distributions: category probabilities of features, and a fit to unit vectors.

Source: Li et al. 2021, eqs. (1) and (6), https://arxiv.org/abs/2111.03505.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from netprism.checks import check_number, check_tensor
from netprism.knowledge.kappa_table import kappa_and_log_normalizer
from netprism.knowledge.vmf import check_unit, concentration_from_resultant_length, log_normalizer

_KAPPA_LIMIT = 1e6  # a component that has shrunk to a single sample has no finite kappa


def log_posterior(
    features: Tensor, directions: Tensor, priors: Tensor, *, kappa_max: float, noise: float = 1.0
) -> Tensor:
    """Log-probabilities Q of the categories of features g = l o, with the strength l = ||g|| and the direction o.

        Q(y | g) = pi_y exp(kappa(l) cos(o, mu_y)) / sum_y' pi_y' exp(kappa(l) cos(o, mu_y'))

    A feature of strength 0 has the probabilities pi, whatever its direction.

    Args:
        features: Features g, `(..., d)`.
        directions: Directions mu of the categories, `(C, d)`, of any length > 0.
        priors: Priors pi of the categories, `(C,)`, >= 0.
        kappa_max: Concentration of features without noise.
        noise: Standard deviation of the noise in each dimension, in the unit of the features.

    Returns:
        log Q `(..., C)`, in nats, differentiable in all tensors.

    Raises:
        TypeError: A tensor is not floating.
        ValueError: A feature is NaN or infinite, directions or priors are out of range or of another shape, or
            kappa_max or noise is not positive.

    Example:
        >>> east, weak = torch.tensor([3.0, 0.0]), torch.tensor([0.01, 0.0])
        >>> log_posterior(torch.stack([east, weak]), torch.eye(2), torch.full((2,), 0.5), kappa_max=10).exp()
        tensor([[0.9921, 0.0079],
                [0.5030, 0.4970]])
    """
    check_tensor("directions", directions, ("C", "d"))
    check_tensor("priors", priors, (len(directions),), least=0)
    if not priors.detach().sum() > 0:
        raise ValueError(f"priors is {priors.tolist()}; expected one > 0")
    evidence = natural_parameters(features, kappa_max, noise) @ F.normalize(directions, dim=-1).T
    return torch.log_softmax(evidence + priors.log(), dim=-1)


def natural_parameters(features: Tensor, kappa_max: float, noise: float = 1.0) -> Tensor:
    """kappa(l) o of features l o, `(..., d)`: the more certain the direction the longer, up to kappa_max."""
    if not kappa_max > 0 or not noise > 0:
        raise ValueError(f"kappa_max is {kappa_max} and noise is {noise}; expected > 0 for both")
    strengths = features.norm(dim=-1) / noise
    check_tensor("the strength of features", strengths)
    kappa, _ = kappa_and_log_normalizer(strengths, features.shape[-1], kappa_max)
    return kappa.unsqueeze(-1) * F.normalize(features, dim=-1)


@dataclass(frozen=True)
class VMFMixture:
    """A mixture of C von Mises-Fisher distributions.

    Attributes:
        directions: Mean directions mu, unit vectors `(C, d)`.
        priors: Weights of the components `(C,)`, which sum to 1.
        kappa: Concentrations of the components `(C,)`.
        log_likelihood: Mean log-density of the samples that the mixture was fitted to, in nats.
    """

    directions: Tensor
    priors: Tensor
    kappa: Tensor
    log_likelihood: float


def fit_mixture(samples: Tensor, components: int, *, steps: int = 100, restarts: int = 5, seed: int = 0) -> VMFMixture:
    """Fits a mixture of von Mises-Fisher distributions by expectation maximisation.

    Each restart begins with samples that are far from one another, as k-means++ does; the likeliest mixture is kept.
    Cost: restarts * steps * n * C * d multiply-adds. Memory: n * C numbers beside the samples.

    Args:
        samples: Unit vectors `(n, d)`, n >= C.
        components: Number C of components, >= 1.
        steps: Number of expectation and maximisation steps.
        restarts: Number of fits, each from another beginning.
        seed: Seed of the beginnings; the global random state is not used.

    Raises:
        ValueError: There are fewer samples than components, a sample is not a unit vector, or a value is NaN.
    """
    check_unit(samples)
    check_number("steps", steps, least=0)
    check_number("restarts", restarts, least=1)
    if not 1 <= components <= len(samples):
        raise ValueError(f"components is {components}; expected 1 to {len(samples)}, the number of samples")
    draws = torch.Generator(samples.device).manual_seed(seed)
    fits = [_expectation_maximisation(samples.detach().double(), components, steps, draws) for _ in range(restarts)]
    return max(fits, key=lambda fit: fit.log_likelihood)


def _expectation_maximisation(samples: Tensor, components: int, steps: int, draws: torch.Generator) -> VMFMixture:
    n, d = samples.shape
    mu = _spread(samples, components, draws)
    priors = samples.new_full((components,), 1 / components)
    kappa = samples.new_full((components,), float(d))
    for step in range(steps + 1):
        log_joint = priors.log() + log_normalizer(kappa, d) + kappa * (samples @ mu.T)
        log_density = log_joint.logsumexp(1, keepdim=True)
        if step == steps:
            break
        posteriors = (log_joint - log_density).exp()
        sums, weights = posteriors.T @ samples, posteriors.sum(0).clamp(min=torch.finfo(samples.dtype).tiny)
        mu = F.normalize(sums, dim=1)
        priors = weights / n
        lengths = (sums.norm(dim=1) / weights).clamp(max=1)
        kappa = concentration_from_resultant_length(lengths, d).clamp(max=_KAPPA_LIMIT)
    return VMFMixture(mu, priors, kappa, log_density.mean().item())


def _spread(samples: Tensor, count: int, draws: torch.Generator) -> Tensor:
    """Samples drawn one by one, with probability proportional to their distance from those drawn before."""
    chosen = samples[torch.randint(len(samples), (1,), generator=draws, device=samples.device)]
    while len(chosen) < count:
        distance = (1 - (samples @ chosen.T).amax(1)).clamp(min=1e-12)
        chosen = torch.cat([chosen, samples[torch.multinomial(distance, 1, generator=draws)]])
    return chosen

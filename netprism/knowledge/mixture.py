"""Mixtures of von Mises-Fisher distributions: a fit to unit vectors, and the classes of features that have a strength.

Source: "Visualizing the Emergence of Intermediate Visual Patterns in DNNs", equations 1 and 6.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from netprism.knowledge.vmf import check_unit, concentration, kappa_of_strength, log_normalizer

_KAPPA_LIMIT = 1e6  # of a component: one that has shrunk to a single sample has no finite kappa


def log_posterior(
    features: Tensor, directions: Tensor, priors: Tensor, *, kappa_max: float, noise: float = 1.0
) -> Tensor:
    """Log-probabilities of the categories of features g = l o, with the strength l = ||g|| and the direction o.

        Q(y | g) = pi_y exp(kappa(l) cos(o, mu_y)) / sum_y' pi_y' exp(kappa(l) cos(o, mu_y'))

    A weak feature has the probabilities pi, whatever its direction.

    Args:
        features: g, `(..., d)`.
        directions: mu, `(C, d)`, of any length > 0.
        priors: pi, `(C,)`, >= 0.
        kappa_max: concentration of features without noise.
        noise: standard deviation of the noise in each dimension, in the unit of the features.

    Returns:
        log Q `(..., C)`, in nats, differentiable in all tensors.

    Raises:
        ValueError: features that are NaN; kappa_max or noise that is not positive.

    Example:
        >>> east, weak = torch.tensor([3.0, 0.0]), torch.tensor([0.01, 0.0])
        >>> log_posterior(torch.stack([east, weak]), torch.eye(2), torch.full((2,), 0.5), kappa_max=10).exp()
        tensor([[0.9921, 0.0079],
                [0.5030, 0.4970]])
    """
    evidence = natural_parameters(features, kappa_max, noise) @ F.normalize(directions, dim=-1).T
    return torch.log_softmax(evidence + priors.log(), dim=-1)


def natural_parameters(features: Tensor, kappa_max: float, noise: float = 1.0) -> Tensor:
    """kappa(l) o of features l o, `(..., d)`: as long as their direction is certain, up to kappa_max."""
    strengths = features.norm(dim=-1)
    kappa = kappa_of_strength(strengths, features.shape[-1], kappa_max, noise)
    return kappa.unsqueeze(-1) * F.normalize(features, dim=-1)


@dataclass(frozen=True)
class Mixture:
    """A mixture of C von Mises-Fisher distributions.

    Attributes:
        directions: mean directions mu, unit vectors `(C, d)`.
        priors: shares of the components `(C,)`, which sum to 1.
        kappa: their concentrations `(C,)`.
        log_likelihood: mean log-density of the samples it was fitted to, in nats.
    """

    directions: Tensor
    priors: Tensor
    kappa: Tensor
    log_likelihood: float


def fit_mixture(samples: Tensor, components: int, *, steps: int = 100, restarts: int = 5, seed: int = 0) -> Mixture:
    """Fits a mixture of von Mises-Fisher distributions by expectation maximisation.

    Each restart begins with samples that are far from one another, as k-means++ does; the likeliest mixture wins.
    Cost: restarts * steps * n * C * d multiply-adds; memory: n * C numbers beside the samples.

    Args:
        samples: unit vectors `(n, d)`, n >= C.
        components: C, >= 1.
        steps: rounds of expectation and maximisation.
        restarts: how often to begin anew.
        seed: of the beginnings; the global random state is left alone.

    Raises:
        ValueError: fewer samples than components; vectors that are not unit vectors, NaN.
    """
    check_unit(samples)
    if not 1 <= components <= len(samples):
        raise ValueError(f"components is {components}: expected 1 to {len(samples)}, the number of samples")
    draws = torch.Generator(samples.device).manual_seed(seed)
    fits = [_expectation_maximisation(samples.detach().double(), components, steps, draws) for _ in range(restarts)]
    return max(fits, key=lambda fit: fit.log_likelihood)


def _expectation_maximisation(samples: Tensor, components: int, steps: int, draws: torch.Generator) -> Mixture:
    n, d = samples.shape
    mu = _spread(samples, components, draws)
    priors = samples.new_full((components,), 1 / components)
    kappa = samples.new_full((components,), float(d))
    for step in range(steps + 1):
        log_joint = priors.log() + log_normalizer(kappa, d) + kappa * (samples @ mu.T)
        log_density = log_joint.logsumexp(1, keepdim=True)
        if step == steps:
            break
        shares = (log_joint - log_density).exp()
        sums, weights = shares.T @ samples, shares.sum(0).clamp(min=torch.finfo(samples.dtype).tiny)
        mu = F.normalize(sums, dim=1)
        priors = weights / n
        kappa = concentration((sums.norm(dim=1) / weights).clamp(max=1), d).clamp(max=_KAPPA_LIMIT)
    return Mixture(mu, priors, kappa, log_density.mean().item())


def _spread(samples: Tensor, count: int, draws: torch.Generator) -> Tensor:
    """Samples drawn one after the other with a probability that grows with the distance to those there are."""
    chosen = samples[torch.randint(len(samples), (1,), generator=draws, device=samples.device)]
    while len(chosen) < count:
        distance = (1 - (samples @ chosen.T).amax(1)).clamp(min=1e-12)
        chosen = torch.cat([chosen, samples[torch.multinomial(distance, 1, generator=draws)]])
    return chosen

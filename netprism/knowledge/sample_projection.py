"""The projection of sample features into a few dimensions where direction tells the category and strength how surely.

A linear map takes a feature f of a sample, divided by the mean length of all, to g = M f, of strength l = ||g|| and
direction o = g / l. The categories have directions mu_y and priors pi_y, and

    Q(y | x) = pi_y exp(kappa(l) cos(o, mu_y)) / sum_y' pi_y' exp(kappa(l) cos(o, mu_y'))

is to be what the network says, softened by a temperature: P = softmax(logits / T). M goes down mean_x KL(P || Q), where
mu_y = normalise(sum_x P(y|x) kappa(l_x) o_x) and pi_y = mean_x P(y|x) follow M in each step.

The paper holds mu still while M moves. On digits ResNet-8 that, with 800 steps of Adam, ends at KL .143 nats and a
correlation of strength and entropy of -.82; mu following, with 218 evaluations of L-BFGS, at .139 and -.876. From
M ~ N(0, .01) 5 of 12 seeds end in worse optima (.148 to .168); from the directions in which P and f vary together, none
did.

Source: "Visualizing the Emergence of Intermediate Visual Patterns in DNNs", section 3.2, equations 4 to 6.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from netprism.distributed import all_reduce_sum, is_rank_zero
from netprism.knowledge.mixture import log_posterior, natural_parameters

_FIRST_STRENGTH = 0.1  # of a feature of mean length, at most: from 3 and more kappa saturates and KL sticks


class Projection(nn.Module):
    """Sample features to g, with the categories' directions and priors; in float64.

    Args:
        size: d, the length of a sample feature; features of more dimensions are flattened.
        categories: C.
        dimensions: d', the length of g, from 2 to min(C, d).
        kappa_max: concentration of features without noise.

    Attributes:
        matrix: M, `(d', d)`, the only parameter; 0 until the first `descend`.
        scale: mean length of the first features, by which all are divided; 0 until then.
        sums: `(C, d' + 1)`, sum over samples of P kappa o, and of P.

    Raises:
        ValueError: dimensions out of range.
    """

    scale: Tensor
    sums: Tensor

    def __init__(self, size: int, categories: int, dimensions: int = 3, kappa_max: float = 10.0) -> None:
        super().__init__()
        if not 2 <= dimensions <= min(size, categories):
            allowed = f"2 to {min(size, categories)} with features of size {size} and {categories} categories"
            raise ValueError(f"dimensions is {dimensions}: expected {allowed}")
        self.kappa_max = kappa_max
        self.matrix = nn.Parameter(torch.zeros(dimensions, size, dtype=torch.float64))
        self.register_buffer("scale", torch.zeros((), dtype=torch.float64))
        self.register_buffer("sums", torch.zeros(categories, dimensions + 1, dtype=torch.float64))

    @property
    def directions(self) -> Tensor:
        """mu, unit vectors `(C, d')`."""
        return F.normalize(self.sums[:, :-1], dim=1)

    @property
    def priors(self) -> Tensor:
        """pi, `(C,)`, which sum to 1."""
        priors: Tensor = self.sums[:, -1] / self.sums[:, -1].sum()
        return priors

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, ...) to g (N, d')."""
        g: Tensor = features.flatten(1).double() / self.scale @ self.matrix.T
        return g

    def log_posterior(self, g: Tensor) -> Tensor:
        """Log Q (N, C) of g (N, d'), in nats."""
        return log_posterior(g, self.directions, self.priors, kappa_max=self.kappa_max)

    @torch.no_grad()
    def rotate(self, rotation: Tensor) -> None:
        """Turns all g and mu by an orthogonal matrix `(d', d')`; Q stays as it is."""
        self.matrix.copy_(rotation @ self.matrix)
        self.sums[:, :-1] = self.sums[:, :-1] @ rotation.T


def soft_targets(logits: Tensor, temperature: float = 4.0) -> Tensor:
    """What the network says, softened: P = softmax(logits / T), float64 `(N, C)`.

    Raises:
        ValueError: the logits are not (N, C), are NaN or infinite, or are probabilities already; a temperature <= 0.
    """
    if logits.ndim != 2:
        raise ValueError(f"logits are {tuple(logits.shape)}: expected (samples, categories)")
    if not logits.isfinite().all():
        raise ValueError("logits have values that are NaN or infinite")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}: expected > 0")
    if (logits >= 0).all() and torch.allclose(logits.sum(1), logits.new_ones(()), atol=1e-3):
        raise ValueError("logits are probabilities already, >= 0 and of sum 1: give what goes into the softmax")
    return F.softmax(logits.double() / temperature, dim=1)


def output_entropy(targets: Tensor) -> Tensor:
    """H(Y | x) of probabilities `(N, C)`, in nats `(N,)`; 0 log 0 is 0."""
    entropies: Tensor = torch.special.entr(targets).sum(1)
    return entropies


def divergence(targets: Tensor, log_q: Tensor) -> Tensor:
    """KL(P || Q) of each sample, in nats `(N,)`, from P `(N, C)` and log Q `(N, C)`."""
    differences: Tensor = torch.special.xlogy(targets, targets) - targets * log_q
    return differences.sum(1)


def strength_correlation(strengths: Tensor, entropies: Tensor) -> float:
    """Pearson's correlation of strengths `(N,)` and entropies `(N,)`: -1 where the surest samples are the strongest.

    NaN where either is the same for all samples.
    """
    a, b = (values.double() - values.double().mean() for values in (strengths, entropies))
    lengths = (a.norm() * b.norm()).item()
    return (a @ b).item() / lengths if lengths > 0 else math.nan


def descend(
    projection: Projection,
    features: Tensor,
    targets: Tensor,
    optimizer: torch.optim.Optimizer,
    past: Tensor | float = 0.0,
) -> float:
    """One step of the optimiser on a batch, of which each process has a share.

    The first call starts the projection: scale, and M along the directions in which targets and features vary together.

    Args:
        projection: changed in place.
        features: `(N, ...)`, without gradient.
        targets: P, `(N, C)`.
        optimizer: of `projection.matrix`; L-BFGS makes all its evaluations in this one step.
        past: sums of earlier batches, which count for mu and pi beside this one; 0 where the batch is all there is.

    Returns:
        KL in nats, the mean over the samples of all processes, with mu and pi as they are afterwards.

    Raises:
        ValueError: features of another size, constant or not finite; a KL that is not finite.
    """
    features = _checked(features, projection)
    count = all_reduce_sum(torch.tensor(float(len(features)), dtype=torch.float64, device=features.device))
    if projection.scale == 0:
        _start(projection, features, targets, count)

    def share() -> tuple[Tensor, Tensor]:
        weighted = natural_parameters(projection(features), projection.kappa_max)
        own = torch.cat([targets.T @ weighted, targets.sum(0).unsqueeze(1)], dim=1)
        sums = past + all_reduce_sum(own)
        log_q = F.log_softmax(weighted @ F.normalize(sums[:, :-1], dim=1).T + sums[:, -1].log(), dim=1)
        return divergence(targets, log_q).sum() / count, sums.detach()

    def closure() -> float:
        with torch.enable_grad():
            loss, _ = share()
            (slope,) = torch.autograd.grad(loss, projection.matrix)  # of all processes' losses, by way of this share
        projection.matrix.grad = all_reduce_sum(slope)
        return all_reduce_sum(loss.detach()).item()

    optimizer.step(closure)
    with torch.no_grad():
        loss, sums = share()
        projection.sums.copy_(sums)
    value = all_reduce_sum(loss).item()
    if not math.isfinite(value):
        raise ValueError(f"KL is {value} after a step: try a smaller learning rate")
    return value


def fit_projection(
    features: Tensor,
    logits: Tensor,
    *,
    dimensions: int = 3,
    temperature: float = 4.0,
    kappa_max: float = 10.0,
    steps: int = 200,
    initial: Projection | None = None,
) -> Projection:
    """Fits a projection to features and logits that are in memory: of several processes, in that of each, and the same.

    Cost: about 1.1 evaluations a step, each N (2 d d' + 2 d' C) multiply-adds and N times kappa (3 us); 2 s for
    1437 samples on a busy core. Memory: the features in float64.

    Args:
        features: f, `(N, ...)`.
        logits: of the network for the same samples, `(N, C)`.
        dimensions: d'.
        temperature: T, of the softened outputs.
        kappa_max: concentration of features without noise.
        steps: of L-BFGS, at most.
        initial: begin with its M, and rotate the result onto it: for the next epoch of a film.

    Raises:
        ValueError: what `soft_targets`, `Projection` and `descend` refuse; features and logits of different samples.
    """
    if len(features) != len(logits):
        raise ValueError(f"features are of {len(features)} samples and logits of {len(logits)}")
    targets = soft_targets(logits.detach(), temperature)
    projection = Projection(features[0].numel(), targets.shape[1], dimensions, kappa_max).to(features.device)
    if initial is not None:
        with torch.no_grad():
            projection.matrix.copy_(initial.matrix)
        projection.scale.copy_(features.flatten(1).double().norm(dim=1).mean())
    _checked(features, projection)  # on all processes, and not only on the one that has a share
    # `descend` adds up over processes: nothing added to all there is leaves it as it is in one process, to the bit. The
    # shares of two would be added in another order, and L-BFGS makes much of little differences.
    share = slice(None) if is_rank_zero() else slice(0)
    descend(projection, features.detach()[share], targets[share], lbfgs([projection.matrix], steps))
    if initial is not None:
        projection.rotate(rotation_onto(projection.directions, initial.directions))
    return projection


def lbfgs(parameters: list[nn.Parameter], steps: int = 200) -> torch.optim.LBFGS:
    """The optimiser that suits a projection whose batch is all there is: some hundreds of parameters, no noise."""
    return torch.optim.LBFGS(parameters, max_iter=steps, history_size=20, line_search_fn="strong_wolfe")


def rotation_onto(points: Tensor, reference: Tensor) -> Tensor:
    """The orthogonal R `(d', d')`, a rotation or reflection, for which points @ R.T is nearest to the reference.

    Args:
        points: `(n, d')`.
        reference: `(n, d')`, the same points in another picture.

    Source: "A generalized solution of the orthogonal Procrustes problem" (Schönemann, 1966).
    """
    left, _, right = torch.linalg.svd(reference.double().T @ points.double())
    return cast(Tensor, left @ right)


def _checked(features: Tensor, projection: Projection) -> Tensor:
    flat = features.flatten(1).double()
    if flat.shape[1] != projection.matrix.shape[1]:
        raise ValueError(
            f"features have the size {flat.shape[1]}, those of this projection {projection.matrix.shape[1]}"
        )
    if not flat.isfinite().all():
        raise ValueError("features have values that are NaN or infinite")
    return flat


@torch.no_grad()
def _start(projection: Projection, features: Tensor, targets: Tensor, count: Tensor) -> None:
    """Scale, and M: the d' directions in which features covary most with the targets, for small strengths.

    C targets sum to 1, so that there are C - 1 such directions at most. The others that come out of a covariance are
    rounding errors, which differ between one process and two: random ones of a fixed seed take their place. So is the
    sign of each: its largest entry is made positive.
    """
    scale = all_reduce_sum(features.norm(dim=1).sum()) / count
    mean, means = all_reduce_sum(features.sum(0)) / count, all_reduce_sum(targets.sum(0)) / count
    covariance = all_reduce_sum((targets - means).T @ (features - mean)) / count
    _, spread, axes = torch.linalg.svd(covariance, full_matrices=False)
    if not spread[0] > 1e-9 * scale:
        raise ValueError("features are constant, or have nothing to do with the outputs: there is nothing to project")
    projection.scale.copy_(scale)
    found = axes[: len(projection.matrix)][spread[: len(projection.matrix)] > 1e-9 * spread[0]]
    found = found * found.gather(1, found.abs().argmax(1, keepdim=True)).sign()
    missing = len(projection.matrix) - len(found), features.shape[1]
    random = torch.randn(missing, generator=torch.Generator().manual_seed(0), dtype=features.dtype).to(features.device)
    others = F.normalize(random - random @ found.T @ found, dim=1)
    projection.matrix.copy_(_FIRST_STRENGTH * torch.cat([found, others]))

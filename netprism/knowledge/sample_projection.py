"""The projection of sample features into a few dimensions: direction shows the category, strength how sure it is.

A linear map takes the feature f of a sample to g = M (f - c), with the strength l = ||g|| and the direction o = g / l.
c is the mean of all features; they are divided by their mean distance from it. The categories have directions mu_y and
priors pi_y, and

    Q(y | x) = pi_y exp(kappa(l) cos(o, mu_y)) / sum_y' pi_y' exp(kappa(l) cos(o, mu_y'))

imitates the network's output softened by a temperature, P = softmax(logits / T). M minimises mean_x KL(P || Q), where
mu_y = normalise(sum_x P(y|x) kappa(l_x) o_x) and pi_y = mean_x P(y|x) follow M in each step.

The paper has no c. Features behind a ReLU and a pooling have a large common mean, on which M would spend its few
dimensions: `docs/projections.md` has both on digits and on photographs.

The paper keeps mu fixed while M moves. On digits with ResNet-8 and 800 steps of Adam, that ends at KL .143 nats and a
correlation of strength and entropy of -.82; with mu following and 218 evaluations of L-BFGS, it ends at .139 and -.876.
From M ~ N(0, .01), 5 of 12 seeds end in worse optima (.148 to .168); from the directions in which P and f vary
together, no seed did.

Source: Li et al. 2021, section 3.2, eqs. (4) to (6), https://arxiv.org/abs/2111.03505.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from netprism.distributed import all_reduce_sum, is_rank_zero
from netprism.knowledge.kappa_table import values_and_slopes
from netprism.knowledge.lbfgs import LBFGS
from netprism.knowledge.mixture import log_posterior

# Largest strength of a feature of mean length at the start. From 3 upwards kappa saturates and the optimisation stalls.
_FIRST_STRENGTH = 0.1


class SampleProjector(nn.Module):
    """The linear map from sample features f to g, with the directions and priors of the categories, in float64.

    Args:
        size: Length d of a sample feature; features of more dimensions are flattened.
        categories: Number C of categories.
        dimensions: Length d' of g, from 2 to min(C, d).
        kappa_max: Concentration of features without noise.
        center: Subtract the mean of the features.

    Attributes:
        matrix: M, `(d', d)`, the only parameter; 0 until the first `projection_step`.
        mean: Mean c of the first features, `(d,)`; 0 until the first `projection_step`, and always without `center`.
        scale: Mean length of the first features less c, by which all are divided; 0 until the first `projection_step`.
        sums: Sums over samples of P kappa o, and of P, `(C, d' + 1)`.

    Raises:
        ValueError: dimensions is out of range.
    """

    mean: Tensor
    scale: Tensor
    sums: Tensor

    def __init__(
        self, size: int, categories: int, dimensions: int = 3, kappa_max: float = 10.0, center: bool = True
    ) -> None:
        super().__init__()
        if not 2 <= dimensions <= min(size, categories):
            allowed = f"2 to {min(size, categories)} with features of size {size} and {categories} categories"
            raise ValueError(f"dimensions is {dimensions}; expected {allowed}")
        self.kappa_max, self.center = kappa_max, center
        self.matrix = nn.Parameter(torch.zeros(dimensions, size, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("scale", torch.zeros((), dtype=torch.float64))
        self.register_buffer("sums", torch.zeros(categories, dimensions + 1, dtype=torch.float64))

    @property
    def directions(self) -> Tensor:
        """Directions mu of the categories, unit vectors `(C, d')`."""
        return F.normalize(self.sums[:, :-1], dim=1)

    @property
    def priors(self) -> Tensor:
        """Priors pi of the categories, `(C,)`, which sum to 1."""
        priors: Tensor = self.sums[:, -1] / self.sums[:, -1].sum()
        return priors

    def forward(self, features: Tensor) -> Tensor:
        """Maps features f `(N, ...)` to g `(N, d')`."""
        g: Tensor = (features.flatten(1).double() - self.mean) / self.scale @ self.matrix.T
        return g

    def log_posterior(self, g: Tensor) -> Tensor:
        """Returns log Q `(N, C)` of g `(N, d')`, in nats."""
        return log_posterior(g, self.directions, self.priors, kappa_max=self.kappa_max)

    @torch.no_grad()
    def set_scale(self, features: Tensor, count: Tensor) -> None:
        """Sets c and the scale from the features of all ranks.

        Args:
            features: This rank's features, float64 `(N, d)`.
            count: Number of features of all ranks.
        """
        if self.center:
            self.mean.copy_(all_reduce_sum(features.sum(0)) / count)
        self.scale.copy_(all_reduce_sum((features - self.mean).norm(dim=1).sum()) / count)

    @torch.no_grad()
    def rotate(self, rotation: Tensor) -> None:
        """Rotates all g and mu by an orthogonal matrix `(d', d')`, which leaves Q unchanged."""
        self.matrix.copy_(rotation @ self.matrix)
        self.sums[:, :-1] = self.sums[:, :-1] @ rotation.T


def soft_targets(logits: Tensor, temperature: float = 4.0) -> Tensor:
    """The network's softened output P = softmax(logits / T), float64 `(N, C)`.

    Raises:
        ValueError: The logits are not (N, C), are NaN or infinite, or are already probabilities; the temperature is
            not positive.
    """
    if logits.ndim != 2:
        raise ValueError(f"shape of logits is {tuple(logits.shape)}; expected (N, C)")
    if not logits.isfinite().all():
        raise ValueError("logits is NaN or infinite; expected finite values")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; expected > 0")
    if (logits >= 0).all() and torch.allclose(logits.sum(1), logits.new_ones(()), atol=1e-3):
        raise ValueError("logits is already a probability, >= 0 with sum 1; expected the input of the softmax")
    return F.softmax(logits.double() / temperature, dim=1)


def output_entropy(targets: Tensor) -> Tensor:
    """Entropy H(Y | x) of probabilities `(N, C)`, in nats, `(N,)`; 0 log 0 is 0."""
    entropies: Tensor = torch.special.entr(targets).sum(1)
    return entropies


def divergence(targets: Tensor, log_q: Tensor) -> Tensor:
    """KL(P || Q) of each sample, in nats, `(N,)`, from P `(N, C)` and log Q `(N, C)`."""
    differences: Tensor = torch.special.xlogy(targets, targets) - targets * log_q
    return differences.sum(1)


def strength_correlation(strengths: Tensor, entropies: Tensor) -> float:
    """Pearson's correlation of strengths `(N,)` and entropies `(N,)`; negative where strong samples are the sure ones.

    It is NaN where either is the same for all samples.
    """
    a, b = (values.double() - values.double().mean() for values in (strengths, entropies))
    lengths = (a.norm() * b.norm()).item()
    return (a @ b).item() / lengths if lengths > 0 else math.nan


def projection_step(
    projection: SampleProjector,
    features: Tensor,
    targets: Tensor,
    optimizer: torch.optim.Optimizer,
    past: Tensor | float = 0.0,
) -> float:
    """Makes one step of the optimiser on a batch that may be distributed over the ranks.

    The first call sets c and the scale, and M along the directions in which targets and features vary together.

    Args:
        projection: The projection, changed in place.
        features: This rank's features f, `(N, ...)`, without gradient.
        targets: This rank's softened outputs P, `(N, C)`.
        optimizer: Optimiser of `projection.matrix`; L-BFGS makes all its evaluations in this one step.
        past: Sums of earlier batches, which are added to those of this batch for mu and pi; 0 if there are no others.

    Returns:
        KL in nats, the mean over the samples of all ranks, with mu and pi after the step.

    Raises:
        ValueError: Features have another size, are constant or not finite; KL is not finite.
    """
    features = _checked(features, projection)
    count = all_reduce_sum(torch.tensor(float(len(features)), dtype=torch.float64, device=features.device))
    if projection.scale == 0:
        _start(projection, features, targets, count)

    negentropy = torch.special.xlogy(targets, targets).sum()
    x = (features - projection.mean) / projection.scale
    matrix = projection.matrix.detach()

    @torch.no_grad()
    def evaluate() -> tuple[Tensor, Tensor, Tensor]:
        """KL of all ranks, its slope in M, and the sums; worked out by hand, in a quarter of the calls of torch."""
        g = x @ matrix.T
        strengths = torch.linalg.vector_norm(g, dim=1, keepdim=True)
        kappa, _, kappa_slope, _ = values_and_slopes(strengths, g.shape[1], projection.kappa_max)
        o = g / strengths.clamp(min=1e-300)
        weighted = kappa * o
        own = torch.cat([targets.T @ weighted, targets.sum(0).unsqueeze(1)], dim=1)
        sums = past + all_reduce_sum(own)
        lengths = torch.linalg.vector_norm(sums[:, :-1], dim=1, keepdim=True).clamp(min=1e-300)
        mu = sums[:, :-1] / lengths
        log_q = F.log_softmax(torch.addmm(sums[:, -1].log(), weighted, mu.T), dim=1)
        loss = (negentropy - (targets * log_q).sum()) / count
        error = (log_q.exp() - targets) / count
        of_mu = all_reduce_sum(error.T @ weighted)
        of_sums = (of_mu - mu * (mu * of_mu).sum(dim=1, keepdim=True)) / lengths
        pull = torch.addmm(error @ mu, targets, of_sums)
        along = (o * pull).sum(dim=1, keepdim=True)
        of_g = torch.addcmul((pull - along * o) * kappa / strengths.clamp(min=1e-300), o, along * kappa_slope)
        slope = of_g.T @ x
        both = all_reduce_sum(torch.cat([slope.flatten(), loss.view(1)]))
        return both[-1], both[:-1].view_as(slope), sums

    def closure() -> float:
        loss, projection.matrix.grad, _ = evaluate()
        return loss.item()

    optimizer.step(closure)
    loss, _, sums = evaluate()
    with torch.no_grad():
        projection.sums.copy_(sums)
    value = loss.item()
    if not math.isfinite(value):
        raise ValueError(f"KL is {value} after a step; expected a finite value: try a smaller learning rate")
    return value


def fit_projection(
    features: Tensor,
    logits: Tensor,
    *,
    dimensions: int = 3,
    temperature: float = 4.0,
    kappa_max: float = 10.0,
    steps: int = 200,
    center: bool = True,
    initial: SampleProjector | None = None,
) -> SampleProjector:
    """Fits a projection to features and logits in memory; with several ranks, each must have all of them.

    Cost: about 1.1 evaluations per step, each with N (2 d d' + 2 d' C) multiply-adds and N values of kappa (3 us each);
    2 s for 1437 samples on a busy core. Memory: the features in float64.

    Args:
        features: Sample features f, `(N, ...)`.
        logits: Logits of the network for the same samples, `(N, C)`.
        dimensions: Length d' of g.
        temperature: Temperature T of the softened outputs.
        kappa_max: Concentration of features without noise.
        steps: Largest number of L-BFGS steps.
        center: Subtract the mean of the features.
        initial: Projection of the epoch before: the fit starts from its M, and its result is rotated onto it.

    Raises:
        ValueError: The arguments do not suit `soft_targets`, `SampleProjector` or `projection_step`; features and
            logits differ in length.
    """
    if len(features) != len(logits):
        raise ValueError(f"length of features is {len(features)}; expected {len(logits)}, that of logits")
    targets = soft_targets(logits.detach(), temperature)
    projection = SampleProjector(features[0].numel(), targets.shape[1], dimensions, kappa_max, center)
    projection = projection.to(features.device)
    flat = _checked(features.detach(), projection)  # on all ranks, and not only on the one that contributes
    own = rank_zero_rows()
    if initial is not None:
        projection.set_scale(flat[own], flat.new_tensor(len(flat)))
        with torch.no_grad():
            projection.matrix.copy_(initial.matrix)
    projection_step(projection, flat[own], targets[own], lbfgs([projection.matrix], steps))
    if initial is not None:
        projection.rotate(rotation_onto(projection.directions, initial.directions))
    return projection


def rank_zero_rows() -> slice:
    """The rows that a rank adds to a sum over ranks, of a batch that all have: all on rank 0, none elsewhere.

    Only rank 0 contributes, so the sum is bitwise that of one process. Parts of the batch would be added in another
    order, and L-BFGS amplifies rounding differences.
    """
    return slice(None) if is_rank_zero() else slice(0)


def lbfgs(parameters: list[nn.Parameter], steps: int = 200) -> LBFGS:
    """The optimiser for a projection of a single batch: some hundreds of parameters and no noise in the gradient."""
    # On digits and photographs 1e-9 ends 1e-6 to 5e-6 nats lower, after 220 evaluations instead of 180 to 210. With
    # 1e-6 half the evaluations do, but the correlation of strength and entropy is weaker by .001 to .006.
    return LBFGS(parameters, steps, tolerance=1e-7)


def rotation_onto(points: Tensor, reference: Tensor) -> Tensor:
    """The orthogonal R `(d', d')`, a rotation or reflection, for which points @ R.T is nearest to the reference.

    Args:
        points: Points `(n, d')`.
        reference: The same points in another coordinate system, `(n, d')`.

    Source: Schönemann 1966, "A generalized solution of the orthogonal Procrustes problem",
    https://doi.org/10.1007/BF02289451.
    """
    left, _, right = torch.linalg.svd(reference.double().T @ points.double())
    return cast(Tensor, left @ right)


def _checked(features: Tensor, projection: SampleProjector) -> Tensor:
    flat = features.flatten(1).double()
    if flat.shape[1] != projection.matrix.shape[1]:
        raise ValueError(f"size of a feature is {flat.shape[1]}; expected {projection.matrix.shape[1]}")
    if not flat.isfinite().all():
        raise ValueError("features is NaN or infinite; expected finite values")
    return flat


@torch.no_grad()
def _start(projection: SampleProjector, features: Tensor, targets: Tensor, count: Tensor) -> None:
    """Sets the scale, and M to the d' directions in which features covary most with the targets, with small strengths.

    The C targets sum to 1, so there are at most C - 1 such directions. Further singular vectors of the covariance are
    rounding errors, which differ between one rank and two; random directions of a fixed seed replace them. The sign of
    a singular vector is a rounding error as well; its largest entry is made positive.
    """
    projection.set_scale(features, count)
    mean, means = all_reduce_sum(features.sum(0)) / count, all_reduce_sum(targets.sum(0)) / count
    covariance = all_reduce_sum((targets - means).T @ (features - mean)) / count
    _, spread, axes = torch.linalg.svd(covariance, full_matrices=False)
    if not spread[0] > 1e-9 * (projection.scale + projection.mean.norm()):
        raise ValueError("covariance of features and outputs is 0; expected features that vary with the outputs")
    found = axes[: len(projection.matrix)][spread[: len(projection.matrix)] > 1e-9 * spread[0]]
    found = found * found.gather(1, found.abs().argmax(1, keepdim=True)).sign()
    missing = len(projection.matrix) - len(found), features.shape[1]
    random = torch.randn(missing, generator=torch.Generator().manual_seed(0), dtype=features.dtype).to(features.device)
    others = F.normalize(random - random @ found.T @ found, dim=1)
    projection.matrix.copy_(_FIRST_STRENGTH * torch.cat([found, others]))

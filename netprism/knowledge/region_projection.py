"""The projection of regional features into the space of the sample features' categories.

A linear map takes a regional feature f^(r) of a layer, divided by the mean length of all, to h^(r) = Lambda f^(r). Its
strength ||h^(r)|| is to show how much the region matters, and its direction for which category. With the importance w
of `netprism.knowledge.importance.regional_importance`, Lambda minimises L_similarity + alpha L_align:

    L_similarity = mean_x KL(P(X'|x) || Q(X'|x)),    P(x'|x) ~ exp(kappa_p cos(p', p)),
    Q(x'|x) ~ prod_r vMF(o'^(r); o^(r'), kappa(||h'^(r)||))^(w'^(r)),    o = h / ||h||,
    L_align = -mean_x sum_r w^(r) cos(g, h^(r)),

where r' is the region of x whose raw feature is most similar to that of region r of x', and g is the projected sample
feature.

Source: Li et al. 2021, section 3.3, eqs. (7) to (10), https://arxiv.org/abs/2111.03505.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netprism.knowledge.importance import MEMORY, best_matches, network_similarity
from netprism.knowledge.vmf import kappa_of_strength, log_normalizer

_FIRST_DEVIATION = 0.01  # standard deviation of the first values, so that strengths begin below 1


class RegionProjector(nn.Module):
    """The linear map from regional features to h.

    Args:
        channels: Number K of channels.
        dimensions: Length d' of h, that of the sample projection.
        generator: Generator of the first values.

    Attributes:
        matrix: Lambda, `(d', K)`, the only parameter.
        scale: Mean length of the regional features; 0 until `set_scale`.
        losses: L_similarity and L_align, means over the steps of the last fit, `(2,)`; 0 until there was one.
    """

    scale: Tensor
    losses: Tensor

    def __init__(self, channels: int, dimensions: int = 3, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.matrix = nn.Parameter(_FIRST_DEVIATION * torch.randn(dimensions, channels, generator=generator))
        self.register_buffer("scale", torch.zeros(()))
        self.register_buffer("losses", torch.zeros(2))

    @torch.no_grad()
    def set_scale(self, regions: Tensor) -> None:
        """Sets the scale to the mean length of `(N, R, K)` regional features, or to 1 where all of them are 0."""
        mean = regions.norm(dim=2).mean()
        self.scale.copy_(torch.where(mean > 0, mean, 1.0))

    def forward(self, regions: Tensor) -> Tensor:
        """Maps regional features `(N, R, K)` to h `(N, R, d')`."""
        return F.linear(regions / self.scale, self.matrix)


def similarity_loss(
    projected: Tensor,
    matches: Tensor,
    importance: Tensor,
    similarity: Tensor,
    *,
    kappa_max: float = 1000.0,
    similarity_kappa: float = 5.0,
) -> Tensor:
    """L_similarity: Kullback-Leibler divergence between the network's and the regions' similarities of samples.

    Memory: 4 N^2 R d' bytes, about four times as much with the gradient.

    Args:
        projected: Projected regional features h, `(N, R, d')`.
        matches: Region r' of sample x for region r of sample x', integers `(N, N, R)`; see `matching_regions`.
        importance: Importance w of the regions, `(N, R)`.
        similarity: The network's similarities cos(p', p), `(N, N)`.
        kappa_max: Concentration of regions without noise.
        similarity_kappa: Concentration kappa_p of the network's similarity.

    Returns:
        A scalar in nats, >= 0. Each sample is compared with the other samples only.
    """
    n, regions, d = projected.shape
    directions, strength = F.normalize(projected, dim=2), projected.norm(dim=2)
    kappa = kappa_of_strength(strength, d, kappa_max)
    rows = matches + regions * torch.arange(n, device=matches.device)[:, None]  # of all N R directions
    # Coordinate by coordinate: forward and backward take 2 ms, and 13 with F.embedding, for N = R = 64
    cosines = torch.zeros_like(rows, dtype=directions.dtype)  # (N, N, R)
    for own, every in zip(directions.unbind(2), directions.flatten(0, 1).unbind(1), strict=True):
        cosines = cosines + own[:, None] * every.index_select(0, rows.flatten()).view_as(rows)
    log_density = log_normalizer(kappa, d)[:, None] + kappa[:, None] * cosines
    log_q = torch.einsum("ar,abr->ab", importance, log_density)
    same = torch.eye(n, dtype=torch.bool, device=log_q.device)
    log_q = log_q.masked_fill(same, -torch.inf).log_softmax(dim=0).masked_fill(same, 0)
    log_p = (similarity_kappa * similarity).masked_fill(same, -torch.inf).log_softmax(dim=0)
    p = log_p.exp()
    return (p * (log_p.masked_fill(same, 0) - log_q)).sum(dim=0).mean()


def align_loss(projected: Tensor, samples: Tensor, importance: Tensor) -> Tensor:
    """L_align: how far the regions point away from their samples.

    Args:
        projected: Projected regional features h, `(N, R, d')`.
        samples: Projected sample features g, `(N, d')`.
        importance: Importance w of the regions, `(N, R)`.

    Returns:
        A scalar in [-1, 1]; -1 where every important region has the direction of its sample.
    """
    cosines = F.cosine_similarity(projected, samples[:, None], dim=2)
    return -(importance * cosines).sum(dim=1).mean()


def matching_regions(regions: Tensor, memory: int = MEMORY) -> Tensor:
    """The most similar region of every sample for each region of each sample, by the cosine of raw features.

    Cost: K N^2 R^2 multiply-adds. Memory: 2 N^2 R bytes for the result, and `memory` beside it.

    Args:
        regions: Regional features `(N, R, K)`.
        memory: Bytes for the similarities of regions that are computed together.

    Returns:
        `(N, N, R)`, int16: [x', x, r] is the region of x most like region r of x'.
    """
    n, r, _ = regions.shape
    units = F.normalize(regions, dim=2)
    matches = torch.empty(n, n, r, dtype=torch.int16 if r < 2**15 else torch.int32, device=units.device)
    for sample, own in zip(matches, units, strict=True):
        _, rows = best_matches(own[None], units, memory)
        sample.copy_(rows[0].T % r)
    return matches


def fit_region_projection(
    regions: Tensor,
    samples: Tensor,
    importance: Tensor,
    logits: Tensor,
    *,
    start: Tensor | None = None,
    steps: int = 200,
    batch_size: int = 64,
    learning_rate: float = 0.03,
    align_weight: float = 0.1,
    kappa_max: float = 1000.0,
    temperature: float = 4.0,
    seed: int = 0,
) -> RegionProjector:
    """Fits Lambda to the features of one layer by Adam, on random batches of the samples.

    Cost: K N^2 R^2 multiply-adds for the matches, then about 50 B^2 R d' per step with batches of B. Memory: 2 N^2 R
    bytes for the matches, and 20 B^2 R d' per step.

    Args:
        regions: Regional features `(N, R, K)`.
        samples: Projected sample features g, `(N, d')`.
        importance: Importance w of the regions, `(N, R)`.
        logits: Logits of the network, `(N, C)`.
        start: Lambda of the epoch before, whose directions are reused, rescaled to the norm of a random start; None
            for small random numbers. Strengths are still growing after the last step, so only fits that begin with
            the same norm can be compared.
        steps: Number of Adam steps.
        batch_size: Number B of samples in a step; all if there are fewer.
        learning_rate: Learning rate of Adam; it falls to 0 as a cosine.
        align_weight: Weight alpha of L_align.
        kappa_max: Concentration of regions without noise.
        temperature: Temperature of the softened outputs.
        seed: Seed of the first values and of the batches; the global random state is not used.

    Returns:
        The projector, with its gradient switched off.
    """
    draws = torch.Generator().manual_seed(seed)
    projector = RegionProjector(regions.shape[2], samples.shape[1], draws).to(regions)
    projector.set_scale(regions)
    if start is not None:
        with torch.no_grad():
            projector.matrix.copy_(start * projector.matrix.norm() / start.norm().clamp(min=1e-12))
    similarity, matches = network_similarity(logits, temperature).to(regions), matching_regions(regions)
    optimizer = torch.optim.Adam(projector.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with torch.enable_grad():
        for _ in range(steps):
            b = torch.randperm(len(regions), generator=draws)[:batch_size].to(regions.device)
            h = projector(regions[b])
            similar = similarity_loss(h, matches[b][:, b], importance[b], similarity[b][:, b], kappa_max=kappa_max)
            aligned = align_loss(h, samples[b], importance[b])
            optimizer.zero_grad()
            (similar + align_weight * aligned).backward()
            optimizer.step()
            schedule.step()
            projector.losses += torch.stack([similar, aligned]).detach() / steps
    return projector.requires_grad_(False)

"""The projection of regional features into the space of the sample features' categories.

A linear map takes a regional feature f^(r) of a layer, divided by the mean length of all, to h^(r) = Lambda f^(r). Its
strength ||h^(r)|| is to show how much the region matters, and its direction for which category. With the importance w
of the regions, Lambda minimises L_similarity + alpha L_align:

    L_similarity = mean_x KL(P(X'|x) || Q(X'|x)),    P(x'|x) ~ exp(kappa_p cos(p', p)),
    Q(x'|x) ~ prod_r vMF(o'^(r); o^(r'), kappa(||h'^(r)||))^(w'^(r)),    o = h / ||h||,
    L_align = -mean_x sum_r w^(r) cos(g, h^(r)),

where r' is the region of x whose raw feature is most similar to that of region r of x', and g is the projected sample
feature. X' are the other samples of x's group: `netprism.knowledge.groups` draws the groups once.

The paper stops gradient descent after some steps, while strengths are still growing. Here L-BFGS finds a minimum, which
has a finite strength: with a large kappa every sample is similar to few others, and P is not that narrow. With the
paper's alpha = .1 there are several minima, whose counts of knowledge points differ by a tenth, and directions give up
their categories for the similarities; with 1, the two starts that were tried agree: docs/knowledge_points.md.

Source: Li et al. 2021, section 3.3, eqs. (7) to (10), https://arxiv.org/abs/2111.03505.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netprism.knowledge.groups import RegionMatches, match_regions
from netprism.knowledge.importance import network_similarity
from netprism.knowledge.kappa_table import values_and_slopes
from netprism.knowledge.lbfgs import LBFGS

_FIRST_STRENGTH = 2.0  # mean strength at the start; minima have 2 to 3.5
_RIDGE = 1e-3  # of the mean variance, added to that of each direction of the features
_TOLERANCE = 1e-5  # nats; a fit ends when a step of L-BFGS gains less


class RegionProjector(nn.Module):
    """The linear map from regional features to h.

    Args:
        channels: Number K of channels.
        dimensions: Length d' of h, that of the sample projection.

    Attributes:
        matrix: Lambda, `(d', K)`, the only parameter; 0 until a fit.
        scale: Mean length of the regional features; 0 until `set_scale`.
        losses: L_similarity and L_align at the end of the last fit, `(2,)`; 0 until there was one.
    """

    scale: Tensor
    losses: Tensor

    def __init__(self, channels: int, dimensions: int = 3) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.zeros(dimensions, channels))
        self.register_buffer("scale", torch.zeros(()))
        self.register_buffer("losses", torch.zeros(2))

    @torch.no_grad()
    def set_scale(self, regions: Tensor) -> None:
        """Sets the scale to the mean length of `(N, R, K)` regional features, or to 1 where all of them are 0."""
        mean = regions.norm(dim=2).mean()
        self.scale.copy_(torch.where(mean > 0, mean, 1.0))

    def forward(self, regions: Tensor) -> Tensor:
        """Maps regional features `(N, R, K)` to h `(N, R, d')`."""
        return F.linear((regions / self.scale).to(self.matrix), self.matrix)


class RegionLosses:
    """L_similarity and L_align of projected regions, with their slopes: what a fit evaluates again and again.

    The slopes are worked out by hand, in a quarter of the calls of torch that automatic differentiation needs.

    Cost per evaluation: 6 d' multiply-adds per pair of samples of a group and region. Memory: 12 d' bytes for each.

    Args:
        matches: The groups, and which regions of their samples are most alike.
        importance: Importance w of the regions, `(N, R)`.
        similarity: The network's similarities cos(p', p), `(N, N)`.
        samples: Projected sample features g, `(N, d')`.
        align_weight: Weight alpha of L_align.
        kappa_max: Concentration of regions without noise.
        similarity_kappa: Concentration kappa_p of the network's similarity.
    """

    def __init__(
        self,
        matches: RegionMatches,
        importance: Tensor,
        similarity: Tensor,
        samples: Tensor,
        *,
        align_weight: float = 1.0,
        kappa_max: float = 1000.0,
        similarity_kappa: float = 5.0,
    ) -> None:
        groups, size, regions, _ = matches.rows.shape
        d, device = samples.shape[1], samples.device
        self.kappa_max, self.count = kappa_max, groups * size
        within = similarity[matches.samples[:, :, None], matches.samples[:, None]]
        self.own = torch.eye(size, dtype=torch.bool, device=device)
        log_p = (similarity_kappa * within).masked_fill(self.own, -torch.inf).log_softmax(dim=1)
        self.p = log_p.exp()  # (G, B, B): [group, x', x]
        self.negentropy = torch.special.xlogy(self.p, self.p).sum()
        self.w = importance[matches.samples].view(-1, 1, regions)  # (G B, 1, R)
        self.pull = self.w * F.normalize(samples, dim=1)[matches.samples].view(-1, d, 1)  # w g / ||g||, (G B, d', R)
        self.aligned = self.pull * (-align_weight / self.count)  # the slope of alpha L_align in the directions
        # The place of coordinate k of a matched region among the numbers of (G B, d', R).
        first = size * torch.arange(groups, device=device, dtype=torch.int32).view(-1, 1, 1, 1)
        sample, region = first + matches.rows // regions, matches.rows % regions
        coordinates = torch.arange(d, device=device, dtype=torch.int32).view(-1, 1, 1)
        places = (sample.unsqueeze(2) * d + coordinates) * regions + region.unsqueeze(2)
        self.places = places.flatten()  # of (G, B, d', R, B)

    def __call__(self, projected: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the losses and the slope of their weighted sum.

        Args:
            projected: Projected regional features h, group by group, `(G B, d', R)`.

        Returns:
            L_similarity in nats, >= 0, and L_align, in [-1, 1], `(2,)`; and the slope, of the shape of `projected`. A
            region of strength 0 has the slope 0.
        """
        count, d, regions = projected.shape
        strengths = projected.square().sum(dim=1, keepdim=True).sqrt()  # vector_norm takes ten times as long here
        kappa, log_c, kappa_slope, log_c_slope = values_and_slopes(strengths, d, self.kappa_max)
        least = torch.finfo(projected.dtype).tiny ** 0.5
        o = projected / strengths.clamp(min=least)
        weight = self.w * kappa
        a = (weight * o).view(count, 1, d * regions)
        matched = o.view(-1).index_select(0, self.places).view(count, d * regions, -1)
        evidence = torch.baddbmm((self.w * log_c).sum(dim=2, keepdim=True), a, matched).view_as(self.p)
        log_q = evidence.masked_fill(self.own, -1e30).log_softmax(dim=1)  # finite, since 0 inf is NaN
        similar = (self.negentropy - (self.p * log_q).sum()) / self.count
        align = -(self.pull * o).sum() / self.count

        error = ((log_q.exp() - self.p) / self.count).view(count, -1, 1)
        along_a = torch.bmm(matched, error).view_as(o)
        along_o = torch.addcmul(self.aligned, weight, along_a)
        pulls = a.transpose(1, 2) * error.transpose(1, 2)
        along_o.view(-1).index_add_(0, self.places, pulls.view(-1))
        of_kappa = (along_a * o).sum(dim=1, keepdim=True) * kappa_slope
        of_strength = self.w * torch.addcmul(of_kappa, error.sum(dim=1, keepdim=True), log_c_slope)
        turned = along_o - o * (along_o * o).sum(dim=1, keepdim=True)
        slope = torch.addcmul(turned / strengths.clamp(min=least), o, of_strength)
        return torch.stack([similar, align]), torch.where(strengths > least, slope, 0)


def fit_region_projection(
    regions: Tensor,
    samples: Tensor,
    importance: Tensor,
    logits: Tensor,
    *,
    matches: RegionMatches | None = None,
    steps: int = 100,
    align_weight: float = 1.0,
    kappa_max: float = 1000.0,
    temperature: float = 4.0,
    seed: int = 0,
) -> RegionProjector:
    """Finds the Lambda of one layer by L-BFGS, in coordinates in which the features have unit variance.

    It starts from the least-squares fit of regions to the directions of their samples, weighted by importance. So
    nothing is random but the groups, and a fit depends on no fit before it. It ends when a step gains less than 1e-5
    nats.

    Cost: that of `match_regions`, unless the matches are given, and of `similarity_loss` in each of 1.1 evaluations per
    step: with 500 samples of 64 regions in groups of 20, some 50 ms on a busy core. Memory: that of both.

    Args:
        regions: Regional features `(N, R, K)`.
        samples: Projected sample features g, `(N, d')`.
        importance: Importance w of the regions, `(N, R)`.
        logits: Logits of the network, `(N, C)`.
        matches: The groups of samples and the matches of their regions; None to draw them.
        steps: Largest number of steps of L-BFGS.
        align_weight: Weight alpha of L_align.
        kappa_max: Concentration of regions without noise.
        temperature: Temperature of the softened outputs.
        seed: Seed of the groups, if matches is None; the global random state is not used.

    Returns:
        The projector, with its gradient switched off.
    """
    projector = RegionProjector(regions.shape[2], samples.shape[1]).to(regions)
    projector.set_scale(regions)
    found = match_regions(regions, seed=seed) if matches is None else matches
    scaled, g, w = (
        (regions / projector.scale)[found.samples],
        samples.to(regions)[found.samples],
        importance[found.samples],
    )
    root, start = _least_squares(scaled, F.normalize(g, dim=2), w)
    rows = torch.linalg.solve_triangular(root, scaled.flatten(0, 2).T, upper=False).T.contiguous()  # (G B R, K)
    columns = rows.view(-1, *regions.shape[1:]).transpose(1, 2)  # (G B, K, R)
    losses = RegionLosses(
        found, importance, network_similarity(logits, temperature).to(regions), samples.to(regions),
        align_weight=align_weight, kappa_max=kappa_max,
    )  # fmt: skip
    matrix = nn.Parameter(start)

    @torch.no_grad()
    def closure() -> float:
        values, slope = losses(matrix @ columns)
        matrix.grad = slope.transpose(0, 1).reshape(len(matrix), -1) @ rows
        similar, aligned = values.tolist()
        return float(similar + align_weight * aligned)

    LBFGS([matrix], steps, tolerance=_TOLERANCE).step(closure)
    with torch.no_grad():
        projector.losses.copy_(losses(matrix @ columns)[0])
        projector.matrix.copy_(torch.linalg.solve_triangular(root, matrix, upper=False, left=False))
    return projector.requires_grad_(False)


@torch.no_grad()
def _least_squares(features: Tensor, directions: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates of unit variance, and the linear map from them that is nearest to the directions.

    Args:
        features: Regional features `(G, B, R, K)`.
        directions: Directions of their samples, `(G, B, d')`.
        weights: Weights of the regions, `(G, B, R)`.

    Returns:
        The Cholesky root of the features' second moments, `(K, K)`, and the map `(d', K)`, scaled to the mean strength
        `_FIRST_STRENGTH`; 0 where no feature tells directions apart.
    """
    rows = features.flatten(0, 2).double()
    weighted = weights.reshape(-1, 1).double() * rows / weights.sum()
    moments = weighted.T @ rows
    ridge = _RIDGE * moments.diagonal().mean() + torch.finfo(rows.dtype).tiny ** 0.5
    root = torch.linalg.cholesky(moments + ridge * torch.eye(len(moments), dtype=rows.dtype, device=rows.device))
    targets = directions.double().unsqueeze(2).expand(*weights.shape, -1).flatten(0, 2)
    solution = torch.linalg.solve_triangular(root, weighted.T @ targets, upper=False).T
    whitened = torch.linalg.solve_triangular(root, rows.T, upper=False)
    strength = (solution @ whitened).norm(dim=0).mean()
    factor = torch.where(strength > 0, _FIRST_STRENGTH / strength, 0.0)
    return root.to(features), (factor * solution).to(features)

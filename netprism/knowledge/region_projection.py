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
from torch.autograd.function import BackwardCFunction, FunctionCtx, once_differentiable

from netprism.knowledge.groups import RegionMatches, match_regions
from netprism.knowledge.importance import network_similarity
from netprism.knowledge.kappa_table import kappa_and_log_normalizer

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
        return F.linear(regions / self.scale, self.matrix)


def similarity_loss(
    projected: Tensor,
    rows: Tensor,
    importance: Tensor,
    similarity: Tensor,
    *,
    kappa_max: float = 1000.0,
    similarity_kappa: float = 5.0,
) -> Tensor:
    """L_similarity: Kullback-Leibler divergence between the network's and the regions' similarities of samples.

    Cost: 4 d' multiply-adds per pair of samples and region, the gradient included. Memory: 4 d' bytes for each.

    Args:
        projected: Projected regional features h of G groups of B samples, `(G, B, R, d')`.
        rows: Row among the B R regions of its group of the region of sample x most like region r of sample x',
            integers `(G, B, R, B)` with the indices [group, x', r, x]; see `RegionMatches`.
        importance: Importance w of the regions, `(G, B, R)`.
        similarity: The network's similarities cos(p', p), `(G, B, B)`.
        kappa_max: Concentration of regions without noise.
        similarity_kappa: Concentration kappa_p of the network's similarity.

    Returns:
        A scalar in nats, >= 0. Each sample is compared with the other samples of its group only.
    """
    groups, size, regions, d = projected.shape
    kappa, log_c = kappa_and_log_normalizer(projected.norm(dim=3), d, kappa_max)
    directions = F.normalize(projected, dim=3)
    offsets = size * regions * torch.arange(groups, dtype=rows.dtype, device=rows.device).view(-1, 1, 1, 1)
    weighted = (importance * kappa).unsqueeze(3) * directions
    evidence: Tensor = _MatchedProducts.apply(weighted, directions, rows + offsets)
    log_q = (importance * log_c).sum(dim=2, keepdim=True) + evidence  # [group, x', x]
    same = torch.eye(size, dtype=torch.bool, device=log_q.device)
    log_q = log_q.masked_fill(same, -torch.inf).log_softmax(dim=1).masked_fill(same, 0)
    log_p = (similarity_kappa * similarity).masked_fill(same, -torch.inf).log_softmax(dim=1)
    return (log_p.exp() * (log_p.masked_fill(same, 0) - log_q)).sum(dim=1).mean()


class _MatchedProducts(torch.autograd.Function):
    """sum_r a[x', r] . o[the region of x that rows[x', r, x] names] of a and o `(G, B, R, d)`, `(G, B, B)`.

    Coordinate by coordinate, as products with vectors: without arrays of G B R B d numbers, and several times as fast.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, a: Tensor, o: Tensor, rows: Tensor) -> Tensor:
        groups, size, regions, d = a.shape
        flat = rows.reshape(-1)
        found = [o[..., k].reshape(-1).index_select(0, flat).view(-1, regions, size) for k in range(d)]
        total = sum(torch.bmm(a[..., k].reshape(-1, 1, regions), part) for k, part in enumerate(found))
        ctx.save_for_backward(a, flat, *found)
        return total.view(groups, size, size)  # type: ignore[union-attr]

    @staticmethod
    @once_differentiable
    def backward(ctx: BackwardCFunction, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        a, flat, *found = saved
        groups, size, regions, _ = a.shape
        error = grad.reshape(-1, size, 1)
        own = [torch.bmm(part, error).view(groups, size, regions) for part in found]
        matched = []
        for k in range(len(found)):
            pulls = torch.bmm(a[..., k].reshape(-1, regions, 1), error.transpose(1, 2))
            matched.append(a.new_zeros(a[..., k].numel()).index_add_(0, flat, pulls.view(-1)).view_as(own[k]))
        return torch.stack(own, dim=3), torch.stack(matched, dim=3), None


def align_loss(projected: Tensor, samples: Tensor, importance: Tensor) -> Tensor:
    """L_align: how far the regions point away from their samples.

    Args:
        projected: Projected regional features h, `(..., R, d')`.
        samples: Projected sample features g, `(..., d')`.
        importance: Importance w of the regions, `(..., R)`.

    Returns:
        A scalar in [-1, 1]; -1 where every important region has the direction of its sample.
    """
    cosines = F.cosine_similarity(projected, samples.unsqueeze(-2), dim=-1)
    return -(importance * cosines).sum(dim=-1).mean()


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
    similarity = network_similarity(logits, temperature).to(regions)[found.samples[:, :, None], found.samples[:, None]]
    scaled, g, w = (
        (regions / projector.scale)[found.samples],
        samples.to(regions)[found.samples],
        importance[found.samples],
    )
    root, start = _least_squares(scaled, F.normalize(g, dim=2), w)
    features = torch.linalg.solve_triangular(root, scaled.flatten(0, 2).T, upper=False).T.reshape(scaled.shape)
    matrix = nn.Parameter(start)
    optimizer = torch.optim.LBFGS(
        [matrix], max_iter=steps, history_size=10, tolerance_change=_TOLERANCE, line_search_fn="strong_wolfe"
    )

    def losses() -> tuple[Tensor, Tensor]:
        h = F.linear(features, matrix)
        return similarity_loss(h, found.rows, w, similarity, kappa_max=kappa_max), align_loss(h, g, w)

    def closure() -> float:
        with torch.enable_grad():
            similar, aligned = losses()
            loss = similar + align_weight * aligned
            (matrix.grad,) = torch.autograd.grad(loss, matrix)
        return loss.item()

    optimizer.step(closure)
    with torch.no_grad():
        projector.losses.copy_(torch.stack(losses()))
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

"""The regional features of a layer, and which regions of an image the network relies on.

A feature map (K, H, W) is R = H W regional features of K channels. The importance w^(r) of a region tells how far it
serves to find the samples that the network takes for similar. `region_projection.py` projects regional features
into the space of the categories' directions, `netprism.knowledge` counts those that decide for one there.

Source: "Visualizing the Emergence of Intermediate Visual Patterns in DNNs", section 3.3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from netprism.distributed import all_gather_object, rank_indices
from netprism.knowledge.points import KnowledgePoints, knowledge_points
from netprism.knowledge.sample_projection import soft_targets

__all__ = [
    "KnowledgePoints",
    "RegionalImportance",
    "knowledge_points",
    "region_features",
    "regional_importance",
    "shared_importance",
]

MEMORY = 2**24  # bytes for similarities of regions: in the cache of a CPU; with 2**28 the products take twice as long
_GROUP = 16  # samples whose importance one process estimates at a time


@dataclass(frozen=True)
class RegionalImportance:
    """Importance of regions and channels; each row is non-negative and sums to 1.

    Attributes:
        regions: w, `(n, R)`.
        channels: v, `(n, K)`.
    """

    regions: Tensor
    channels: Tensor


def regional_importance(
    features: Tensor,
    logits: Tensor,
    *,
    of: Tensor | None = None,
    concentration: float | None = None,
    similarity_kappa: float = 5.0,
    temperature: float = 4.0,
    steps: int = 20,
    others: int = 100,
    learning_rate: float = 0.05,
    momentum: float = 0.9,
    seed: int = 0,
    memory: int = MEMORY,
) -> RegionalImportance:
    """Importance of the regions of each sample: how far they serve to find the samples similar to it.

    The network finds x' similar to x as P(x'|x) ~ exp(kappa_p cos(p', p)), p = softmax(logits / T). The regions find
    Q(x'|x) ~ exp(kappa' sum_r w^(r) max_r' sum_k v_k u^(r)_k u'^(r')_k), u = f / ||f||. Both are normalised over the
    other samples x', so that every sample has its own w and v and none depends on another's. They minimise KL(P || Q)
    by gradient descent with momentum, |w| and |v| scaled back to sum 1 after each step; other samples are compared in
    each step, the same for all.

    The default kappa' = 2 K is the paper's 1000 for its K = 512 channels. With v = 1 / K the exponent is kappa' / K
    times a cosine, so that a constant 1000 saturates where there are fewer: on planted patterns with K = 16 it finds
    them with an area under the ROC curve of .3, 2 K with 1.0 (tests/knowledge/test_importance.py).

    Cost: 2 K R^2 multiply-adds a pair of samples and step, `steps` * `others` pairs a sample, as one matrix product for
    a group of samples; the gradient is a sum over the matches, K R a pair. Memory: 8 R^2 bytes for each pair that is
    looked at together, as many as fit into `memory` and one at least, and 4 K R (n + others) bytes.

    Args:
        features: `(N, K, H, W)`, `(N, K, R)`, or `(N, K)`: one region.
        logits: `(N, C)`.
        of: indices `(n,)` of the samples whose importance is wanted; None: all. Values depend on these neither in what
            they are compared with nor in the order; only rounding may differ.
        concentration: kappa'; None: 2 K.
        similarity_kappa: kappa_p.
        temperature: T.
        steps: of the gradient descent.
        others: samples to compare with in one step; all if there are fewer.
        learning_rate: of w and v.
        momentum: of both.
        seed: of the choice of the other samples.
        memory: bytes for the similarities.

    Raises:
        ValueError: fewer than three samples, features or logits of another shape or not finite, logits that are
            probabilities already, others < 2.

    Source: "Visualizing the Emergence of Intermediate Visual Patterns in DNNs", equations 11 and 12.

    Example:
        >>> features, logits = torch.rand(6, 4, 2, 2), torch.eye(2).repeat(3, 1) * 8
        >>> regional_importance(features, logits).regions.shape
        torch.Size([6, 4])
    """
    units = F.normalize(region_features(features), dim=2)
    count, regions, channels = units.shape
    if steps < 1 or others < 2 or count < 3:
        raise ValueError(f"{count} samples, steps {steps}, others {others}; expected at least 3, 1 and 2")
    if len(logits) != count:
        raise ValueError(f"features are of {count} samples and logits of {len(logits)}")
    similarity = network_similarity(logits, temperature).to(units)
    kappa = 2.0 * channels if concentration is None else concentration
    chosen = torch.arange(count, device=units.device) if of is None else of.to(units.device)
    draws = list(_draws(count, steps, others, seed, units.device))

    descent = _Descent(units, similarity_kappa * similarity, kappa, learning_rate, momentum, memory)
    group = max(1, memory // (8 * len(draws[0]) * regions**2))
    w, v = zip(*(descent.run(samples, draws) for samples in chosen.split(group)), strict=True)
    return RegionalImportance(torch.cat(w), torch.cat(v))


def shared_importance(regions: Tensor, logits: Tensor, **options: Any) -> Tensor:
    """Importance w `(N, R)` of the regions of N samples that all processes have; each estimates that of some of them.

    All processes have to call it. The result is the same to the bit for any number of them: always `_GROUP` samples are
    looked at together.

    Args:
        regions: regional features `(N, R, K)`.
        logits: `(N, C)`.
        **options: those of `regional_importance`.
    """
    features, groups = regions.transpose(1, 2), torch.arange(len(regions)).split(_GROUP)
    own = {
        number: regional_importance(features, logits, of=groups[number], **options).regions.cpu()
        for number in rank_indices(len(groups))
    }
    shares = {number: w for share in all_gather_object(own) for number, w in share.items()}
    return torch.cat([shares[number] for number in range(len(groups))]).to(regions.device)


def region_features(features: Tensor, max_grid: int | None = None) -> Tensor:
    """A layer's features as one vector for each region, row by row.

    Args:
        features: `(N, K, H, W)`; `(N, K, R)`; `(N, K)`, which is one region.
        max_grid: larger maps are averaged over cells to at most so many rows and columns.

    Returns:
        `(N, R, K)`, float32 unless the features are float64.

    Raises:
        ValueError: another number of dimensions, or values that are not finite.
    """
    if not 2 <= features.ndim <= 4:
        raise ValueError(f"features are {tuple(features.shape)}; expected (N, K, H, W), (N, K, R) or (N, K)")
    if not features.isfinite().all():
        raise ValueError("features have values that are NaN or infinite")
    if features.dtype != torch.float64:
        features = features.float()
    if features.ndim == 4 and max_grid is not None and max(features.shape[2:]) > max_grid:
        features = F.adaptive_avg_pool2d(features, (min(features.shape[2], max_grid), min(features.shape[3], max_grid)))
    return features.reshape(*features.shape[:2], -1).transpose(1, 2).contiguous()


def network_similarity(logits: Tensor, temperature: float = 4.0) -> Tensor:
    """cos(p', p) of the softened outputs p = softmax(logits / T) of all pairs of samples, `(N, N)` from `(N, C)`.

    Raises:
        ValueError: the logits are not (N, C), are not finite, or are probabilities already.
    """
    outputs = F.normalize(soft_targets(logits.detach(), temperature), dim=1)
    return outputs @ outputs.T


def best_matches(own: Tensor, compared: Tensor, memory: int) -> tuple[Tensor, Tensor]:
    """The region of each of m samples that is most similar to each region of n samples.

    Args:
        own: `(n, R, K)`.
        compared: `(m, R, K)`.
        memory: bytes for the similarities that are looked at together; those of n samples with one at least.

    Returns:
        The similarities (inner products) `(n, R, m)`, and the rows of the regions in `(m R, K)`, likewise.
    """
    n, regions, channels = own.shape
    rows = own.reshape(-1, channels)
    values, places = [], []
    group = max(1, memory // (8 * n * regions**2))
    for some in compared.split(group):
        value, place = _largest((rows @ some.flatten(0, 1).T).view(n, regions, len(some), regions))
        values.append(value)
        places.append(place)
    match = torch.cat(places, dim=2)
    return torch.cat(values, dim=2), match + regions * torch.arange(len(compared), device=own.device)


def _largest(values: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum over the last dimension, and its place; `values` are used up.

    On a CPU `max` with places takes ten times as long as without (torch 2.15, 64 values). So the places are written
    into the last bits of the numbers before the maximum is taken: where two are equal but for these, to 1e-5 with 64
    values of float32, either may be it.
    """
    maximum, count = values.amax(dim=-1), values.shape[-1]
    integers = torch.int64 if values.dtype == torch.float64 else torch.int32
    mask = (1 << (count - 1).bit_length()) - 1
    places = torch.arange(count, dtype=integers, device=values.device)
    values.view(integers).bitwise_and_(~mask).bitwise_or_(places)
    return maximum, values.amax(dim=-1).view(integers).bitwise_and_(mask)


def _draws(count: int, steps: int, others: int, seed: int, device: torch.device) -> Iterator[Tensor]:
    """The samples to compare with in each step, drawn on the CPU: the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield torch.randperm(count, generator=generator)[:others].to(device)


@dataclass(frozen=True)
class _Descent:
    """Gradient descent of w and v on KL(P || Q), for some of the samples at a time."""

    units: Tensor  # u, (N, R, K)
    target_exponents: Tensor  # (N, N)
    kappa: float
    learning_rate: float
    momentum: float
    memory: int

    def run(self, samples: Tensor, draws: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Returns w `(n, R)` and v `(n, K)` of the samples, after a step with each of the draws of others."""
        _, regions, channels = self.units.shape
        w = self.units.new_full((len(samples), regions), 1 / regions)
        v = self.units.new_full((len(samples), channels), 1 / channels)
        speed_w, speed_v = torch.zeros_like(w), torch.zeros_like(v)
        for others in draws:
            slope_w, slope_v = self.slopes(samples, others, w, v)
            speed_w, speed_v = self.momentum * speed_w + slope_w, self.momentum * speed_v + slope_v
            w, v = _on_simplex(w - self.learning_rate * speed_w), _on_simplex(v - self.learning_rate * speed_v)
        return w, v

    def slopes(self, samples: Tensor, others: Tensor, w: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of KL(P || Q) by w and v.

        log Q is linear in w, and in v once r' is found, so that with e = Q - P of the other samples
        dKL / dw_r = kappa' sum_x' e s_r(x') and dKL / dv_k = kappa' sum_r w_r u_rk sum_x' e u'_r'k.
        """
        own, compared = self.units[samples], self.units[others]
        similarity, match = best_matches(own * v[:, None], compared, self.memory)
        same = samples[:, None] == others
        found = _softmax_but(same, self.kappa * torch.einsum("nr,nrm->nm", w, similarity))
        error = found - _softmax_but(same, self.target_exponents[samples][:, others])
        # embedding_bag sums weighted rows without making the (n, R, m, K) array of the matches
        shares = error[:, None].expand_as(similarity).flatten(0, 1)
        pulled = F.embedding_bag(match.flatten(0, 1), compared.flatten(0, 1), mode="sum", per_sample_weights=shares)
        slope_w = self.kappa * torch.einsum("nm,nrm->nr", error, similarity)
        return slope_w, self.kappa * torch.einsum("nr,nrk,nrk->nk", w, own, pulled.view_as(own))


def _softmax_but(same: Tensor, exponents: Tensor) -> Tensor:
    """Softmax over the other samples; a sample itself gets 0."""
    return exponents.masked_fill(same, -torch.inf).softmax(dim=1)


def _on_simplex(weights: Tensor) -> Tensor:
    """|weights| with sum 1 in each row."""
    return weights.abs() / weights.abs().sum(dim=1, keepdim=True)

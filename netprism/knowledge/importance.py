"""The regional features of a layer, and which regions of an image the network relies on.

A feature map (K, H, W) consists of R = H W regional features of K channels. The importance w^(r) of a region tells how
much it helps to find the samples that the network regards as similar. `region_projection.py` projects regional features
into the space of the categories' directions; `points.py` counts those that decide for a category there.

Source: Li et al. 2021, section 3.3, https://arxiv.org/abs/2111.03505.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from netprism.checks import check_number
from netprism.knowledge.sample_projection import soft_targets

MEMORY = 2**24  # bytes for similarities of regions, which fit a CPU's cache; with 2**28 products take twice as long


@dataclass(frozen=True)
class RegionalImportance:
    """Importance of regions and channels; each row is non-negative and sums to 1.

    Attributes:
        regions: Importance w of the regions, `(n, R)`.
        channels: Importance v of the channels, `(n, K)`.
    """

    regions: Tensor
    channels: Tensor


def regional_importance(
    features: Tensor,
    logits: Tensor,
    *,
    of: Tensor | None = None,
    kappa: float | None = None,
    similarity_kappa: float = 5.0,
    temperature: float = 4.0,
    steps: int = 20,
    num_compared: int = 100,
    learning_rate: float = 0.05,
    momentum: float = 0.9,
    seed: int = 0,
    memory: int = MEMORY,
) -> RegionalImportance:
    """Importance of the regions of each sample: how much they help to find the samples similar to it.

    The network's similarity of x' and x is P(x'|x) ~ exp(kappa_p cos(p', p)), p = softmax(logits / T). That of the
    regions is Q(x'|x) ~ exp(kappa' sum_r w^(r) max_r' sum_k v_k u^(r)_k u'^(r')_k), u = f / ||f||. Both are normalised
    over the other samples x', so every sample has its own w and v, and none depends on another's. They minimise
    KL(P || Q) by gradient descent with momentum; |w| and |v| are scaled to sum 1 after each step. Each step compares
    with other samples, the same ones for all.

    The default kappa' = 2 K is the paper's 1000 for its K = 512 channels. With v = 1 / K the exponent is kappa' / K
    times a cosine, so a constant 1000 saturates where there are fewer channels: it finds planted patterns with K = 16
    with an area under the ROC curve of .3, and 2 K with 1.0 (tests/knowledge/test_importance.py).

    Cost: 2 K R^2 multiply-adds per pair of samples and step, with `steps` * `num_compared` pairs per sample, as one
    matrix product for a group of samples; the gradient is a sum over the matches, K R per pair. Memory: 8 R^2 bytes for
    each pair that is processed together, as many as fit into `memory` but at least one, and 4 K R (n + num_compared)
    bytes.

    Args:
        features: Features `(N, K, H, W)` or `(N, K, R)`, or `(N, K)` with a single region.
        logits: Logits of the network, `(N, C)`.
        of: Indices `(n,)` of the samples whose importance is wanted; None for all. A sample's importance does not
            depend on the others in `of`; only rounding may differ.
        kappa: Concentration kappa'; None for 2 K.
        similarity_kappa: Concentration kappa_p of the network's similarity.
        temperature: Temperature T of the softened outputs.
        steps: Number of gradient steps.
        num_compared: Number of samples to compare with in one step; all if there are fewer.
        learning_rate: Learning rate of w and v.
        momentum: Momentum of both.
        seed: Seed of the choice of samples to compare with.
        memory: Bytes for the similarities.

    Raises:
        ValueError: There are fewer than three samples; features or logits have another shape or are not finite; logits
            are already probabilities; steps < 1 or num_compared < 2; an index is out of range; a rate is not finite.

    Source: Li et al. 2021, eqs. (11) and (12), https://arxiv.org/abs/2111.03505.

    Example:
        >>> features, logits = torch.rand(6, 4, 2, 2), torch.eye(2).repeat(3, 1) * 8
        >>> regional_importance(features, logits).regions.shape
        torch.Size([6, 4])
    """
    units = F.normalize(region_features(features), dim=2)
    count, regions, channels = units.shape
    options = {"length of features": (count, 3), "steps": (steps, 1), "num_compared": (num_compared, 2)}
    for name, (value, least) in options.items():
        if value < least:
            raise ValueError(f"{name} is {value}; expected at least {least}")
    if len(logits) != count:
        raise ValueError(f"length of logits is {len(logits)}; expected {count}, that of features")
    for name, number in (("learning_rate", learning_rate), ("momentum", momentum), ("kappa", kappa or 0.0)):
        check_number(name, number, least=0)
    similarity = network_similarity(logits, temperature).to(units)
    kappa = 2.0 * channels if kappa is None else kappa
    chosen = torch.arange(count, device=units.device) if of is None else of.to(units.device)
    if not len(chosen) or not 0 <= int(chosen.min()) <= int(chosen.max()) < count:
        raise ValueError(f"of is {chosen.tolist()}; expected indices of samples, 0 to {count - 1}")
    draws = list(_draws(count, steps, num_compared, seed, units.device))

    descent = _Descent(units, similarity_kappa * similarity, kappa, learning_rate, momentum, memory)
    group = max(1, memory // (8 * len(draws[0]) * regions**2))
    w, v = zip(*(descent.run(samples, draws) for samples in chosen.split(group)), strict=True)
    return RegionalImportance(torch.cat(w), torch.cat(v))


def region_features(features: Tensor, max_grid: int | None = None) -> Tensor:
    """A layer's features as one vector per region, row by row.

    Args:
        features: Features `(N, K, H, W)` or `(N, K, R)`, or `(N, K)` with a single region.
        max_grid: Larger maps are averaged over cells, to at most this number of rows and columns.

    Returns:
        `(N, R, K)`, float32 unless the features are float64.

    Raises:
        ValueError: The number of dimensions is another one, or a value is not finite.
    """
    maps = region_maps(features, max_grid)
    if not maps.isfinite().all():
        raise ValueError("features is NaN or infinite; expected finite values")
    if maps.numel() and maps.abs().amax() > torch.finfo(maps.dtype).max ** 0.5 / maps.shape[1]:
        raise ValueError(f"features reach {maps.abs().amax().item():g}; their lengths would overflow, scale them down")
    return maps.flatten(2).transpose(1, 2).contiguous()


def region_maps(features: Tensor, max_grid: int | None = None) -> Tensor:
    """The regional features of :func:`region_features` as maps `(N, K, rows, columns)`, finite or not."""
    if not 2 <= features.ndim <= 4:
        raise ValueError(f"shape of features is {tuple(features.shape)}; expected (N, K, H, W), (N, K, R) or (N, K)")
    if features.dtype != torch.float64:
        features = features.float()
    if features.ndim < 4:
        return features.reshape(*features.shape[:2], 1, -1)
    rows, columns = (size if max_grid is None else min(size, max_grid) for size in features.shape[2:])
    return features if features.shape[2:] == (rows, columns) else F.adaptive_avg_pool2d(features, (rows, columns))


def network_similarity(logits: Tensor, temperature: float = 4.0) -> Tensor:
    """cos(p', p) of the softened outputs p = softmax(logits / T) of all pairs of samples, `(N, N)` from `(N, C)`.

    Raises:
        ValueError: The logits are not (N, C), are not finite, or are already probabilities.
    """
    outputs = F.normalize(soft_targets(logits.detach(), temperature), dim=1)
    return outputs @ outputs.T


def best_matches(own: Tensor, compared: Tensor, memory: int) -> tuple[Tensor, Tensor]:
    """The region of each of m samples that is most similar to each region of n samples.

    Args:
        own: Regions of the n samples, `(n, R, K)`.
        compared: Regions of the m samples, `(m, R, K)`.
        memory: Bytes for the similarities that are computed together; at least those of n samples with one.

    Returns:
        The similarities (inner products) `(n, R, m)`, and the row of each such region in `(m R, K)`, `(n, R, m)`.
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
    """Maximum over the last dimension, and its index; `values` are overwritten in place.

    On a CPU `max` with indices takes ten times as long as without (torch 2.15, 64 values). So the indices are written
    into the last bits of the numbers before the maximum is taken, and the last bits of the maximum are 0. Either of two
    values that differ only in these bits (by a fraction of 1e-5 with 64 values in float32) may be found.
    """
    count = values.shape[-1]
    integers = torch.int64 if values.dtype == torch.float64 else torch.int32
    mask = (1 << (count - 1).bit_length()) - 1
    places = torch.arange(count, dtype=integers, device=values.device)
    values.view(integers).bitwise_and_(~mask).bitwise_or_(places)
    found = values.amax(dim=-1).view(integers)
    return (found & ~mask).view(values.dtype), found & mask


def row_correlations(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of the rows of two `(N, R)`, without rows in which one of them is constant."""
    a, b = (values - values.mean(dim=1, keepdim=True) for values in (a, b))
    lengths = a.norm(dim=1) * b.norm(dim=1)
    varies = lengths > 0
    correlations: Tensor = (a * b).sum(dim=1)[varies] / lengths[varies]
    return correlations


def _draws(count: int, steps: int, num_compared: int, seed: int, device: torch.device) -> Iterator[Tensor]:
    """The samples to compare with in each step, drawn on the CPU so that they are the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield torch.randperm(count, generator=generator)[:num_compared].to(device)


@dataclass(frozen=True)
class _Descent:
    """Gradient descent of w and v on KL(P || Q), for a group of samples at a time."""

    units: Tensor  # u, (N, R, K)
    target_exponents: Tensor  # (N, N)
    kappa: float
    learning_rate: float
    momentum: float
    memory: int

    def run(self, samples: Tensor, draws: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Returns w `(n, R)` and v `(n, K)` of the samples, after one step with each of the draws."""
        _, regions, channels = self.units.shape
        w = self.units.new_full((len(samples), regions), 1 / regions)
        v = self.units.new_full((len(samples), channels), 1 / channels)
        speed_w, speed_v = torch.zeros_like(w), torch.zeros_like(v)
        for draw in draws:
            slope_w, slope_v = self.slopes(samples, draw, w, v)
            speed_w, speed_v = self.momentum * speed_w + slope_w, self.momentum * speed_v + slope_v
            w, v = on_simplex(w - self.learning_rate * speed_w), on_simplex(v - self.learning_rate * speed_v)
        return w, v

    def slopes(self, samples: Tensor, draw: Tensor, w: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of KL(P || Q) with respect to w and v.

        log Q is linear in w, and in v once r' is found. So with e = Q - P of the drawn samples
        dKL / dw_r = kappa' sum_x' e s_r(x') and dKL / dv_k = kappa' sum_r w_r u_rk sum_x' e u'_r'k.
        """
        own, compared = self.units[samples], self.units[draw]
        similarity, match = best_matches(own * v[:, None], compared, self.memory)
        same = samples[:, None] == draw
        found = softmax_but(same, self.kappa * torch.einsum("nr,nrm->nm", w, similarity))
        error = found - softmax_but(same, self.target_exponents[samples][:, draw])
        # embedding_bag sums weighted rows without building the (n, R, m, K) array of the matches
        weights = error[:, None].expand_as(similarity).flatten(0, 1)
        pulled = F.embedding_bag(match.flatten(0, 1), compared.flatten(0, 1), mode="sum", per_sample_weights=weights)
        slope_w = self.kappa * torch.einsum("nm,nrm->nr", error, similarity)
        return slope_w, self.kappa * torch.einsum("nr,nrk,nrk->nk", w, own, pulled.view_as(own))


def softmax_but(same: Tensor, exponents: Tensor) -> Tensor:
    """Softmax over the other samples; the sample itself gets 0."""
    return exponents.masked_fill(same, -torch.inf).softmax(dim=1)


def on_simplex(weights: Tensor) -> Tensor:
    """|weights|, scaled to sum 1 in each row."""
    return weights.abs() / weights.abs().sum(dim=1, keepdim=True)

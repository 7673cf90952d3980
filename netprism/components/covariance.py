"""Covariance of the channels of features that come in batches, on one process or many."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist


class Covariance:
    """How the channels of a feature vary together, at each position and over all positions, in float64.

    Each position has a mean of its own, so `within` gives variances as they are meant everywhere here: summed over all
    feature dimensions, channels times positions. What linear maps of the channels (1x1 convolutions) do to a variance
    then needs no further pass over the data: `Var[A x] = trace(A within A^T)`.

    Batches, and what other processes have seen, are merged as `Moments` are; any split of the samples
    gives the same numbers, but for rounding in float64.

    Cost: C^2 P multiply-adds a sample, with C channels and P positions. Memory: 8 C (C + P) bytes, and a batch in
    float64 while it is added.

    Attributes:
        count: samples seen.
        mean: `(C, P)` float64, mean over samples at each position.
        products: `(C, C)` float64, sum over samples and positions of (x - mean)(x - mean)^T.

    Example:
        >>> covariance = Covariance()
        >>> covariance.update(torch.tensor([[1.0, 0.0], [3.0, 2.0]]))
        >>> covariance.update(torch.tensor([[2.0, 1.0]]))
        >>> covariance.within.round(decimals=3).tolist()
        [[0.667, 0.667], [0.667, 0.667]]

    Source: "Algorithms for Computing the Sample Variance" (Chan, Golub, LeVeque), eq. 2.1, for matrices.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(0, 0, dtype=torch.float64)
        self.products = torch.zeros(0, 0, dtype=torch.float64)

    def update(self, batch: Tensor) -> None:
        """Adds samples `(N, C, ...)`, N >= 0, all of one shape; gradients are not followed.

        Raises:
            ValueError: no channels, or samples of another shape than before.
        """
        if batch.dim() < 2:
            raise ValueError(f"a batch has shape {tuple(batch.shape)}; expected (N, C) or (N, C, positions)")
        if len(batch) == 0:
            return
        batch = batch.detach().flatten(2) if batch.dim() > 2 else batch.detach()[..., None]
        values = (batch.cpu() if batch.device.type == "mps" else batch).to(torch.float64)
        added = Covariance()
        added.count, added.mean = len(values), values.mean(dim=0)
        centred = (values - added.mean).transpose(0, 1).flatten(1)
        added.products = centred @ centred.T
        self.merge(added)

    def merge(self, other: Covariance) -> None:
        """Adds the samples that `other` has seen.

        Raises:
            ValueError: samples of another shape.
        """
        if other.count == 0:
            return
        if self.count == 0:
            self.count, self.mean, self.products = other.count, other.mean.clone(), other.products.clone()
            return
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"(channels, positions) are {tuple(other.mean.shape)}, before {tuple(self.mean.shape)}")
        count = self.count + other.count
        shift = other.mean - self.mean
        self.mean = self.mean + shift * (other.count / count)
        self.products = self.products + other.products + shift @ shift.T * (self.count * other.count / count)
        self.count = count

    def all_reduce(self) -> None:
        """Adds the samples of all other processes; the result is the same to the bit on each. Alone: nothing to do.

        All processes have to call it, those without samples too. One process after the other sends what it has, so that
        no more than two are in memory at a time.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return
        own, device = self._on(torch.device("cpu")), self.mean.device
        total = Covariance()
        for rank in range(dist.get_world_size()):
            sent: list[Covariance | None] = [own if rank == dist.get_rank() else None]
            dist.broadcast_object_list(sent, src=rank)
            assert sent[0] is not None
            total.merge(sent[0])
        total = total._on(device)
        self.count, self.mean, self.products = total.count, total.mean, total.products

    @property
    def within(self) -> Tensor:
        """`(C, C)` float64: the covariance over samples at a position, summed over positions.

        Raises:
            ValueError: no samples, or a sample that is not finite.
        """
        if self.count == 0:
            raise ValueError("no samples, so there is no covariance")
        if not self.products.isfinite().all():
            raise ValueError(
                f"the covariance of {self.count} samples is not finite: a sample has NaN or infinite values"
            )
        return self.products / self.count

    @property
    def pooled(self) -> Tensor:
        """`(C, C)` float64: the covariance over samples and positions, about one mean a channel.

        Raises:
            ValueError: no samples, or a sample that is not finite.
        """
        positions = self.mean.shape[1]
        between = self.mean - self.mean.mean(dim=1, keepdim=True)
        return (self.within + between @ between.T) / positions

    def _on(self, device: torch.device) -> Covariance:
        moved = Covariance()
        moved.count, moved.mean, moved.products = self.count, self.mean.to(device), self.products.to(device)
        return moved


def variance_of(within: Tensor, *terms: tuple[slice, Tensor]) -> float:
    """Var of a sum of linear maps of some channels each, summed over feature dimensions.

    Args:
        within: `(C, C)`, as `Covariance.within`.
        terms: (channels, matrix `(c, number of these channels)`), the matrices with the same c.

    Returns:
        Var[sum_i A_i x[channels_i]], >= 0.

    Example:
        >>> within = torch.tensor([[2.0, 2.0], [2.0, 2.0]]).double()
        >>> one = torch.ones(1, 1)
        >>> variance_of(within, (slice(0, 1), one)), variance_of(within, (slice(0, 1), one), (slice(1, 2), -one))
        (2.0, 0.0)
    """
    map_of_all = within.new_zeros(len(terms[0][1]), len(within))
    for channels, matrix in terms:
        map_of_all[:, channels] += matrix.to(within)
    return float(((map_of_all @ within) * map_of_all).sum().clamp_min(0.0))  # below 0 by rounding only

"""Mean and variance of features that come in batches, on one process or many."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist


class Moments:
    """Count, mean and sum of squared deviations of each feature dimension, in float64.

    Batches, and the moments of other processes, are merged as two samples of which only these three numbers are kept:
    no E[x^2] - E[x]^2, which in float32 gives .97 or worse for a variance of 1 around a mean of 1000. Any split of the
    samples gives the same numbers, but for rounding in float64.

    Memory: 16 bytes a feature dimension, and a batch in float64 while it is added.

    Attributes:
        count: samples seen.
        mean: `(...)` float64, the shape of one sample.
        squares: `(...)` float64, sum over samples of (x - mean)^2.

    Example:
        >>> moments = Moments()
        >>> moments.update(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
        >>> moments.update(torch.tensor([[5.0, 8.0]]))
        >>> moments.count, moments.mean.tolist(), round(moments.total_variance, 3)
        (3, [3.0, 6.0], 4.667)

    Source: "Algorithms for Computing the Sample Variance" (Chan, Golub, LeVeque), eq. 2.1.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros((), dtype=torch.float64)
        self.squares = torch.zeros((), dtype=torch.float64)

    def update(self, batch: Tensor) -> None:
        """Adds samples `(N, ...)`, N >= 0, all of one shape; gradients are not followed.

        Raises:
            ValueError: samples of another shape than before.
        """
        values = _as_double(batch.detach())
        added = Moments()
        added.count = len(values)
        added.mean = values.mean(dim=0) if len(values) else values.new_zeros(values.shape[1:])
        added.squares = (values - added.mean).square().sum(dim=0)
        self.merge(added)

    def merge(self, other: Moments) -> None:
        """Adds the samples that `other` has seen.

        Raises:
            ValueError: samples of another shape.
        """
        if other.count == 0:
            return
        if self.count == 0:
            self.count, self.mean, self.squares = other.count, other.mean.clone(), other.squares.clone()
            return
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"samples have shape {tuple(other.mean.shape)}, before {tuple(self.mean.shape)}")
        count = self.count + other.count
        shift = other.mean - self.mean
        self.mean = self.mean + shift * (other.count / count)
        self.squares = self.squares + other.squares + shift.square() * (self.count * other.count / count)
        self.count = count

    def all_reduce(self) -> None:
        """Adds the samples of all other processes; the result is the same to the bit on each. Alone: nothing to do.

        All processes have to call it, those without samples too. Each gets the moments of each: 16 bytes a feature
        dimension and process.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return
        parts: list[Moments | None] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, self._on(torch.device("cpu")))
        device = self.mean.device
        self.count = 0
        for part in parts:  # in the order of the ranks, so that all round alike
            if part is not None:
                self.merge(part._on(device))

    @property
    def variance(self) -> Tensor:
        """`(...)` float64: mean squared deviation from the mean, of each feature dimension.

        Raises:
            ValueError: no samples.
        """
        if self.count == 0:
            raise ValueError("no samples, so there is no variance")
        return self.squares / self.count

    @property
    def total_variance(self) -> float:
        """E||x - E x||^2: the sum over feature dimensions of `variance`.

        Raises:
            ValueError: no samples, or a sample that is not finite.
        """
        total = float(self.variance.sum())
        if not total < float("inf"):
            raise ValueError(f"the variance of {self.count} samples is {total}: a sample has NaN or infinite values")
        return total

    def _on(self, device: torch.device) -> Moments:
        moved = Moments()
        moved.count, moved.mean, moved.squares = self.count, self.mean.to(device), self.squares.to(device)
        return moved


def _as_double(values: Tensor) -> Tensor:
    """In float64, on the same device where it has that type: Apple's GPUs do not."""
    return (values.cpu() if values.device.type == "mps" else values).to(torch.float64)

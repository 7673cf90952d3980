"""Covariance of the channels of features that come in batches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_ROUNDING = (4 * torch.finfo(torch.float32).eps) ** 2  # variance over squared mean of what float32 takes for equal


class ConstantFeatureError(ValueError):
    """A feature is the same for all samples: the network has collapsed, and nothing can be said of its parts."""


@dataclass(frozen=True)
class Covariance:
    """How the channels of a feature vary together, at each position and over all positions, in float64.

    Each position has a mean of its own, so `within` gives variances as they are meant in this package: summed over all
    feature dimensions, channels times positions. What linear maps of the channels (1x1 convolutions) do to a variance
    then needs no further pass over the data: `Var[A x] = trace(A within A^T)`.

    Two parts of the samples merge into the whole from these three numbers alone. There is no E[x^2] - E[x]^2, which in
    float32 gives .97 or worse for a variance of 1 around a mean of 1000. Any split of the samples gives the same
    numbers, up to rounding in float64.

    Cost: C^2 P multiply-adds per sample, with C channels and P positions. Memory: 8 C (C + P) bytes.

    Attributes:
        count: Number of samples.
        mean: Tensor `(C, P)` in float64, the mean over samples at each position.
        products: Tensor `(C, C)` in float64, the sum over samples and positions of (x - mean)(x - mean)^T.

    Example:
        >>> one, other = torch.tensor([[1.0, 0.0], [3.0, 2.0]]), torch.tensor([[2.0, 1.0]])
        >>> covariance = Covariance.of(one).merge(Covariance.of(other))
        >>> covariance.within.round(decimals=3).tolist()
        [[0.667, 0.667], [0.667, 0.667]]

    Source: Chan, Golub, LeVeque 1983, "Algorithms for Computing the Sample Variance: Analysis and Recommendations",
    eq. 2.1, https://doi.org/10.1080/00031305.1983.10483115, here for matrices.
    """

    count: int
    mean: Tensor
    products: Tensor

    @classmethod
    def of(cls, samples: Tensor) -> Covariance:
        """Returns the covariance of samples `(N, C, ...)`, N >= 1; gradients are not followed.

        Raises:
            ValueError: There are no samples, or they have no channels.
        """
        if samples.dim() < 2 or len(samples) == 0:
            raise ValueError(f"samples have shape {tuple(samples.shape)}; expected (N, C) or (N, C, positions), N >= 1")
        samples = samples.detach().flatten(2) if samples.dim() > 2 else samples.detach()[..., None]
        # Apple's GPUs have no float64.
        values = (samples.cpu() if samples.device.type == "mps" else samples).to(torch.float64)
        mean = values.mean(dim=0)
        centred = (values - mean).transpose(0, 1).flatten(1)
        return cls(len(values), mean, centred @ centred.T)

    def merge(self, other: Covariance) -> Covariance:
        """Returns the covariance of the samples of both.

        Raises:
            ValueError: The samples have different shapes.
        """
        if self.mean.shape != other.mean.shape:
            raise ValueError(
                f"(channels, positions) are {tuple(other.mean.shape)}; expected {tuple(self.mean.shape)} as before"
            )
        count = self.count + other.count
        shift = other.mean - self.mean
        between = shift @ shift.T * (self.count * other.count / count)
        return Covariance(count, self.mean + shift * (other.count / count), self.products + other.products + between)

    @property
    def within(self) -> Tensor:
        """Tensor `(C, C)` in float64: the covariance over samples at a position, summed over positions.

        Raises:
            ValueError: A sample is not finite.
        """
        if not self.products.isfinite().all():
            raise ValueError(f"the covariance of {self.count} samples is not finite; expected no NaN or infinite value")
        return self.products / self.count

    @property
    def pooled(self) -> Tensor:
        """Tensor `(C, C)` in float64: the covariance over samples and positions, about one mean per channel.

        Raises:
            ValueError: A sample is not finite.
        """
        positions = self.mean.shape[1]
        between = self.mean - self.mean.mean(dim=1, keepdim=True)
        return (self.within + between @ between.T) / positions

    def variance(self, channels: slice) -> float:
        """Returns E||x - E x||^2 of some channels, summed over feature dimensions, which has to be above 0.

        Raises:
            ConstantFeatureError: The variance is no more than rounding makes of a constant.
            ValueError: A sample is not finite.
        """
        variance = float(self.within[channels, channels].trace())
        if variance <= _ROUNDING * float(self.mean[channels].square().sum()):
            raise ConstantFeatureError(
                f"the feature is the same for all {self.count} samples; expected a variance above 0"
            )
        return variance


def variance_of(within: Tensor, *terms: tuple[slice, Tensor]) -> float:
    """Returns Var of a sum of linear maps of some channels each, summed over feature dimensions.

    Args:
        within: Tensor `(C, C)`, the attribute of a `Covariance`.
        terms: Pairs (channels, matrix `(c, number of these channels)`); all matrices have the same c.

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

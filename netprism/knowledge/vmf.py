"""The von Mises-Fisher distribution on the unit sphere of R^d, and how noise reduces its concentration.

Its density is C_d(kappa) exp(kappa mu.x) for unit vectors x, with the mean direction mu and the concentration kappa.
With nu = d / 2 - 1 and the modified Bessel function I:

    C_d(kappa) = kappa^nu / ((2 pi)^(d/2) I_nu(kappa)),    |E x| = A_d(kappa) = I_{nu+1}(kappa) / I_nu(kappa).

A direction drawn with kappa_max and then blurred by N(0, s^2 I) at distance l from the origin has the mean resultant
length A_d(kappa_max) R_d(l / s), where R_d(x) is that of the direction of N(x e_1, I). Its concentration is kappa(l):

    A_d(kappa(l)) = A_d(kappa_max) R_d(l / s).

Everything is computed in float64 on the device of its input and returned in the input's type. For d from 2 to 4096 and
kappa from 0 to 1e6, relative errors are below 1e-8 (reached at d = 2 and kappa = 1e6) and mostly below 1e-11. Gradients
are equally accurate; second derivatives are not available.

Source: Li et al. 2021, section 3.1, eqs. (1) to (3), https://arxiv.org/abs/2111.03505. The paper gives no formula for
kappa(l); tests/knowledge/test_vmf.py compares this one with Monte Carlo.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction, FunctionCtx, once_differentiable
from torch.nn import functional as F

from netprism.checks import check_tensor
from netprism.knowledge.special import bessel_ratio, log_bessel, projected_normal_length

_NEWTON_STEPS = 3  # the first guess is at most 7 % off, and each step squares the error: 1e-9


def mean_resultant_length(kappa: Tensor, d: int) -> Tensor:
    """A_d(kappa), the length of the mean of unit vectors that have the concentration kappa.

    Args:
        kappa: Concentrations of any shape, >= 0; infinity gives 1.
        d: Dimension of the space around the sphere, >= 2.

    Returns:
        The shape of `kappa`, in [0, 1].

    Raises:
        TypeError: kappa is not floating.
        ValueError: kappa is negative or NaN, or d is below 2.

    Example:
        >>> float(mean_resultant_length(torch.tensor(10.0, dtype=torch.float64), 3))  # coth 10 - 1/10
        0.9000000041...
    """
    length: Tensor = _WithSlope.apply(_checked("kappa", kappa, d), d, _length_of_kappa)
    return length.to(kappa.dtype)


def log_normalizer(kappa: Tensor, d: int) -> Tensor:
    """Logarithm of C_d(kappa): the log-density of a unit vector x is log C_d(kappa) + kappa mu.x, in nats.

    Args:
        kappa: Concentrations of any shape, >= 0 and finite; 0 is the uniform distribution.
        d: Dimension of the space around the sphere, >= 2.

    Returns:
        The shape of `kappa`. Its slope is -A_d(kappa).

    Raises:
        ValueError: kappa is negative, infinite or NaN, or d is below 2.

    Example:
        >>> float(log_normalizer(torch.tensor(0.0), d=3))  # -log of the sphere's surface, 4 pi
        -2.53102...
    """
    if kappa.isinf().any():
        raise ValueError("kappa is infinite; expected finite values, since a point has no density")
    log_c: Tensor = _WithSlope.apply(_checked("kappa", kappa, d), d, _log_c_of_kappa)
    return log_c.to(kappa.dtype)


def concentration_from_resultant_length(length: Tensor, d: int) -> Tensor:
    """The kappa whose mean resultant length A_d(kappa) is `length`: the inverse of `mean_resultant_length`.

    Args:
        length: Lengths of any shape, in [0, 1]; 1 gives infinity.
        d: Dimension of the space around the sphere, >= 2.

    Returns:
        The shape of `length`, >= 0.

    Raises:
        ValueError: A length is outside [0, 1] or NaN, or d is below 2.
    """
    wide = _checked("length", length, d)
    if (wide > 1).any():
        raise ValueError(f"length is {wide.max().item()}; expected at most 1, as of a mean of unit vectors")
    kappa: Tensor = _WithSlope.apply(wide, d, _kappa_of_length)
    return kappa.to(length.dtype)


def fit_kappa(samples: Tensor) -> Tensor:
    """The concentration of unit vectors, from the mean cosine of pairs of them, E cos = A_d(kappa)^2.

    Maximum likelihood takes the length r of the samples' mean for A_d(kappa). But E r^2 = A^2 + (1 - A^2) / n, so it
    finds a concentration even in uniform samples, a larger one the fewer there are: with n = 1000 in d = 4096 it
    estimates 165 for kappa = 100. The mean cosine over pairs, (n r^2 - 1) / (n - 1), has no such bias.

    Args:
        samples: Unit vectors `(n, d)`, n >= 2, d >= 2.

    Returns:
        A scalar >= 0; 0 where pairs are no closer than chance, infinity where all are the same. Differentiable.

    Raises:
        ValueError: The shape is another one, a row is not a unit vector, or a value is NaN.
    """
    if samples.ndim != 2 or len(samples) < 2:
        raise ValueError(f"shape of samples is {tuple(samples.shape)}; expected (n, d) with n >= 2")
    check_unit(samples)
    n, wide = len(samples), F.normalize(samples.double(), dim=1)
    cosine = (wide.sum(0).square().sum() - n) / (n * (n - 1))
    if (samples == samples[0]).all():
        cosine = cosine * math.inf  # 1 up to rounding, which would pass for a concentration of 1e15
    return concentration_from_resultant_length(cosine.clamp(0, 1).sqrt(), samples.shape[1]).to(samples.dtype)


def kappa_of_strength(l: Tensor, d: int, kappa_max: float, noise: float = 1.0) -> Tensor:  # noqa: E741 (the paper's l)
    """kappa(l), the concentration of the directions of features that have the strength l = ||f||.

    It rises smoothly from kappa(0) = 0 to kappa(inf) = kappa_max; near 0 it is proportional to l. Cost: 2 to 3 us per
    value on one core of an AMD EPYC, its gradient included. Memory: 1 MB beside the result and its gradient.

    Args:
        l: Strengths of any shape, >= 0.
        d: Dimension of the features, >= 2.
        kappa_max: Concentration without noise, > 0; infinity for a point.
        noise: Standard deviation of the noise in each dimension, > 0, in the unit of l.

    Returns:
        The shape of `l`, in [0, kappa_max].

    Raises:
        ValueError: A strength is negative or NaN, kappa_max or noise is not positive, or d is below 2.

    Example:
        >>> [round(float(kappa_of_strength(torch.tensor(l), d=3, kappa_max=10)), 3) for l in (0.5, 1.0, 2.0, 4.0)]
        [0.725, 1.489, 3.223, 6.4]
    """
    if not kappa_max > 0 or not noise > 0:
        raise ValueError(f"kappa_max is {kappa_max} and noise is {noise}; expected > 0 for both")
    blurred: Tensor = _WithSlope.apply(_checked("l", l, d) / noise, d, projected_normal_length)
    clean = mean_resultant_length(blurred.new_tensor(kappa_max), d)
    kappa: Tensor = _WithSlope.apply(clean * blurred, d, _kappa_of_length)
    return kappa.clamp(max=kappa_max).to(l.dtype)


def check_unit(samples: Tensor) -> None:
    """Refuses samples `(n, d)` unless all rows are unit vectors.

    Raises:
        TypeError: They are not floating.
        ValueError: They have another shape, are not finite, or the length of a row differs from 1 by more than 1e-3, or
            than its type can tell.
    """
    check_tensor("samples", samples, ("n", "d"))
    off = (samples.detach().double().norm(dim=1) - 1).abs().max().item()
    if not off < max(1e-3, torch.finfo(samples.dtype).eps):
        raise ValueError(f"length of a sample is {off} away from 1; expected unit vectors")


def _checked(name: str, values: Tensor, d: int) -> Tensor:
    """The values in float64."""
    if d < 2:
        raise ValueError(f"d is {d}; expected at least 2")
    check_tensor(name, values, least=0, finite=False)
    return values.double()


class _WithSlope(torch.autograd.Function):
    """Makes `function(x, d) -> (value, slope)` differentiable: the slope is kept for the backward pass."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, d: int, function: Callable[[Tensor, int], tuple[Tensor, Tensor]]
    ) -> Tensor:
        value, slope = function(x, d)
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: BackwardCFunction, grad: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return grad * slope, None, None


def _length_of_kappa(kappa: Tensor, d: int) -> tuple[Tensor, Tensor]:
    return bessel_ratio(kappa, d / 2 - 1)


def _log_c_of_kappa(kappa: Tensor, d: int) -> tuple[Tensor, Tensor]:
    log_c = -log_bessel(kappa, d / 2 - 1) - d / 2 * math.log(2 * math.pi)
    return log_c, -_length_of_kappa(kappa, d)[0]


def _kappa_of_length(length: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """Newton's method; first guess: Banerjee et al. 2005, eq. (4.4), https://jmlr.org/papers/v6/banerjee05a.html."""
    kappa = length * (d - length.square()) / (1 - length.square())
    for _ in range(_NEWTON_STEPS):
        found, slope = _length_of_kappa(kappa, d)
        kappa = (kappa - (found - length) / slope).clamp(min=0)
    kappa = torch.where(length < 1, kappa, math.inf)
    return kappa, 1 / _length_of_kappa(kappa, d)[1]

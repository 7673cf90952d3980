"""kappa(l) and the normaliser at it from a table: what a fit evaluates hundreds of times, in some 20 calls of torch.

`netprism.knowledge.vmf.kappa_of_strength` finds kappa(l) by Newton's method, with some 300 calls that take longer than
the rest of a fit. Between nodes that are equally far apart in u = log(1 + l), cubic Hermite polynomials of
log(kappa / l) and of log C_d(kappa), with exact slopes at the nodes, have a relative error below 1e-9.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction, FunctionCtx, once_differentiable

from netprism.knowledge.vmf import kappa_of_strength, log_normalizer, mean_resultant_length

_NODES = 4096
_LARGEST = 1e5  # the largest strength of the table; beyond it kappa is that of this strength
_WIDTH = math.log1p(_LARGEST) / (_NODES - 1)  # between two nodes


def kappa_and_log_normalizer(strengths: Tensor, d: int, kappa_max: float) -> tuple[Tensor, Tensor]:
    """kappa(l) and log C_d(kappa(l)) of strengths l, as `kappa_of_strength` and `log_normalizer` give them, but faster.

    Places between nodes are float64, the rest is of the type of `strengths`; differentiable once. Memory: 400 kB for
    each d, kappa_max, device and type.

    Args:
        strengths: Strengths l of any shape, >= 0; they are not checked.
        d: Dimension of the features, >= 2.
        kappa_max: Concentration without noise, > 0 and finite.
    """
    kappa, log_c = _Interpolated.apply(strengths, d, kappa_max)
    return kappa, log_c


def values_and_slopes(strengths: Tensor, d: int, kappa_max: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """kappa(l), log C_d(kappa(l)), and their slopes in l, each in the type and of the shape of the strengths."""
    table = _table(d, float(kappa_max), strengths.device, strengths.dtype)
    l = strengths.double().clamp(max=_LARGEST)  # noqa: E741 (the paper's l)
    one_more = l + 1
    place = one_more.log() / _WIDTH
    index = place.long().clamp_(max=_NODES - 2)
    t = (place - index).to(strengths.dtype).unsqueeze(-1)
    # value = ((a t + b) t + c) t + e, and its slope in t = (3 a t + 2 b) t + c, of log(kappa / l) and of log C
    a, b, c, e, a3, b2 = table.index_select(0, index.view(-1)).view(*index.shape, 6, 2).unbind(-2)
    value = torch.addcmul(e, torch.addcmul(c, torch.addcmul(b, a, t), t), t)
    per_l = torch.where(strengths < _LARGEST, one_more.reciprocal_() / _WIDTH, 0).to(strengths.dtype).unsqueeze(-1)
    slope = torch.addcmul(c, torch.addcmul(b2, a3, t), t) * per_l
    log_ratio, log_c = value.unbind(-1)
    ratio = log_ratio.exp()
    kappa = l.to(strengths.dtype) * ratio
    kappa_slope = torch.where(strengths < _LARGEST, torch.addcmul(ratio, kappa, slope[..., 0]), 0)
    return kappa, log_c, kappa_slope, slope[..., 1]


@lru_cache(maxsize=32)
def _table(d: int, kappa_max: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Coefficients of the cubics of log(kappa / l) and of log C between nodes, `(_NODES - 1, 6, 2)`, on `device`."""
    with torch.inference_mode(False), torch.no_grad():
        u = torch.linspace(0, math.log1p(_LARGEST), _NODES, dtype=torch.float64)
        strengths = torch.expm1(u)
        strengths[0] = 1e-6  # log(kappa / l) has the slope 0 at 0, and the limit there differs by less than 1e-12
        with torch.enable_grad():
            strengths.requires_grad_()
            kappa = kappa_of_strength(strengths, d, kappa_max)
            (slope,) = torch.autograd.grad(kappa.sum(), strengths)
        kappa, strengths = kappa.detach(), strengths.detach()
        bend = (slope / kappa - 1 / strengths) * (1 + strengths)
        bend[0] = 0
        fall = -mean_resultant_length(kappa, d) * slope * (1 + strengths)
        values = torch.stack([(kappa / strengths).log(), log_normalizer(kappa, d)], dim=1)
        rises = _WIDTH * torch.stack([bend, fall], dim=1)
        start, end, rise, rise_too = values[:-1], values[1:], rises[:-1], rises[1:]
        cubic = 2 * (start - end) + rise + rise_too
        square = 3 * (end - start) - 2 * rise - rise_too
        return torch.stack([cubic, square, rise, start, 3 * cubic, 2 * square], dim=1).to(device, dtype)


class _Interpolated(torch.autograd.Function):
    """Values from the table; their slopes are kept for the backward pass."""

    @staticmethod
    def forward(ctx: FunctionCtx, strengths: Tensor, d: int, kappa_max: float) -> tuple[Tensor, Tensor]:
        kappa, log_c, kappa_slope, log_c_slope = values_and_slopes(strengths, d, kappa_max)
        ctx.save_for_backward(kappa_slope, log_c_slope)
        return kappa, log_c

    @staticmethod
    @once_differentiable
    def backward(ctx: BackwardCFunction, grad_kappa: Tensor, grad_log_c: Tensor) -> tuple[Tensor, None, None]:
        slopes: tuple[Tensor, ...] = ctx.saved_tensors
        kappa_slope, log_c_slope = slopes
        return grad_kappa * kappa_slope + grad_log_c * log_c_slope, None, None

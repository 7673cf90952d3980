"""kappa(l) and the normaliser at it from a table: what a fit evaluates thousands of times, in some 20 calls of torch.

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


def kappa_and_log_normalizer(strengths: Tensor, d: int, kappa_max: float) -> tuple[Tensor, Tensor]:
    """kappa(l) and log C_d(kappa(l)) of strengths l, as `kappa_of_strength` and `log_normalizer` give them, but faster.

    Computed in float64 and returned in the type of `strengths`; differentiable once. Memory: 100 kB for each d,
    kappa_max and device.

    Args:
        strengths: Strengths l of any shape, >= 0; they are not checked.
        d: Dimension of the features, >= 2.
        kappa_max: Concentration without noise, > 0 and finite.
    """
    table = _table(d, float(kappa_max), strengths.device)
    kappa, log_c = _Interpolated.apply(strengths.double(), table)
    return kappa.to(strengths.dtype), log_c.to(strengths.dtype)


@lru_cache(maxsize=32)
def _table(d: int, kappa_max: float, device: torch.device) -> Tensor:
    """Value and slope in u of log(kappa / l), then of log C, at the nodes: `(_NODES, 4)`, on `device`."""
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
        log_c = log_normalizer(kappa, d)
        fall = -mean_resultant_length(kappa, d) * slope * (1 + strengths)
        return torch.stack([(kappa / strengths).log(), bend, log_c, fall], dim=1).to(device)


class _Interpolated(torch.autograd.Function):
    """Values from the table; their slopes are kept for the backward pass."""

    @staticmethod
    def forward(ctx: FunctionCtx, strengths: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        width = math.log1p(_LARGEST) / (_NODES - 1)
        l = strengths.clamp(max=_LARGEST)  # noqa: E741 (the paper's l)
        place = torch.log1p(l) / width
        index = place.long().clamp_(max=_NODES - 2)
        t = (place - index).unsqueeze(-1)
        ends = table.view(_NODES, 2, 2).flatten(1)
        a, b = ends[index].unflatten(-1, (2, 2)), ends[index + 1].unflatten(-1, (2, 2))
        start, rise, end, rise_too = a[..., 0], width * a[..., 1], b[..., 0], width * b[..., 1]
        cubic = 2 * (start - end) + rise + rise_too
        square = 3 * (end - start) - 2 * rise - rise_too
        values = start + t * (rise + t * (square + t * cubic))
        slopes = (rise + t * (2 * square + 3 * t * cubic)) / width
        ratio = values[..., 0].exp()
        inside = (strengths < _LARGEST).to(l.dtype)
        ctx.save_for_backward(inside * ratio * (1 + l * slopes[..., 0] / (1 + l)), inside * slopes[..., 1] / (1 + l))
        return l * ratio, values[..., 1].contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: BackwardCFunction, grad_kappa: Tensor, grad_log_c: Tensor) -> tuple[Tensor, None]:
        slopes: tuple[Tensor, ...] = ctx.saved_tensors
        kappa_slope, log_c_slope = slopes
        return grad_kappa * kappa_slope + grad_log_c * log_c_slope, None

"""Sums over the processes of a distributed training, and what each of them has."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import BackwardCFunction, FunctionCtx

T = TypeVar("T")


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum of all processes' values, the same to the bit on each; alone, the values themselves.

    All processes have to call it, and to go backward through it: the gradient is that of the sum of all their losses.
    (`torch.distributed.nn.functional.all_reduce` does this too, but warns in torch 2.15 that it will go.)

    Args:
        values: of one shape on all processes.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return values
    return cast(Tensor, _SumOverProcesses.apply(values))


def everywhere(own: T) -> list[T]:
    """What each process has, by rank, on each of them; all have to call it. Tensors should be on the CPU."""
    if not (dist.is_available() and dist.is_initialized()):
        return [own]
    everything: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everything, own)
    return everything


class _SumOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor) -> Tensor:
        total = values.detach().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: BackwardCFunction, grad: Tensor) -> Tensor:
        return _SumOverProcesses.forward(ctx, grad)

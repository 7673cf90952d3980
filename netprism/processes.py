"""Sums over the processes of a distributed training, and what each of them has."""

from __future__ import annotations

from collections.abc import Sequence
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


def is_first_process() -> bool:
    """Whether this is process 0, or the only one."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def own_numbers(count: int) -> range:
    """Of 0, ..., count - 1 those that fall to this process: r, r + W, ... to number r of W."""
    if not (dist.is_available() and dist.is_initialized()):
        return range(count)
    return range(dist.get_rank(), count, dist.get_world_size())


def rows_of_all(own: Tensor) -> Tensor:
    """The rows of all processes on each of them, in the order in which samplers deal them out: r, r + W, ... to r."""
    parts = everywhere(own.detach().cpu())
    places = [torch.arange(len(part)) * len(parts) + rank for rank, part in enumerate(parts)]
    return torch.cat(parts)[torch.cat(places).argsort()].to(own.device)


def own_part(parts: Sequence[T]) -> T | None:
    """Of what `everywhere` returned, also in an earlier run: this process' part, or None of as many as are not here."""
    is_one = not (dist.is_available() and dist.is_initialized())
    rank, size = (0, 1) if is_one else (dist.get_rank(), dist.get_world_size())
    return parts[rank] if len(parts) == size else None


class _SumOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor) -> Tensor:
        total = values.detach().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: BackwardCFunction, grad: Tensor) -> Tensor:
        return _SumOverProcesses.forward(ctx, grad)

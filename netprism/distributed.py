"""Sums over the processes of a distributed training, and what each of them has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import BackwardCFunction, FunctionCtx

T = TypeVar("T")
_TOLD = "the other processes were told"


class RemoteRankError(RuntimeError):
    """Work that all processes do at the same time has failed in another one."""


@dataclass(frozen=True)
class _Failure:
    """What a process sends that has failed, in place of what the others wait for."""

    why: str


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum of all processes' values, the same to the bit on each; alone, the values themselves.

    All processes have to call it, and to go backward through it: the gradient is that of the sum of all their losses.
    (`torch.distributed.nn.functional.all_reduce` does this too, but warns in torch 2.15 that it will go.)

    Args:
        values: of one shape on all processes.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return values
    return cast(Tensor, _AllReduceSum.apply(values))


def all_gather_object(own: T) -> list[T]:
    """What each process has, by rank, on each of them; all have to call it. Tensors should be on the CPU.

    Raises:
        RemoteRankError: a process has failed within a `run_on_all_ranks`, and what it has will never come.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return [own]
    everything: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everything, own)
    if failures := [item.why for item in everything if isinstance(item, _Failure)]:
        raise RemoteRankError("; ".join(failures))
    return everything


def run_on_all_ranks(run: Callable[[], T]) -> T:
    """What `run` returns in this process; where it raises in one of them, it raises in all.

    A process that left alone would keep the others waiting in their next gather. So it tells them there: in the next
    `all_gather_object` or at the end of the next `run_on_all_ranks`, be that within `run` or its own. Any other collective (a sum, a
    broadcast) has to follow on one of these two with no work between that may fail in one process alone.

    Raises:
        RemoteRankError: in the processes that have not failed themselves.
    """
    try:
        result = run()
    except Exception as error:
        if not is_reported(error):
            with suppress(RemoteRankError):
                all_gather_object(_Failure(f"process {dist.get_rank()}: {in_one_line(error)}"))
            error.add_note(_TOLD)
        raise
    all_gather_object(None)
    return result


def is_reported(error: Exception) -> bool:
    """Whether each process has this error or a `RemoteRankError` for it."""
    alone = not (dist.is_available() and dist.is_initialized())
    return alone or isinstance(error, RemoteRankError) or _TOLD in getattr(error, "__notes__", ())


def in_one_line(error: Exception) -> str:
    """The kind of an error and the first line of what it says."""
    if isinstance(error, RemoteRankError):
        return str(error)
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def is_rank_zero() -> bool:
    """Whether this is process 0, or the only one."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def rank_indices(count: int) -> range:
    """Of 0, ..., count - 1 those that fall to this process: r, r + W, ... to number r of W."""
    if not (dist.is_available() and dist.is_initialized()):
        return range(count)
    return range(dist.get_rank(), count, dist.get_world_size())


def all_gather_rows(own: Tensor) -> Tensor:
    """The rows of all processes on each of them, in the order in which samplers deal them out: r, r + W, ... to r."""
    parts = all_gather_object(own.detach().cpu())
    places = [torch.arange(len(part)) * len(parts) + rank for rank, part in enumerate(parts)]
    return torch.cat(parts)[torch.cat(places).argsort()].to(own.device)


def this_rank(parts: Sequence[T]) -> T | None:
    """Of what `all_gather_object` returned, also in an earlier run: this process' part, or None of as many as are not here."""
    is_one = not (dist.is_available() and dist.is_initialized())
    rank, size = (0, 1) if is_one else (dist.get_rank(), dist.get_world_size())
    return parts[rank] if len(parts) == size else None


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor) -> Tensor:
        total = values.detach().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: BackwardCFunction, grad: Tensor) -> Tensor:
        return _AllReduceSum.forward(ctx, grad)

"""What the ranks of a distributed training send one another, and how an error on one of them ends all."""

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
_REPORTED = "the other ranks have been told"


class RemoteRankError(RuntimeError):
    """Work that all ranks do at the same time has failed on another one."""


@dataclass(frozen=True)
class _Failure:
    """What a failed rank sends, instead of what the others wait for."""

    why: str


def all_reduce_sum(values: Tensor) -> Tensor:
    """Returns the sum of all ranks' values, bitwise the same on each; in one process, the values themselves.

    All ranks have to call it, and to go backward through it: the gradient is that of the sum of all their losses.
    (`torch.distributed.nn.functional.all_reduce` does this too, but warns in torch 2.15 that it will go.)

    Args:
        values: Tensor of the same shape on all ranks.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return values
    return cast(Tensor, _AllReduceSum.apply(values))


def all_gather_object(own: T) -> list[T]:
    """Returns the objects of all ranks, by rank; all ranks have to call it. Tensors should be on the CPU.

    Raises:
        RemoteRankError: A rank has failed within `run_on_all_ranks`, so that its object will never come.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return [own]
    everything: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everything, own)
    if failures := [item.why for item in everything if isinstance(item, _Failure)]:
        raise RemoteRankError("; ".join(failures))
    return everything


def all_to_all(parts: Sequence[Tensor], lengths: Sequence[int]) -> list[Tensor]:
    """Sends each rank a part, and returns what the ranks have sent to this one; all ranks have to call it.

    Args:
        parts: One flat tensor for each rank, of the same type; they may be empty.
        lengths: Number of elements that come from each rank.

    Returns:
        What has come from each rank, flat, where the parts are.
    """
    device = parts[0].device
    on = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
    arrived = torch.empty(sum(lengths), dtype=parts[0].dtype, device=on)
    dist.all_to_all_single(arrived, torch.cat(list(parts)).to(on), list(lengths), [len(part) for part in parts])
    return list(arrived.to(device).split(list(lengths)))


def run_on_all_ranks(run: Callable[[], T]) -> T:
    """Returns what `run` returns on this rank; where it raises on one rank, all ranks raise.

    A rank that failed alone would leave the others waiting in their next gather. So a failing rank reports there: in
    the next `all_gather_object`, within `run` or at its end. Put any other collective (a sum, a broadcast) directly
    after one of these, with nothing in between that may fail on one rank only.

    Raises:
        RemoteRankError: On the ranks that have not failed themselves.
    """
    try:
        result = run()
    except Exception as error:
        if not is_reported(error):
            with suppress(RemoteRankError):
                all_gather_object(_Failure(f"process {dist.get_rank()}: {in_one_line(error)}"))
            error.add_note(_REPORTED)
        raise
    all_gather_object(None)
    return result


def is_reported(error: Exception) -> bool:
    """Returns whether each rank has this error or a `RemoteRankError` for it."""
    alone = not (dist.is_available() and dist.is_initialized())
    return alone or isinstance(error, RemoteRankError) or _REPORTED in getattr(error, "__notes__", ())


def in_one_line(error: Exception) -> str:
    """Returns the kind of an error and the first line of its message."""
    if isinstance(error, RemoteRankError):
        return str(error)
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def is_rank_zero() -> bool:
    """Returns whether this is rank 0, or the only process."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def rank_indices(count: int) -> range:
    """Returns those of 0, ..., count - 1 that belong to this rank: r, r + W, ... for rank r of W."""
    rank, size = rank_and_size()
    return range(rank, count, size)


def rank_and_size() -> tuple[int, int]:
    """Returns the rank of this process and their number; 0 and 1 of one without a group."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def all_gather_rows(own: Tensor) -> Tensor:
    """Returns the rows of all ranks on each of them, in the order of samplers: r, r + W, ... are those of rank r."""
    parts = all_gather_object(own.detach().cpu())
    places = [torch.arange(len(part)) * len(parts) + rank for rank, part in enumerate(parts)]
    return torch.cat(parts)[torch.cat(places).argsort()].to(own.device)


def this_rank(parts: Sequence[T]) -> T | None:
    """Returns this rank's entry of a gathered list, or None if the list is of another number of ranks."""
    rank, size = rank_and_size()
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

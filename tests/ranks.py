"""Work on several forked ranks of one gloo process group."""

import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from deadline import deadline
from torch import distributed as dist
from torch import multiprocessing


def on_ranks(world_size: int, work: Callable[[int], Any]) -> list[Any]:
    """Returns what `work(rank)` returns on each rank: tensors and plain values; an error on one ends them all."""
    with tempfile.TemporaryDirectory() as folder, deadline():
        run = partial(_run, world_size=world_size, work=work, folder=folder)
        multiprocessing.start_processes(run, nprocs=world_size, start_method="fork")
        return [torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in range(world_size)]


def _run(rank: int, world_size: int, work: Callable[[int], Any], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    torch.save(work(rank), f"{folder}/{rank}.pt")
    dist.destroy_process_group()

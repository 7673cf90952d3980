"""The sequence of the training images: a function of seed and epoch alone, also within an interrupted epoch."""

from collections.abc import Iterator, Sized
from itertools import cycle, islice
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

T = TypeVar("T")


class SeededIndex(int):
    """The index of a sample, with the seed of the random numbers that are drawn for it, such as its augmentation."""

    seed: int

    @classmethod
    def of(cls, index: int, seed: int) -> "SeededIndex":
        """Returns the index with its seed."""
        draw = cls(index)
        draw.seed = seed
        return draw


class EpochSampler(DistributedSampler[int]):
    """A new permutation of all samples in every epoch that depends on nothing but `seed` and the epoch.

    The global random state is neither read nor changed, so an interrupted run finds the permutations of an
    uninterrupted one. Process r of W takes the positions r, r + W, ... of the permutation, starting again from its
    front until all have equally many: together they take the batches that one process with W times the batch size
    would. Each index is a `SeededIndex` whose seed belongs to seed, epoch and position: the same for any number of
    processes and of workers.

    Lightning calls `set_epoch`. In a loop that never does, each pass is the next epoch.

    Args:
        dataset: Data set whose samples are put into a sequence.
        seed: Seed of the sequence, >= 0.
        processes: Number of ranks, W.
        rank: This rank, r.

    Attributes:
        start: Number of this rank's samples that the next pass leaves out at its front; 0 after it has begun.

    Example:
        >>> sampler = EpochSampler(range(4), seed=0)
        >>> list(sampler), list(sampler)
        ([0, 3, 1, 2], [0, 2, 3, 1])
        >>> list(EpochSampler(range(4), seed=0, processes=2, rank=1))
        [3, 2]
    """

    def __init__(self, dataset: Sized, seed: int, processes: int = 1, rank: int = 0) -> None:
        super().__init__(cast(Dataset[int], dataset), num_replicas=processes, rank=rank, seed=seed)
        self.size = len(dataset)
        self.start = 0

    def __iter__(self) -> Iterator[int]:
        # SeedSequence mixes the two numbers: with their sum, epoch 1 of seed 0 would be epoch 0 of seed 1.
        mixed, *seeds = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1 + self.size).tolist()
        permutation = torch.randperm(self.size, generator=torch.Generator().manual_seed(mixed)).tolist()
        first, self.start = self.rank + self.start * self.num_replicas, 0
        self.epoch += 1
        return islice(cycle(map(SeededIndex.of, permutation, seeds)), first, self.total_size, self.num_replicas)


class ResumableLoader(DataLoader[T]):
    """A data loader with which a run that was killed within an epoch continues at the next batch.

    Lightning (2.6) keeps its state in checkpoints; from other loaders it takes the first batches of the epoch again.

    Args:
        dataset: Data set with length and random access.
        sampler: Sampler of the sequence.
        batch_size: Number of samples in a batch.
        options: Options of `torch.utils.data.DataLoader`.
    """

    def __init__(self, dataset: Dataset[T], sampler: EpochSampler, batch_size: int, **options: Any) -> None:
        super().__init__(dataset, batch_size, sampler=sampler, **options)
        self._sampler = sampler
        self._taken = {"epoch": 0, "batches": 0}
        self._resumed: dict[str, int] = {}

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch returns an iterator class of its own
        # A generator: it looks at the sampler at the first batch. Lightning makes iterators before it sets the epoch.
        epoch = self._sampler.epoch
        done = self._resumed.get("batches", 0) if self._resumed.get("epoch") == epoch else 0
        self._resumed = {}
        self._taken = {"epoch": epoch, "batches": done}
        self._sampler.start = done * cast(int, self.batch_size)
        for batch in super().__iter__():
            self._taken["batches"] += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Returns the epoch, the number of batches handed out in it, and how they are cut."""
        return {**self._taken, **self._cut()}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continues there, if the next pass is of the same epoch.

        Raises:
            ValueError: The state is of other batches.
        """
        cut = {key: state_dict[key] for key in self._cut()}
        if state_dict["batches"] and cut != self._cut():
            was, now = ("{processes} processes with batches of {batch_size}".format(**c) for c in (cut, self._cut()))
            raise ValueError(
                f"the checkpoint is of the middle of an epoch of {was}, here it is {now}: "
                "continue with as many, or from a checkpoint of an epoch's end"
            )
        self._resumed = state_dict

    def _cut(self) -> dict[str, int]:
        return {"processes": self._sampler.num_replicas, "batch_size": cast(int, self.batch_size)}

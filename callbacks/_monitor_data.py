"""The fixed samples that a monitor looks at in every epoch, from netprism's data modules or anybody's data loaders."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast, runtime_checkable

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)

from netprism.callbacks._calling import LABEL_KEYS, Way, labels_of, map_tensors, tensors_of
from netprism.distributed import all_gather_object, is_rank_zero

Split = Literal["train", "test"]
MOST_BYTES = 1 << 30  # of a stream's samples
MOST_OF_STREAM = 10_000  # samples


@runtime_checkable
class HasMonitorDataset(Protocol):
    """A data module that knows its own images without augmentation, as `netprism.datamodules` do."""

    def monitor_dataset(self, split: Split) -> Dataset[Any]:
        """The split's samples as in evaluation."""


@dataclass(frozen=True)
class MonitorData:
    """Chosen samples of a data set, in fixed batches.

    Whole batches are dealt to the ranks, not samples: rank r of W takes batches r, r + W, ... So a batch consists of
    the same samples for any W, and its floating-point sums, its random numbers and its gates are bitwise equal.

    Attributes:
        dataset: A data set with length and random access.
        batches: Indices of the samples of each batch.
        collate: Function that makes a batch of a list of samples.
        seed: Seed of the random numbers that are drawn for batch 0; batch i has seed + i.
        way: What of a batch the network gets; None until it is found, or where the user has said it.
    """

    dataset: Dataset[Any]
    batches: list[list[int]]
    collate: Callable[[list[Any]], Any]
    seed: int
    way: Way | None = None

    def __len__(self) -> int:
        return sum(len(batch) for batch in self.batches)

    def shard(self, rank: int, world_size: int) -> list[int]:
        """Positions of one rank's batches."""
        return list(range(rank, len(self.batches), world_size))

    def load(self, number: int, size: int | None = None) -> Any:  # noqa: ANN401 - what the collate function makes
        """Loads a batch, or its first `size` samples, and seeds what is drawn for it here and in the forward pass."""
        _seed_everything(self.seed + number)
        indices = self.batches[number][:size]
        of_several = getattr(self.dataset, "__getitems__", None)  # torch's loaders use it as well
        return self.collate(of_several(indices) if of_several else [self.dataset[i] for i in indices])


def monitor_data(
    trainer: pl.Trainer,
    split: Split,
    samples: int,
    batch_size: int,
    seed: int,
    given: Dataset[Any] | None = None,
    loader: str | int | None = None,
    name: str = "a monitor",
) -> MonitorData | None:
    """Chooses samples, equally many per class, in a way that depends on the seed alone; of a stream the first ones.

    Args:
        trainer: The trainer whose data are used: the data module's `monitor_dataset` if it has one, otherwise the data
            set behind the first training or validation loader.
        split: "train" or "test"; the validation loader of a module without `monitor_dataset` is the test set.
        samples: Number of samples; all if there are fewer.
        batch_size: Number of samples in one forward pass.
        seed: Seed of the choice.
        given: A data set to use instead of the trainer's.
        loader: Name or number of the test loader, where there are several; None for the first one, which is said.
        name: Name of the monitor, for what it says.

    Returns:
        The samples, or None for a "test" that does not exist.

    Raises:
        ValueError: There is no data set, or no such loader, or its items are no samples.
    """
    dataset: Any = given
    collate: Callable[[list[Any]], Any] = default_collate
    datamodule = trainer.datamodule  # type: ignore[attr-defined]  # set in one of Lightning's connectors
    if dataset is None and isinstance(datamodule, HasMonitorDataset):
        dataset = datamodule.monitor_dataset(split)
    elif dataset is None:
        loaders = trainer.train_dataloader if split == "train" else trainer.val_dataloaders
        found = {key: each for key, each in _flatten(loaders) if isinstance(each, DataLoader)}
        chosen = _choose(found, None if split == "train" else loader, name)
        if chosen is None and split == "test":
            return None
        if isinstance(chosen, DataLoader) and isinstance(chosen.dataset, IterableDataset):
            dataset = first_of_stream(chosen, samples, name)
            collate = chosen.collate_fn if chosen.batch_size is not None else default_collate
        elif chosen is not None:
            dataset, collate = _behind(chosen, split)
    if isinstance(dataset, IterableDataset):
        dataset = first_of_stream(DataLoader(dataset), samples, name)
    if not isinstance(dataset, Sized) or not hasattr(dataset, "__getitem__"):
        kind = "no DataLoader" if dataset is None else type(dataset).__name__
        raise ValueError(f"a monitor needs a data set with length and random access, found {kind}; give {split}_data=")
    size, sized = len(dataset), cast(Dataset[Any], dataset)
    indices = balanced_indices(targets_of(sized), size, samples, seed)
    batches = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
    return MonitorData(sized, batches, collate, seed)


def _choose(loaders: dict[str, DataLoader[Any]], wanted: str | int | None, name: str) -> DataLoader[Any] | None:
    """The loader of that name or number; of several the first one, which is said."""
    names = list(loaders)
    if wanted is not None:
        key = names[wanted] if isinstance(wanted, int) and -len(names) <= wanted < len(names) else str(wanted)
        if key not in loaders:
            raise ValueError(
                f"test_loader is {wanted!r}; expected one of {', '.join(names) or 'none: there is no loader'}"
            )
        return loaders[key]
    if len(names) > 1:
        rank_zero_info(f"{name}: takes the samples of loader {names[0]!r} of {', '.join(names)}; test_loader= chooses")
    return loaders[names[0]] if names else None


def first_of_stream(loader: DataLoader[Any], samples: int, name: str) -> list[Any]:
    """Returns the first samples of an iterable data set, read in this process and the same on all ranks.

    It reads at most `MOST_BYTES`, and says so. A copy of the data set is read where it can be copied, so that the
    training's own does not move. Where the loader's items are batches (`batch_size=None`), their rows are samples.
    """
    stream: Any
    try:
        stream = copy.deepcopy(loader.dataset)
    except Exception:  # an open file, a pipeline of WebDataset
        stream = loader.dataset

    samples = min(samples, MOST_OF_STREAM)

    def read() -> tuple[list[Any], int]:
        found: list[Any] = []
        held = 0
        for item in stream:
            rows = [item] if loader.batch_size is not None else rows_of(item)
            found += rows
            held += sum(t.numel() * t.element_size() for t in tensors_of(rows))
            if len(found) >= samples or held > MOST_BYTES:
                break
        return found[:samples], held

    # Rank 0's on all ranks, since each rank's stream may be a part of its own; a gather, so that an error reaches all.
    found, held = all_gather_object(read() if is_rank_zero() else ([], 0))[0]
    why = f"; more would take over {MOST_BYTES >> 20} MiB" if held > MOST_BYTES and len(found) < samples else ""
    rank_zero_info(f"{name}: keeps the first {len(found)} samples of {type(loader.dataset).__name__}{why}")
    if not found:
        raise ValueError(f"{name}: {type(loader.dataset).__name__} gives no samples; give train_data=")
    return found


def rows_of(batch: Any) -> list[Any]:  # noqa: ANN401 - a user's batch
    """Returns the samples of a batch: row i of each tensor; what has fewer rows is kept whole."""
    rows = max((len(t) for t in tensors_of(batch) if t.dim()), default=0)

    def row(i: int) -> Callable[[Tensor], Any]:
        return lambda t: t[i].clone() if t.dim() and len(t) == rows else t

    return [map_tensors(batch, row(i)) for i in range(rows)]


def labels_of_items(data: MonitorData, most: int) -> tuple[list[int], Tensor] | None:
    """Reads the labels out of items, where the data set has no list of them.

    Args:
        data: Samples in random order.
        most: Largest number of items that are loaded.

    Returns:
        The items' indices `(n,)` and classes `(n,)`, or None where an item has no integer label.
    """
    indices = [i for batch in data.batches for i in batch][:most]
    labels = []
    for i in indices:
        label = labels_of(data.dataset[i])
        found = as_classes([label]) if not isinstance(label, Tensor) else as_classes(label.reshape(-1))
        if found is None or len(found) != 1:
            return None
        labels.append(int(found))
    return indices, torch.tensor(labels)


def balanced_indices(targets: Tensor | None, size: int, samples: int, seed: int) -> list[int]:
    """Returns a random choice of samples, equally many per class; where a class has too few, the others fill up.

    Without targets the choice is uniform. The order is random in both cases.

    Args:
        targets: Integer classes `(size,)`, or None.
        size: Number of samples in the data set.
        samples: Number of samples to choose; all if there are fewer.
        seed: Seed of the choice.
    """
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    if targets is None:
        return order[:samples].tolist()
    members = [order[targets[order] == label] for label in targets.unique()]
    chosen = torch.zeros(size, dtype=torch.bool)
    left = samples
    for done, of_class in enumerate(sorted(members, key=len)):
        share = left // (len(members) - done)
        chosen[of_class[:share]] = True
        left -= min(share, len(of_class))
    return order[chosen[order]].tolist()


def targets_of(dataset: Dataset[Any]) -> Tensor | None:
    """Returns the integer classes `(n,)` of a data set without loading its samples, or None where it has no list."""
    targets: Any
    if isinstance(dataset, Subset):
        targets = targets_of(dataset.dataset)
        return None if targets is None else targets[torch.as_tensor(dataset.indices)]
    if isinstance(dataset, ConcatDataset):
        parts = [targets_of(part) for part in dataset.datasets]
        known = [part for part in parts if part is not None]
        return torch.cat(known) if len(known) == len(parts) else None
    if isinstance(dataset, TensorDataset):
        targets = dataset.tensors[1] if len(dataset.tensors) > 1 else None
    else:  # `targets` in most of torchvision's data sets, `labels` in the others
        targets = getattr(dataset, "targets", getattr(dataset, "labels", None))
        column = next((key for key in LABEL_KEYS if key in (getattr(dataset, "column_names", None) or ())), None)
        if targets is None and column is not None and isinstance(dataset, Sized):  # of Hugging Face
            targets = as_classes(list(dataset[column]))
    classes = as_classes(targets)
    matching = classes is not None and isinstance(dataset, Sized) and len(classes) == len(dataset)
    return classes if matching else None


def as_classes(labels: object) -> Tensor | None:
    """Returns labels as an integer vector, or None where they are not (several per sample, real numbers, text)."""
    try:
        classes = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        return None
    return None if classes.dim() != 1 or classes.is_floating_point() or classes.is_complex() else classes.cpu()


def _seed_everything(seed: int) -> None:
    """Lightning's function of this name would also change the environment of processes to come."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _flatten(loaders: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """The loaders in Lightning's nested collections by name, in order: `knn`, `0`, `a/1`."""
    if isinstance(loaders, dict | list | tuple):
        items = loaders.items() if isinstance(loaders, dict) else enumerate(loaders)
        for key, loader in items:
            yield from _flatten(loader, f"{prefix}/{key}" if prefix else str(key))
    elif loaders is not None:
        yield prefix or "0", loaders


def _behind(loader: DataLoader[Any], split: Split) -> tuple[Dataset[Any], Callable[[list[Any]], Any]]:
    """Returns the samples that a loader draws from, and how it makes a batch of them."""
    if loader.batch_sampler is None:
        raise ValueError(f"the {split} loader has batch_size=None, so its items are no samples; give {split}_data=")
    if isinstance(loader.sampler, SubsetRandomSampler):
        return Subset(loader.dataset, list(loader.sampler.indices)), loader.collate_fn
    return loader.dataset, loader.collate_fn

"""The fixed samples that a monitor looks at in every epoch, from netprism's data modules or anybody's data loaders."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, SubsetRandomSampler, TensorDataset, default_collate

Split = Literal["train", "test"]

_INPUT_KEYS = ("image", "images", "pixel_values", "input", "inputs", "x")
_LABEL_KEYS = ("label", "labels", "target", "targets", "y")


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
    """

    dataset: Dataset[Any]
    batches: list[list[int]]
    collate: Callable[[list[Any]], Any]
    seed: int

    def __len__(self) -> int:
        return sum(len(batch) for batch in self.batches)

    def shard(self, rank: int, world_size: int) -> list[int]:
        """Positions of one rank's batches."""
        return list(range(rank, len(self.batches), world_size))

    def load(self, number: int, size: int | None = None) -> Any:  # noqa: ANN401 - what the collate function makes
        """Loads a batch, or its first `size` samples, and seeds what is drawn for it here and in the forward pass."""
        _seed_everything(self.seed + number)
        return self.collate([self.dataset[i] for i in self.batches[number][:size]])


def monitor_data(
    trainer: pl.Trainer, split: Split, samples: int, batch_size: int, seed: int, given: Dataset[Any] | None = None
) -> MonitorData | None:
    """Chooses samples, equally many per class, in a way that depends on the seed alone.

    Args:
        trainer: The trainer whose data are used: the data module's `monitor_dataset` if it has one, otherwise the data
            set behind the first training or validation loader.
        split: "train" or "test"; the validation loader of a module without `monitor_dataset` is the test set.
        samples: Number of samples; all if there are fewer.
        batch_size: Number of samples in one forward pass.
        seed: Seed of the choice.
        given: A data set to use instead of the trainer's.

    Returns:
        The samples, or None for a "test" that does not exist.

    Raises:
        ValueError: The data set has no length or no random access.
    """
    dataset, collate = given, default_collate
    datamodule = trainer.datamodule  # type: ignore[attr-defined]  # set in one of Lightning's connectors
    if dataset is None and isinstance(datamodule, HasMonitorDataset):
        dataset = datamodule.monitor_dataset(split)
    elif dataset is None:
        loaders = trainer.train_dataloader if split == "train" else trainer.val_dataloaders
        loader = next((loader for loader in _flatten(loaders) if isinstance(loader, DataLoader)), None)
        if loader is None and split == "test":
            return None
        dataset, collate = _behind(loader, split) if loader is not None else (None, collate)
    if not isinstance(dataset, Sized) or not hasattr(dataset, "__getitem__"):
        found = "no DataLoader" if dataset is None else type(dataset).__name__
        raise ValueError(f"a monitor needs a data set with length and random access, found {found}; give {split}_data=")
    chosen = balanced_indices(targets_of(dataset), len(dataset), samples, seed)
    batches = [chosen[i : i + batch_size] for i in range(0, len(chosen), batch_size)]
    data = MonitorData(dataset, batches, collate, seed)
    _warn_if_random(data, split)
    return data


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
    if isinstance(dataset, Subset):
        targets = targets_of(dataset.dataset)
        return None if targets is None else targets[torch.as_tensor(dataset.indices)]
    if isinstance(dataset, TensorDataset):
        targets = dataset.tensors[1] if len(dataset.tensors) > 1 else None
    else:  # `targets` in most of torchvision's data sets, `labels` in the others
        targets = getattr(dataset, "targets", getattr(dataset, "labels", None))
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


def inputs_and_labels(batch: Any) -> tuple[Any, Tensor | None]:  # noqa: ANN401 - a user's batch
    """Returns the network's input and the classes: the first two items of a tuple, or the usual keys of a dict.

    Raises:
        ValueError: A dict has no input of a known name.
    """
    if isinstance(batch, dict):
        inputs = next((batch[key] for key in _INPUT_KEYS if key in batch), None)
        if inputs is None:
            raise ValueError(f"batch has keys {', '.join(map(str, batch))}; expected one of {', '.join(_INPUT_KEYS)}")
        return inputs, as_classes(next((batch[key] for key in _LABEL_KEYS if key in batch), None))
    if isinstance(batch, tuple | list):
        return batch[0], as_classes(batch[1]) if len(batch) > 1 else None
    return batch, None


def _seed_everything(seed: int) -> None:
    """Lightning's function of this name would also change the environment of processes to come."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _flatten(loaders: object) -> Iterator[object]:
    """The loaders in Lightning's nested collections, in order."""
    if isinstance(loaders, dict):
        loaders = list(loaders.values())
    if isinstance(loaders, list | tuple):
        for loader in loaders:
            yield from _flatten(loader)
    elif loaders is not None:
        yield loaders


def _behind(loader: DataLoader[Any], split: Split) -> tuple[Dataset[Any], Callable[[list[Any]], Any]]:
    """Returns the samples that a loader draws from, and how it makes a batch of them."""
    if loader.batch_sampler is None:
        raise ValueError(f"the {split} loader has batch_size=None, so its items are no samples; give {split}_data=")
    if isinstance(loader.sampler, SubsetRandomSampler):
        return Subset(loader.dataset, list(loader.sampler.indices)), loader.collate_fn
    return loader.dataset, loader.collate_fn


def _warn_if_random(data: MonitorData, split: Split) -> None:
    """Warns that augmented (or mixed) samples are measured, where loading a batch twice gives two values."""
    first, second = (_first_tensor(replace(data, seed=data.seed + shift).load(0, 4)) for shift in (0, 1))
    if first is not None and second is not None and not torch.equal(first, second):
        rank_zero_warn(f"the {split} data are augmented at random: give the monitor {split}_data= without augmentation")


def _first_tensor(batch: object) -> Tensor | None:
    values = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, tuple | list) else [batch]
    return next((value for value in values if isinstance(value, Tensor)), None)

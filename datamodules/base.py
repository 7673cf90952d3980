"""The common part of all data modules: a seeded subset, a seeded order for every epoch, plain images for the probes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence, Sized
from itertools import cycle, islice
from typing import Any, Literal, Protocol, cast, get_args

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.overrides.distributed import UnrepeatedDistributedSampler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler
from torchvision import transforms

Split = Literal["train", "test"]
Transform = Callable[[Any], Any]


class LabelledImages(Protocol):
    """A map-style data set of raw images that gives its labels away without loading an image.

    Items are (uint8 image in [0, 255] or float image in [0, 1], of shape (C, H, W); label).
    """

    targets: Tensor

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image and label number `index`."""


class ImageTensors:
    """Labelled images that fit into memory.

    Args:
        images: (N, C, H, W), uint8 in [0, 255] or float in [0, 1].
        targets: (N,), int64.

    Raises:
        ValueError: if there are not as many labels as images.
    """

    def __init__(self, images: Tensor, targets: Tensor) -> None:
        if len(images) != len(targets):
            raise ValueError(f"{len(images)} images have {len(targets)} labels: there must be one each")
        self.images, self.targets = images, targets

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.targets[index])


class ImageSubset(Dataset[tuple[Tensor, int]]):
    """Some images of a data set, each transformed when it is read.

    Args:
        source: raw images.
        indices: (n,) int64 positions in `source`.
        transform: raw image to float tensor (C, H, W).

    Attributes:
        targets: (n,) int64, the labels of the chosen images.
    """

    def __init__(self, source: LabelledImages, indices: Tensor, transform: Transform) -> None:
        self.source, self.indices, self.transform = source, indices, transform
        self.targets = source.targets[indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.source[int(self.indices[index])]
        return self.transform(image), label


class EpochSampler(DistributedSampler[int]):
    """A new order of all samples in every epoch that depends on nothing but `seed` and the epoch.

    The global random state is neither read nor changed, so an interrupted run finds the orders of an uninterrupted one.
    Process r of W takes the positions r, r + W, ... of the order, starting again from its front until all have equally
    many: together they take the batches that one process with W times the batch size would.

    Lightning calls `set_epoch`. In a loop that never does, each pass is the next epoch.

    Args:
        dataset: what to order.
        seed: not negative.
        processes: their number, W.
        rank: the number of this one, r.

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

    def __iter__(self) -> Iterator[int]:
        # SeedSequence mixes the two numbers: with their sum, epoch 1 of seed 0 would be epoch 0 of seed 1.
        mixed = int(np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)[0])
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(mixed)).tolist()
        self.epoch += 1
        return islice(cycle(order), self.rank, self.total_size, self.num_replicas)


class ImageDataModule(LightningDataModule, ABC):
    """Labelled images in two splits, `train` and `test`.

    The papers behind netprism compare a network on training images with the same network on test images and hold
    nothing out: `val_dataloader` and `test_dataloader` both serve the test split. So do not choose a checkpoint or an
    option by `val/accuracy` and then report it as the accuracy on new images.

    A subclass sets the attributes below and says how to `read` a split.

    Args:
        root: folder of the files.
        batch_size: images per step and process.
        train_samples: train on a random subset of this many images; None for all. With the same seed, a smaller subset
            is part of a larger one.
        augment: vary the training images at random. Test images and those of `probe_dataset` are never varied.
        num_workers: processes that read images; 0 reads them in the training process, enough for images in memory.
        seed: of the subset and of the order of the training images.
        download: fetch missing files, on one process per node. Nodes that share `root` would all write to it: there,
            fetch the files before the run.

    Attributes:
        num_classes: the labels are 0 to num_classes - 1.
        shape: (C, H, W) of an image.
        mean: per channel, of pixels in [0, 1].
        std: per channel, likewise.

    Raises:
        ValueError: if `batch_size`, `train_samples`, `num_workers` or `seed` is impossible; `train_samples` above the
            number of training images is found out in `setup`.
    """

    num_classes: int
    shape: tuple[int, int, int]
    mean: Sequence[float]
    std: Sequence[float]

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 128,
        train_samples: int | None = None,
        augment: bool = False,
        num_workers: int = 0,
        seed: int = 0,
        download: bool = True,
    ) -> None:
        super().__init__()
        _at_least("batch_size", batch_size, 1)
        _at_least("num_workers", num_workers, 0)
        _at_least("seed", seed, 0)
        if train_samples is not None:
            _at_least("train_samples", train_samples, 1)
        # logger=False: Lightning refuses to log hyper-parameters that a model and its data share with different values.
        self.save_hyperparameters(logger=False)
        self.root, self.batch_size, self.train_samples, self.augment = root, batch_size, train_samples, augment
        self.num_workers, self.seed, self.download = num_workers, seed, download
        self._sources: dict[Split, LabelledImages] = {}

    @abstractmethod
    def read(self, split: Split) -> LabelledImages:
        """Reads the raw images of a split; called once per split and process."""

    def augmentation(self) -> list[Transform]:
        """Random changes of a raw image that keep its class: by default, shifts by up to an eighth of its width."""
        _, height, width = self.shape
        return [transforms.RandomCrop((height, width), padding=width // 8)]

    def setup(self, stage: str) -> None:
        """Reads what the stage needs: both splits for "fit", the test images for all others."""
        for split in get_args(Split) if stage == "fit" else ("test",):
            self._dataset(split)

    def probe_dataset(self, split: Split) -> ImageSubset:
        """The training images in use or the test images, normalised as in evaluation and never augmented.

        Args:
            split: "train" or "test".

        Returns:
            A map-style data set of (float image (C, H, W), label), with all labels in its attribute `targets`.

        Raises:
            ValueError: if `split` is neither.
        """
        if split not in get_args(Split):
            raise ValueError(f"split is {split!r}, not one of {', '.join(map(repr, get_args(Split)))}")
        return self._dataset(split)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """The training images, in an order that depends on nothing but `seed` and the epoch."""
        dataset = self._dataset("train", augment=self.augment)
        return self._loader(dataset, EpochSampler(dataset, self.seed, *self._processes_and_rank()))

    def val_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """The test images, as in :meth:`test_dataloader`."""
        return self.test_dataloader()

    def test_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """The test images; of several processes, number r of W serves the images r, r + W, ...

        Lightning's own sampler repeats images until all processes have equally many, which biases the metrics; this
        one does not. The last process may have a batch less than the first: no `validation_step` may wait for others.
        """
        dataset = self._dataset("test")
        return self._loader(dataset, UnrepeatedDistributedSampler(dataset, *self._processes_and_rank(), shuffle=False))

    def predict_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """The test images, as in :meth:`test_dataloader`."""
        return self.test_dataloader()

    def _source(self, split: Split) -> LabelledImages:
        if split not in self._sources:
            self._sources[split] = self.read(split)
        return self._sources[split]

    def _dataset(self, split: Split, augment: bool = False) -> ImageSubset:
        source = self._source(split)
        normalise = [transforms.ConvertImageDtype(torch.float32), transforms.Normalize(self.mean, self.std)]
        transform = transforms.Compose([*(self.augmentation() if augment else []), *normalise])
        return ImageSubset(source, self._indices(split, len(source)), transform)

    def _indices(self, split: Split, size: int) -> Tensor:
        if split == "test" or self.train_samples is None:
            return torch.arange(size)
        if self.train_samples > size:
            raise ValueError(f"train_samples is {self.train_samples}, but there are {size} training images")
        order = torch.randperm(size, generator=torch.Generator().manual_seed(self.seed))
        return order[: self.train_samples].sort().values

    def _processes_and_rank(self) -> tuple[int, int]:
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)

    def _loader(self, dataset: ImageSubset, sampler: Sampler[int]) -> DataLoader[tuple[Tensor, int]]:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            # Without a generator of its own, every pass over a loader draws a number from the global random state.
            generator=torch.Generator().manual_seed(self.seed),
        )


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} is {value}: it must be at least {least}")

"""The common part of all data modules: a seeded subset, a seeded sequence per epoch, plain images for the monitors."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, cast, get_args

import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.overrides.distributed import UnrepeatedDistributedSampler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from netprism.datamodules.sampling import EpochSampler, ResumableLoader, SeededIndex
from netprism.files import alone

log = logging.getLogger(__name__)
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
        images: Images (N, C, H, W), uint8 in [0, 255] or float in [0, 1].
        targets: Labels (N,), int64.

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

    For an index that is a `SeededIndex`, torch's random state is the one of its seed while the image is read and
    transformed, and put back after: a random transform gives the same image in one process or many, with any number of
    workers.

    Args:
        source: Raw images.
        indices: Positions in `source`, int64 (n,).
        transform: Function from a raw image to a float tensor (C, H, W).

    Attributes:
        targets: Labels of the chosen images, int64 (n,).
    """

    def __init__(self, source: LabelledImages, indices: Tensor, transform: Transform) -> None:
        self.source, self.indices, self.transform = source, indices, transform
        self.targets = source.targets[indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not isinstance(index, SeededIndex):
            return self._read(index)
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(index.seed)
            return self._read(index)

    def _read(self, index: int) -> tuple[Tensor, int]:
        image, label = self.source[int(self.indices[index])]
        return self.transform(image), label


class ImageDataModule(LightningDataModule, ABC):
    """Labelled images in two splits, `train` and `test`.

    The papers behind netprism compare a network on training images with the same network on test images and hold
    nothing out: `val_dataloader` and `test_dataloader` both serve the test split. So do not choose a checkpoint or an
    option by `val/accuracy` and then report it as the accuracy on new images.

    A subclass sets the attributes below and says how to `read` a split.

    Args:
        root: Folder of the files.
        batch_size: Number of images per step and rank.
        train_samples: Train on a random subset of this many images; None for all. With the same seed, a smaller subset
            is part of a larger one.
        augment: Vary the training images at random, in a way that depends on `seed`, epoch and image alone. Test images
            and those of `monitor_dataset` are never varied.
        num_workers: Number of processes that read images; 0 reads them in the training process, enough for images in
            memory.
        seed: Seed of the subset and of the sequence of the training images.
        download: Fetch missing files, on one process per node; of nodes that share `root`, one fetches them and the
            others wait, if the file system has locks.

    Attributes:
        num_classes: Number of classes; labels are 0 to num_classes - 1.
        classes: Names of the classes, in the order of their labels, for pictures; empty where they are numbers.
        shape: Shape (C, H, W) of an image.
        mean: Mean of each channel, of pixels in [0, 1].
        std: Standard deviation of each channel, of pixels in [0, 1].

    Raises:
        ValueError: if `batch_size`, `train_samples`, `num_workers` or `seed` is impossible; `train_samples` above the
            number of training images is found out in `setup`.
    """

    num_classes: int
    classes: Sequence[str] = ()
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
        """Random changes of a raw image that keep its class: by default, shifts by up to an eighth of its width.

        They draw from torch's global random state, which is seeded for each image.
        """
        _, height, width = self.shape
        return [transforms.RandomCrop((height, width), padding=width // 8)]

    def one_node(self) -> AbstractContextManager[None]:
        """A block in which one node at a time is, of those that share the folder: to download."""
        waiting = partial(log.warning, f"{type(self).__name__}: another process downloads into {self.root}, waiting")
        return alone(Path(self.root).expanduser() / ".download.lock", waiting)

    def varied(self, source: LabelledImages) -> LabelledImages:
        """The images to vary at random: those of `read`, unless a subclass varies how a file is read."""
        return source

    def sequence(self, source: LabelledImages) -> Tensor:
        """A permutation of the training images, by `seed`, whose first ones are the subset of `train_samples`."""
        return torch.randperm(len(source), generator=torch.Generator().manual_seed(self.seed))

    def setup(self, stage: str) -> None:
        """Reads what the stage needs: both splits for "fit", the test images for all others."""
        for split in get_args(Split) if stage == "fit" else ("test",):
            self._dataset(split)

    def monitor_dataset(self, split: Split) -> Dataset[Any]:
        """The training images in use or the test images, normalised as in evaluation and never augmented.

        Args:
            split: "train" or "test".

        Returns:
            A map-style data set of (float image (C, H, W), label), with all labels in its attribute `targets`. Where
            objects are known, a mask (H, W), bool, is the third item.

        Raises:
            ValueError: if `split` is neither.
        """
        check_split(split)
        return self._dataset(split)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """The training images, in a sequence that depends on nothing but `seed` and the epoch."""
        dataset = self._dataset("train", augment=self.augment)
        sampler = EpochSampler(dataset, self.seed, *self._processes_and_rank())
        return ResumableLoader(dataset, sampler, self.batch_size, **self._loading())

    def val_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """The test images, as in :meth:`test_dataloader`."""
        return self.test_dataloader()

    def test_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """The test images; of several processes, number r of W serves the images r, r + W, ...

        Lightning's own sampler repeats images until all processes have equally many, which biases the metrics; this
        one does not. The last process may have a batch less than the first: no `validation_step` may wait for others.
        """
        dataset, (processes, rank) = self._dataset("test"), self._processes_and_rank()
        if len(dataset) < processes:
            raise ValueError(
                f"there are {len(dataset)} test images; expected at least one for each of {processes} processes"
            )
        sampler = UnrepeatedDistributedSampler(dataset, processes, rank, shuffle=False)
        # By keyword: for predictions, Lightning makes the loader again from its arguments, with another sampler.
        return DataLoader(dataset, batch_size=self.batch_size, sampler=sampler, **self._loading())

    def predict_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """The test images, as in :meth:`test_dataloader`."""
        return self.test_dataloader()

    def _source(self, split: Split) -> LabelledImages:
        if split not in self._sources:
            self._sources[split] = self.read(split)
        return self._sources[split]

    def _dataset(self, split: Split, augment: bool = False) -> ImageSubset:
        source = self._source(split)
        changed = self.varied(source) if augment else source
        transform = self._transform(self.augmentation() if augment else [])
        return ImageSubset(changed, self._indices(split, source), transform)

    def _transform(self, augmentation: list[Transform]) -> Transform:
        normalise = [transforms.ConvertImageDtype(torch.float32), transforms.Normalize(self.mean, self.std)]
        return cast(Transform, transforms.Compose([*augmentation, *normalise]))

    def _indices(self, split: Split, source: LabelledImages) -> Tensor:
        size = len(source)
        if split == "test" or self.train_samples is None:
            return torch.arange(size)
        if self.train_samples > size:
            raise ValueError(
                f"train_samples is {self.train_samples}; expected at most {size}, the number of training images"
            )
        return self.sequence(source)[: self.train_samples].sort().values

    def _processes_and_rank(self) -> tuple[int, int]:
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)

    def _loading(self) -> dict[str, Any]:
        return {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            # Without a generator of its own, every pass over a loader draws a number from the global random state.
            "generator": torch.Generator().manual_seed(self.seed),
        }


def check_split(split: str) -> None:
    """Refuses what is no split.

    Raises:
        ValueError: Names those that there are.
    """
    if split not in get_args(Split):
        raise ValueError(f"split is {split!r}; expected {' or '.join(map(repr, get_args(Split)))}")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} is {value}; expected a number >= {least}")

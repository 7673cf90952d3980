"""The common part of the data modules whose images are files: classes, geometry, augmentation, loading."""

from __future__ import annotations

import os
import unicodedata
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2
from tqdm import tqdm

from netprism.datamodules.base import ImageDataModule, LabelledImages, Split, Transform, check_split
from netprism.datamodules.image_files import (
    CachedImages,
    CachedSubset,
    Crop,
    Fit,
    Geometry,
    ImageFiles,
    ImageTable,
    UnreadableImageError,
    open_image,
)

MOST_WORKERS = 8  # more of them seldom help a training on one device, and each takes memory
MOST_NAMED = 5  # broken files in an error


class ImageFilesDataModule(ImageDataModule):
    """Labelled images in files, brought to one size.

    A subclass says which classes there are and which files, `all_classes` and `table`. Images are decoded by workers,
    JPEGs at the least scale that is enough. Those of the monitors are decoded once, by threads, and kept as uint8; they
    come with the masks of their objects where these are known.

    Args:
        root: Folder of the files.
        image_size: Height and width of an image.
        grayscale: One channel, the luma of ITU-R 601, instead of three.
        classes: Names of classes to use, in this order; a number n for the first n; None for all.
        class_seed: Draw `classes` at random, in a number, by this seed; None for the first ones.
        crop: "image" for the whole image, "box" for the box of its object.
        margin: Of `crop="box"`: width and height of what is cut out, as multiples of those of the box. 1.5 leaves
            background to compare the object with.
        fit: "crop" cuts the largest square out of the middle, "stretch" takes all; None: "crop" for whole images,
            "stretch" for boxes, as the papers do.
        min_area: Of `augment`: the least part of the area that is cut out at random.
        rand_augment: Of `augment`: two operations of RandAugment as well.
        mean: Mean of each channel, of pixels in [0, 1]; None for ImageNet's.
        std: Standard deviation of each channel; None for ImageNet's.
        num_workers: Number of processes that read images; None for a core each, at most 8.
        cache_mib: Memory for the monitors' images, in MiB per process: 2000 of 224 x 224 take 290.
        check_files: Decode all files before the training, on one process per node, and name those that are broken.
        kwargs: Options of :class:`ImageDataModule`. `augment` cuts out a random part and mirrors every other image;
            `train_samples` takes equally many of each class as far as possible.

    Attributes:
        classes: Names of the classes in use, in the order of their labels.

    Raises:
        ValueError: An option is impossible.
        FileNotFoundError: From the first use: something is missing; says what to put where.
        UnreadableImageError: From reading: a file is broken.
    """

    home = ""  # where the files come from, for errors
    folder = ""  # of the files, below `root`

    def __init__(
        self,
        root: str = "data",
        image_size: int = 224,
        grayscale: bool = False,
        classes: int | Sequence[str] | None = None,
        class_seed: int | None = None,
        crop: Crop = "image",
        margin: float = 1.0,
        fit: Fit | None = None,
        min_area: float = 0.25,
        rand_augment: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        num_workers: int | None = None,
        cache_mib: int = 1024,
        check_files: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, num_workers=num_workers or 0, **kwargs)
        for name, value, least in (("image_size", image_size, 1), ("cache_mib", cache_mib, 0)):
            if value < least:
                raise ValueError(f"{name} is {value}; expected a number >= {least}")
        if isinstance(classes, int) and classes < 2:
            raise ValueError(f"classes is {classes}; expected a number >= 2, names, or nothing")
        channels = 1 if grayscale else 3
        self.shape = (channels, image_size, image_size)
        self.mean = mean or ((0.449,) if grayscale else (0.485, 0.456, 0.406))
        self.std = std or ((0.226,) if grayscale else (0.229, 0.224, 0.225))
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) != channels:
                raise ValueError(f"{name} is {list(numbers)}; expected {channels} numbers, one per channel")
        self.geometry = Geometry(
            (image_size, image_size), crop, margin, fit or ("crop" if crop == "image" else "stretch")
        )
        self.with_part = Geometry((image_size, image_size), crop, margin, min_area=min_area)
        self.grayscale, self.rand_augment, self.cache_mib, self.check_files = (
            grayscale,
            rand_augment,
            cache_mib,
            check_files,
        )
        self.wanted, self.class_seed, self._given_workers = classes, class_seed, num_workers
        self._chosen: list[int] | None = None
        self._cached: dict[Split, CachedImages] = {}

    @abstractmethod
    def all_classes(self) -> Sequence[str]:
        """Names of all classes of the data set.

        Raises:
            FileNotFoundError: They cannot be found; says what is missing.
        """

    @abstractmethod
    def table(self, split: Split) -> ImageTable:
        """The files of a split; labels are positions in `all_classes`."""

    @property
    def classes(self) -> tuple[str, ...]:  # type: ignore[override]  # known when the files are looked at
        """Names of the classes in use."""
        names = self.all_classes()
        return tuple(names[i] for i in self._positions())

    @property
    def num_classes(self) -> int:  # type: ignore[override]  # known when the files are looked at
        """Number of classes in use."""
        return len(self._positions())

    @property
    def data_folder(self) -> Path:
        """Folder of the files."""
        return Path(self.root).expanduser() / self.folder

    def existing(self, name: str) -> Path:
        """Returns the file or folder of this name below `data_folder`.

        Raises:
            FileNotFoundError: It is missing; says where the files come from and where they belong.
        """
        path = self.data_folder / name
        if not path.exists():
            raise FileNotFoundError(
                f"{type(self).__name__}: {path} is missing; expected the files of {self.home} in {self.data_folder}"
            )
        return path

    @contextmanager
    def downloading(self) -> Iterator[None]:
        """Downloads on one node at a time, of those that share the folder, and makes one line of an error.

        Raises:
            FileNotFoundError: Says what went wrong, and where the files belong.
        """
        try:
            with self.one_node():
                yield
        except Exception as error:
            cause = " ".join(f"{type(error).__name__}: {error}".split())
            raise FileNotFoundError(
                f"{type(self).__name__}: no download succeeded ({cause}); copy the files of {self.home} to "
                f"{self.data_folder}"
            ) from error

    def prepare_data(self) -> None:
        """Decodes all files, if `check_files` is set.

        Raises:
            UnreadableImageError: Some are broken; names the first ones.
        """
        if not self.check_files:
            return
        paths = [path for split in get_args(Split) for path in self._source(split).table.paths]
        with ThreadPoolExecutor(self._workers()) as pool:
            found = tqdm(pool.map(_fault, paths), "checks files", len(paths), leave=False)
            faults = [fault for fault in found if fault]
        if faults:
            shown = ", ".join(faults[:MOST_NAMED]) + (" ..." if len(faults) > MOST_NAMED else "")
            raise UnreadableImageError(f"{len(faults)} of {len(paths)} files are broken: {shown}")

    def read(self, split: Split) -> ImageFiles:
        """Lists the files of a split."""
        table, names = self.table(split), self.all_classes()
        labels = torch.full((len(names),), -1)
        positions = self._positions()
        labels[torch.tensor(positions)] = torch.arange(len(positions))
        targets = labels[table.targets.long()]  # of no objects the tensor is one of floats
        kept = (targets >= 0).nonzero().flatten()
        counts = targets[kept].bincount(minlength=len(positions))
        if (counts == 0).any():
            name = names[positions[int(counts.argmin())]]
            raise FileNotFoundError(f"{type(self).__name__}: class {name!r} has no {split} images in {self.root}")
        return self._files(table.take(kept, targets[kept]))

    def monitor_dataset(self, split: Split) -> Dataset[Any]:
        """The images as in evaluation, kept in memory once read; with the masks of their objects where known."""
        check_split(split)
        if split not in self._cached:
            self._cached[split] = CachedImages(self._source(split), self.cache_mib << 20, self._workers())
        source = self._cached[split]
        return CachedSubset(source, self._indices(split, self._source(split)), self._transform([]))

    def varied(self, source: LabelledImages) -> LabelledImages:
        """A random part of each file."""
        assert isinstance(source, ImageFiles)
        return ImageFiles(source.table, self.with_part, source.grayscale, source.as_displayed)

    def augmentation(self) -> list[Transform]:
        """Mirror images, and RandAugment where it is asked for."""
        return [v2.RandomHorizontalFlip(), *([v2.RandAugment()] if self.rand_augment else [])]

    def sequence(self, source: LabelledImages) -> Tensor:
        """One image of each class, then another one of each, and so on, at random."""
        order = super().sequence(source)
        targets = source.targets[order]
        turn = torch.empty_like(order)
        for label in targets.unique():
            of_class = targets == label
            turn[of_class] = torch.arange(int(of_class.sum()))
        return order[turn.argsort(stable=True)]

    def _files(self, table: ImageTable) -> ImageFiles:
        return ImageFiles(table, self.geometry, self.grayscale)

    def _source(self, split: Split) -> ImageFiles:
        source = super()._source(split)
        assert isinstance(source, ImageFiles)
        return source

    def _positions(self) -> list[int]:
        """Positions of the classes in use among all."""
        if self._chosen is None:
            self._chosen = self._choose(self.all_classes())
        return self._chosen

    def _choose(self, names: Sequence[str]) -> list[int]:
        if self.wanted is None:
            return list(range(len(names)))
        if isinstance(self.wanted, int):
            if self.wanted > len(names):
                raise ValueError(f"classes is {self.wanted}; expected at most {len(names)}, the number of classes")
            if self.class_seed is None:
                return list(range(self.wanted))
            generator = torch.Generator().manual_seed(self.class_seed)
            return sorted(torch.randperm(len(names), generator=generator)[: self.wanted].tolist())
        known = {composed(name): i for i, name in enumerate(names)}
        for name in self.wanted:
            if composed(name) not in known:
                raise ValueError(f"classes has {name!r}; expected names of {some(names)}")
        if len(set(self.wanted)) < max(len(self.wanted), 2):
            raise ValueError(f"classes is {list(self.wanted)}; expected two or more different names")
        return [known[composed(name)] for name in self.wanted]

    def _workers(self) -> int:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        each = max(cores // (self.trainer.num_devices if self.trainer else 1), 1)
        return min(each, MOST_WORKERS) if self._given_workers is None else max(self._given_workers, 1)

    def _loading(self) -> dict[str, Any]:
        self.num_workers = self._workers() if self._given_workers is None else self._given_workers
        return super()._loading()


def composed(name: str) -> str:
    """Returns a name with composed letters: "é" is one or two of them, by file system."""
    return unicodedata.normalize("NFC", name)


def some(names: Sequence[str], most: int = 20) -> str:
    """Returns the first names, as one text."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _fault(path: Path) -> str:
    try:
        open_image(path)
    except UnreadableImageError as error:
        return str(error)
    return ""

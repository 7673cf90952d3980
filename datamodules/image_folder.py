"""A user's own folder of images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from netprism.datamodules.base import Split
from netprism.datamodules.files import ImageFilesDataModule, composed, some
from netprism.datamodules.image_files import SUFFIXES, ImageFiles, ImageTable, Segment, SegmentFile, read_boxes

TEST_FOLDERS = ("val", "test")


class ImageFolder(ImageFilesDataModule):
    """Your own images, a folder per class.

    Either `root`/train/<class>/... and `root`/val/<class>/... (or test), or one folder per class in `root` itself: then
    `val_fraction` of each class is held out, by `seed`. Files may lie in folders of a class's folder; hidden ones do
    not count. Labels are the classes in the order of their names.

    Images are turned as their EXIF orientation says, as viewers show them; so boxes and masks are of the turned image.

    Args:
        root: Folder of the images.
        val_fraction: Fraction of each class that is held out, where there is no `root`/train.
        masks: Folder, in `root` or anywhere, with a PNG for each image or for some: at the same path as the image below
            `root`, of the same size; what is not black is the object.
        boxes: CSV, in `root` or anywhere, with the columns image (its path below `root`), left, top, right, bottom.
        kwargs: Options of :class:`ImageFilesDataModule`.

    Raises:
        ValueError: `val_fraction` is not between 0 and 1; a table of boxes is wrong.
        FileNotFoundError: A split, a class, a mask folder or a table is missing.
    """

    def __init__(
        self,
        root: str = "data/images",
        val_fraction: float = 0.2,
        masks: str | None = None,
        boxes: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        if not 0 < val_fraction < 1:
            raise ValueError(f"val_fraction is {val_fraction}; expected more than 0, less than 1")
        self.val_fraction, self.masks, self.boxes = val_fraction, masks, boxes
        self._boxes: dict[str, list[float]] | None = None

    def all_classes(self) -> Sequence[str]:
        """Names of the folders of the training images."""
        return tuple(self._class_folders("train"))

    def table(self, split: Split) -> ImageTable:
        """The images of all classes, sorted by class and path."""
        names, folders = self.all_classes(), self._class_folders(split)
        for name in folders:
            if name not in names:
                raise ValueError(
                    f"{folders[name]} is no class of {self._split_folder('train')}, which has {some(names)}"
                )
        for name in names:
            if name not in folders and name in self.classes:
                where = self._split_folder(split)
                raise FileNotFoundError(f"{where / name} is missing; expected a folder per class of {len(names)}")
        paths: list[Path] = []
        targets: list[int] = []
        for label, name in enumerate(names):
            found = [] if name not in folders else self._of_class(folders[name], split, label)
            paths += found
            targets += [label] * len(found)
        if not self._has_splits and split == "train":
            percent = f"{100 * self.val_fraction:g} %"
            rank_zero_info(f"ImageFolder: {self.root} has no train folder: {percent} of each class are held out")
        return ImageTable(paths, torch.tensor(targets), self._boxes_of(paths), self._segments_of(paths))

    def _files(self, table: ImageTable) -> ImageFiles:
        return ImageFiles(table, self.geometry, self.grayscale, as_displayed=True)

    @property
    def _root(self) -> Path:
        return Path(self.root).expanduser()

    @property
    def _has_splits(self) -> bool:
        return (self._root / "train").is_dir() or any((self._root / name).is_dir() for name in TEST_FOLDERS)

    def _split_folder(self, split: Split) -> Path:
        """Folder of the classes of a split.

        Raises:
            FileNotFoundError: It is missing.
        """
        if not self._root.is_dir():
            raise FileNotFoundError(
                f"root {self._root} is missing; expected a folder with a folder of images per class"
            )
        if not self._has_splits:
            return self._root
        candidates = ["train"] if split == "train" else TEST_FOLDERS
        for name in candidates:
            if (self._root / name).is_dir():
                return self._root / name
        missing, other = self._root / candidates[0], "val" if split == "train" else "train"
        raise FileNotFoundError(f"{missing} is missing, though there is a folder for {other}; expected both or none")

    def _class_folders(self, split: Split) -> dict[str, Path]:
        folder = self._split_folder(split)
        masks = self._masks_folder()
        found = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        folders = {composed(entry.name): entry for entry in found if entry.resolve() != masks}
        if len(folders) < 2:
            raise FileNotFoundError(f"{folder} has {len(folders)} folders; expected two or more, one per class")
        return folders

    def _of_class(self, folder: Path, split: Split, label: int) -> list[Path]:
        """Images of a class; in a folder without splits, the seeded part that is of this one."""
        found = find_images(folder)
        if not found:
            raise FileNotFoundError(f"{folder} holds no images; expected files of {', '.join(SUFFIXES)}")
        if self._has_splits:
            return found
        held_out = max(round(self.val_fraction * len(found)), 1)
        if held_out >= len(found):
            raise ValueError(f"{folder} has {len(found)} images; expected some to train on beside {held_out} held out")
        mixed = np.random.SeedSequence([self.seed, label]).generate_state(1)
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(int(mixed[0])))
        chosen = order[held_out:] if split == "train" else order[:held_out]
        return [found[i] for i in chosen.sort().values.tolist()]

    def _below_root(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()

    def _boxes_of(self, paths: Sequence[Path]) -> Tensor | None:
        if self.boxes is None:
            return None
        if self._boxes is None:
            table = self._root / self.boxes
            self._boxes = read_boxes(table)
            unknown = next((name for name in self._boxes if not (self._root / name).is_file()), None)
            if unknown is not None:
                raise FileNotFoundError(f"{table} names {unknown}, but {self._root / unknown} is missing")
        rows = [self._boxes.get(self._below_root(path), [torch.nan] * 4) for path in paths]
        return torch.tensor(rows, dtype=torch.float64)

    def _masks_folder(self) -> Path | None:
        if self.masks is None:
            return None
        folder = self._root / self.masks
        if not folder.is_dir():
            raise FileNotFoundError(f"masks {folder} is missing; expected a folder of PNGs")
        return folder.resolve()

    def _segments_of(self, paths: Sequence[Path]) -> list[Segment | None] | None:
        folder = self._masks_folder()
        if folder is None:
            return None
        files = [(folder / self._below_root(path)).with_suffix(".png") for path in paths]
        found: list[Segment | None] = [SegmentFile(f, as_displayed=True) if f.is_file() else None for f in files]
        if not any(found):
            raise FileNotFoundError(f"{folder} has no mask of any image; expected {files[0]} for {paths[0]}")
        return found


def find_images(folder: Path) -> list[Path]:
    """Returns the images of a folder and of those in it, sorted by path; hidden files and folders do not count."""
    found: list[Path] = []
    for base, inner, files in os.walk(folder, followlinks=True):
        inner[:] = [name for name in inner if not name.startswith(".")]
        found += [Path(base, name) for name in files if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
    return sorted(found)

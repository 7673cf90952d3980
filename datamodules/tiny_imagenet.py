"""Tiny ImageNet."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from netprism.datamodules.annotations import as_boxes, reading, rows_of
from netprism.datamodules.base import Split
from netprism.datamodules.files import ImageFilesDataModule
from netprism.datamodules.image_files import ImageTable


class TinyImageNet(ImageFilesDataModule):
    """100 000 images of 200 classes to train on, the 10 000 for validation to test, 64 x 64, with a box each.

    The files are in `root`/tiny-imagenet-200, unpacked; they are not downloaded.

    Args:
        root: Folder that has tiny-imagenet-200.
        image_size: Height and width of an image.
        kwargs: Options of :class:`ImageFilesDataModule`.

    Source: Le and Yang 2015, http://cs231n.stanford.edu/tiny-imagenet-200.zip.
    """

    home = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    folder = "tiny-imagenet-200"

    def __init__(self, root: str = "data", image_size: int = 64, **kwargs: Any) -> None:
        super().__init__(root, image_size, **kwargs)

    def all_classes(self) -> Sequence[str]:
        """The first word of each class, with its WordNet number where two have the same."""
        words = {row[0]: " ".join(row[1:]).split(",")[0] for row in rows_of(self.existing("words.txt"))}
        names = [words.get(number, number) for number in self._numbers]
        pairs = zip(names, self._numbers, strict=True)
        return [f"{name} {number}" if names.count(name) > 1 else name for name, number in pairs]

    def table(self, split: Split) -> ImageTable:
        """The images and boxes of a split."""
        paths: list[Path] = []
        targets: list[int] = []
        boxes: list[list[float]] = []
        labels = {number: label for label, number in enumerate(self._numbers)}
        lists = [self.existing(f"train/{number}/{number}_boxes.txt") for number in self._numbers]
        for file in lists if split == "train" else [self.existing("val/val_annotations.txt")]:
            with reading(file):
                for name, *others in rows_of(file):
                    *number, left, top, right, bottom = others
                    targets.append(labels[number[0] if number else name.partition("_")[0]])
                    boxes.append([float(left), float(top), float(right) + 1, float(bottom) + 1])
                    paths.append(file.parent / "images" / name)
        return ImageTable(paths, torch.tensor(targets), as_boxes(boxes))

    @cached_property
    def _numbers(self) -> list[str]:
        """WordNet's numbers of the classes, in the order of their labels."""
        return sorted(row[0] for row in rows_of(self.existing("wnids.txt")))

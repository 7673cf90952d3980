"""CelebA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torchvision import datasets

from netprism.datamodules.annotations import reading, rows_of
from netprism.datamodules.base import Split
from netprism.datamodules.files import ImageFilesDataModule
from netprism.datamodules.image_files import ImageTable

PARTITIONS = {"train": "0", "test": "2"}  # of list_eval_partition.txt; 1 is for validation


class CelebA(ImageFilesDataModule):
    """162 770 aligned faces to train on, 19 962 to test, 178 x 218, by one of 40 attributes: has it, or has it not.

    The files are in `root`/celeba; torchvision downloads them, with gdown. The boxes of the data set are of images that
    are not aligned, so they are not used.

    Args:
        root: Folder that has celeba.
        attribute: Name out of list_attr_celeba.txt.
        image_size: Height and width of an image.
        kwargs: Options of :class:`ImageFilesDataModule`.

    Source: Liu et al. 2015, http://mmlab.ie.cuhk.edu.hk/projects/CelebA.html.
    """

    home = "http://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
    folder = "celeba"

    def __init__(self, root: str = "data", attribute: str = "Smiling", image_size: int = 64, **kwargs: Any) -> None:
        super().__init__(root, image_size, **kwargs)
        self.attribute = attribute

    def prepare_data(self) -> None:
        """Downloads the files, if `download` is set and they are not there."""
        if self.download:
            with self.downloading():
                if not (self.data_folder / "img_align_celeba").is_dir():
                    datasets.CelebA(self.root, download=True)
        super().prepare_data()

    def all_classes(self) -> Sequence[str]:
        """Without and with the attribute."""
        return [f"not {self.attribute}", self.attribute]

    def table(self, split: Split) -> ImageTable:
        """The images of a split."""
        file, partition = self.existing("list_attr_celeba.txt"), self.existing("list_eval_partition.txt")
        (count, *_), names, *rows = rows_of(file)
        if len(rows) != int(count) or len(rows[-1]) != 1 + len(names):
            raise OSError(f"{file} has {len(rows)} lines of images; expected {count} whole ones; copy it anew")
        if self.attribute not in names:
            raise ValueError(f"attribute is {self.attribute!r}; expected one of {', '.join(names)}")
        column = 1 + names.index(self.attribute)
        with reading(partition):
            kept = {name for name, number in rows_of(partition) if number == PARTITIONS[split]}
        with reading(file):
            labels = {row[0]: int(int(row[column]) > 0) for row in rows if row[0] in kept}
        images = self.existing("img_align_celeba")
        return ImageTable([images / name for name in labels], torch.tensor(list(labels.values())))

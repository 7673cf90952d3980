"""Stanford Dogs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from scipy.io import loadmat

from netprism.datamodules.annotations import as_boxes, reading, voc_objects, without_number
from netprism.datamodules.base import Split
from netprism.datamodules.files import ImageFilesDataModule
from netprism.datamodules.image_files import Crop, ImageTable


class StanfordDogs(ImageFilesDataModule):
    """12 000 dogs of 120 breeds to train on, 8580 to test, with boxes.

    The files are in `root`/stanford_dogs: Images/, Annotation/ and the three lists (lists.tar), unpacked; they are not
    downloaded. Of an image of several dogs the first box counts.

    Args:
        root: Folder that has stanford_dogs.
        crop: "box" as in the papers, or "image".
        kwargs: Options of :class:`ImageFilesDataModule`.

    Source: Khosla et al. 2011, http://vision.stanford.edu/aditya86/ImageNetDogs.
    """

    home = "http://vision.stanford.edu/aditya86/ImageNetDogs"
    folder = "stanford_dogs"

    def __init__(self, root: str = "data", crop: Crop = "box", **kwargs: Any) -> None:
        super().__init__(root, crop=crop, **kwargs)

    def all_classes(self) -> Sequence[str]:
        """The breeds, by label."""
        return [without_number(name) for name in self._folders()]

    def table(self, split: Split) -> ImageTable:
        """The images and boxes of a split."""
        names, labels = _listed(self._list(split))
        boxes = []
        for name in names:
            file = self.existing("Annotation/" + name.removesuffix(".jpg"))
            objects = voc_objects(file)
            if not objects:
                raise OSError(f"{file} has no object; expected one or more")
            boxes.append(objects[0].box)
        images = self.existing("Images")
        return ImageTable([images / name for name in names], torch.tensor(labels), as_boxes(boxes))

    def _folders(self) -> list[str]:
        """Folders of the breeds, by label."""
        names, labels = _listed(self._list("train"))
        found = {label: name.partition("/")[0] for name, label in zip(names, labels, strict=True)}
        return [found[label] for label in sorted(found)]

    def _list(self, split: Split) -> Path:
        name = f"{split}_list.mat"
        inner = self.data_folder / "lists" / name
        return inner if inner.is_file() else self.existing(name)


@cache
def _listed(path: Path) -> tuple[list[str], list[int]]:
    """The names of the images below Images/, and their labels from 0."""
    with reading(path):
        content = loadmat(path)
        names = [str(cell[0]) for cell in content["file_list"][:, 0]]
        return names, [int(label) - 1 for label in content["labels"][:, 0]]

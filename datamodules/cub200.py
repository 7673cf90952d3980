"""Caltech-UCSD Birds-200-2011."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from netprism.datamodules.annotations import as_boxes, reading, rows_of, without_number
from netprism.datamodules.base import Split
from netprism.datamodules.files import ImageFilesDataModule
from netprism.datamodules.image_files import Crop, ImageTable, SegmentFile

PARTS = 15


class CUB200(ImageFilesDataModule):
    """5994 birds of 200 species to train on, 5794 to test, with boxes, parts, and segments where they are there.

    The files are in `root`/CUB_200_2011, unpacked; the folder segmentations/, an archive of its own, in it or beside
    it. They are not downloaded. Several people marked each segment: what is not black, any of them thought the bird.

    Args:
        root: Folder that has CUB_200_2011.
        crop: "box" as in the papers, or "image".
        kwargs: Options of :class:`ImageFilesDataModule`.

    Source: Wah et al. 2011, https://www.vision.caltech.edu/datasets/cub_200_2011.
    """

    home = "https://www.vision.caltech.edu/datasets/cub_200_2011"
    folder = "CUB_200_2011"

    def __init__(self, root: str = "data", crop: Crop = "box", **kwargs: Any) -> None:
        super().__init__(root, crop=crop, **kwargs)

    def all_classes(self) -> Sequence[str]:
        """The species, by label."""
        return [without_number(row[1]) for row in rows_of(self.existing("classes.txt"))]

    def table(self, split: Split) -> ImageTable:
        """The images, boxes and segments of a split."""
        numbers = self._numbers(split)
        names = [name for name, *_ in self._lines("images.txt", numbers)]
        corners = [tuple(map(float, row)) for row in self._lines("bounding_boxes.txt", numbers, 4)]
        targets = torch.tensor([int(label) - 1 for label, *_ in self._lines("image_class_labels.txt", numbers)])
        boxes = as_boxes([(x, y, x + width, y + height) for x, y, width, height in corners])
        folder = self.existing("images")
        paths = [folder / name for name in names]
        places = (place / "segmentations" for place in (self.data_folder, self.data_folder.parent))
        masks = next((place for place in places if place.is_dir()), None)
        if masks is None:
            return ImageTable(paths, targets, boxes)
        return ImageTable(paths, targets, boxes, [SegmentFile((masks / name).with_suffix(".png")) for name in names])

    def parts(self, split: Split) -> Tensor:
        """Returns the parts of all birds of a split, (N, 15, 3): x and y in pixels of the file, and 1 where visible."""
        file = self.existing("parts/part_locs.txt")
        positions = {number: i for i, number in enumerate(self._numbers(split))}
        found = torch.zeros(len(positions), PARTS, 3)
        with reading(file):
            for number, part, *values in rows_of(file):
                if number in positions:
                    found[positions[number], int(part) - 1] = torch.tensor([float(value) for value in values])
        return found

    def _numbers(self, split: Split) -> list[str]:
        """Numbers of the images of a split."""
        wanted = "1" if split == "train" else "0"
        return [number for number, *flag in rows_of(self.existing("train_test_split.txt")) if flag == [wanted]]

    def _lines(self, name: str, numbers: Sequence[str], words: int = 1) -> list[list[str]]:
        """The words behind the number of each image, in a file that has a line per image.

        Raises:
            OSError: An image has no line with so many words.
        """
        file = self.existing(name)
        lines = {number: others for number, *others in rows_of(file)}
        for number in numbers:
            if len(lines.get(number, ())) != words:
                raise OSError(f"{file} has no line of image {number} with {words + 1} words; copy it anew")
        return [lines[number] for number in numbers]

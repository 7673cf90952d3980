"""Pascal VOC 2012."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torchvision import datasets

from netprism.datamodules.annotations import as_boxes, rows_of, voc_objects
from netprism.datamodules.base import Split
from netprism.datamodules.files import ImageFilesDataModule
from netprism.datamodules.image_files import Crop, ImageTable, Segment, SegmentFile

CLASSES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor"
).split()


class VOC2012(ImageFilesDataModule):
    """Objects of 20 classes: one image per box of the 5717 training and 5823 validation images, which are the test.

    The files are in `root`/VOCdevkit/VOC2012; torchvision downloads them. Segments are there for the images in
    SegmentationObject/; the masks of others are their boxes.

    Args:
        root: Folder that has VOCdevkit.
        crop: "box" as in the papers, or "image".
        difficult: Take objects that are marked as difficult, too.
        min_side: Leave out boxes with a side of fewer pixels.
        kwargs: Options of :class:`ImageFilesDataModule`.

    Source: Everingham et al. 2012, http://host.robots.ox.ac.uk/pascal/VOC/voc2012.
    """

    home = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012"
    folder = "VOCdevkit/VOC2012"

    def __init__(
        self, root: str = "data", crop: Crop = "box", difficult: bool = False, min_side: int = 32, **kwargs: Any
    ) -> None:
        super().__init__(root, crop=crop, **kwargs)
        self.difficult, self.min_side = difficult, min_side

    def prepare_data(self) -> None:
        """Downloads the files, if `download` is set and they are not there."""
        if self.download:
            with self.downloading():
                if not self.data_folder.is_dir():
                    datasets.VOCDetection(self.root, year="2012", download=True)
        super().prepare_data()

    def all_classes(self) -> Sequence[str]:
        """The classes, by name."""
        return CLASSES

    def table(self, split: Split) -> ImageTable:
        """The objects of a split."""
        listed = self.existing(f"ImageSets/Main/{'train' if split == 'train' else 'val'}.txt")
        paths, targets, boxes = [], [], []
        segments: list[Segment | None] = []
        for name, *_ in rows_of(listed):
            segmented = self.data_folder / "SegmentationObject" / f"{name}.png"
            has_segments = segmented.is_file()
            file = self.existing(f"Annotations/{name}.xml")
            for number, each in enumerate(voc_objects(file), 1):
                if each.name not in CLASSES:
                    raise OSError(f"{file} has an object of class {each.name!r}; expected {', '.join(CLASSES)}")
                left, top, right, bottom = each.box
                if min(right - left, bottom - top) < self.min_side or (each.is_difficult and not self.difficult):
                    continue
                paths.append(self.data_folder / "JPEGImages" / f"{name}.jpg")
                targets.append(CLASSES.index(each.name))
                boxes.append(each.box)
                segments.append(SegmentFile(segmented, value=number) if has_segments else None)
        return ImageTable(paths, torch.tensor(targets), as_boxes(boxes), segments if any(segments) else None)

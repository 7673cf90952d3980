"""MS COCO 2014."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from netprism.datamodules.annotations import CocoSegment, as_boxes, reading
from netprism.datamodules.base import Split
from netprism.datamodules.files import ImageFilesDataModule
from netprism.datamodules.image_files import Crop, ImageTable


class COCO2014(ImageFilesDataModule):
    """Objects of 80 classes: one image per box of the 82 783 training and 40 504 validation images, which are the test.

    The files are in `root`/coco: train2014/, val2014/ and annotations/instances_{train,val}2014.json, unpacked. They
    are not downloaded. Masks need pycocotools (`pip install netprism[coco]`). Crowds do not count.

    Args:
        root: Folder that has coco.
        crop: "box" as in the papers, or "image".
        min_side: Leave out boxes with a side of fewer pixels.
        masks: Whether the monitors' images come with masks; the outlines of the training objects take 1 GB.
        kwargs: Options of :class:`ImageFilesDataModule`.

    Source: Lin et al. 2014, https://cocodataset.org.
    """

    home = "https://cocodataset.org/#download"
    folder = "coco"

    def __init__(
        self, root: str = "data", crop: Crop = "box", min_side: int = 32, masks: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(root, crop=crop, **kwargs)
        self.min_side, self.masks = min_side, masks
        self._names: list[str] = []

    def all_classes(self) -> Sequence[str]:
        """The classes, by their number in COCO."""
        if not self._names:
            self._names = list(_categories(self._read("test")).values())
        return self._names

    def table(self, split: Split) -> ImageTable:
        """The objects of a split."""
        content = self._read(split)
        folder = self.existing(f"{self._word(split)}2014")
        with reading(self._file(split)):
            files = {image["id"]: folder / image["file_name"] for image in content["images"]}
            labels = {number: label for label, number in enumerate(_categories(content))}
            chosen = [
                each
                for each in content["annotations"]
                if not each.get("iscrowd") and min(each["bbox"][2:]) >= max(self.min_side, 1)
            ]
            paths = [files[each["image_id"]] for each in chosen]
            boxes = [[x, y, x + width, y + height] for x, y, width, height in (each["bbox"] for each in chosen)]
            targets = torch.tensor([labels[each["category_id"]] for each in chosen])
            pairs = zip(chosen, paths, strict=True)
            segments = [CocoSegment(each["segmentation"], path) for each, path in pairs] if self.masks else None
        return ImageTable(paths, targets, as_boxes(boxes), segments)

    def _word(self, split: Split) -> str:
        return "train" if split == "train" else "val"

    def _file(self, split: Split) -> Path:
        return self.existing(f"annotations/instances_{self._word(split)}2014.json")

    def _read(self, split: Split) -> dict[str, Any]:
        file = self._file(split)
        with reading(file), file.open(encoding="utf-8") as opened:
            content: dict[str, Any] = json.load(opened)
            return content


def _categories(content: dict[str, Any]) -> dict[int, str]:
    return {each["id"]: each["name"] for each in sorted(content["categories"], key=lambda each: int(each["id"]))}

"""Images of a folder as a network gets them, with their objects where these are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import functional as transforms

from netprism.datamodules.image_files import SUFFIXES, Geometry, ImageFiles, ImageTable, Segment, SegmentFile
from netprism.datamodules.image_folder import TEST_FOLDERS, find_images


class FolderImages(Dataset[dict[str, Any]]):
    """Images of a folder, read as `netprism.datamodules.ImageFolder` reads them, stretched to one size.

    Items are dicts of "image" `(C, H, W)`, "label" where there are classes, and "mask" `(1, H, W)` where objects are
    known: nothing for an image whose object is not, which has no concentration.

    Args:
        folder: Folder of images, or of one folder per class.
        size: Height and width for the network.
        mean: Mean per channel of pixels in [0, 1]; one number makes the images grey, three leave them their colour.
        std: Standard deviation per channel.
        masks: Folder with one PNG per image, at its path or of its stem; what is not black is the object.
        boxes: Table {name or path of a file: left, top, right, bottom in pixels of that file}, see `read_boxes`.
        root: Folder that paths of masks, boxes and names are below; None for `folder`.
        classes: Names of the classes; None for the subfolders.

    Attributes:
        names: Paths of the images below `root`.
        classes: Names of the classes, sorted; empty for a folder without subfolders.
        targets: Number of each image's class, int64 (n,); None without classes.

    Raises:
        ValueError: There are no images, a class is unknown, or mean and std do not fit.
    """

    def __init__(
        self,
        folder: Path,
        size: tuple[int, int],
        mean: list[float],
        std: list[float],
        masks: Path | None = None,
        boxes: dict[str, list[float]] | None = None,
        root: Path | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        if len(mean) != len(std) or len(mean) not in (1, 3):
            raise ValueError(f"mean has {len(mean)} numbers and std {len(std)}; expected 1 each (grey) or 3 (colour)")
        paths = _images(folder)
        parts = [path.relative_to(folder).parts[0] if path.parent != folder else "" for path in paths]
        found = [] if "" in parts else sorted(set(parts))
        self.classes = found if classes is None else list(classes)
        if unknown := set(found) - set(self.classes):
            raise ValueError(f"{folder / min(unknown)} is no class; expected one of {', '.join(self.classes)}")
        self.targets = torch.tensor([self.classes.index(part) for part in parts]) if found and self.classes else None
        self.names = [path.relative_to(root or folder).as_posix() for path in paths]
        self.mean, self.std = mean, std
        table = ImageTable(
            paths,
            torch.zeros(len(paths), dtype=torch.int64) if self.targets is None else self.targets,
            None if boxes is None else self._boxes(paths, boxes),
            None if masks is None else self._segments(paths, masks),
        )
        self.files = ImageFiles(table, Geometry(size, fit="stretch"), grayscale=len(mean) == 1, as_displayed=True)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels = self.files[index][0].float() / 255
        item: dict[str, Any] = {"image": transforms.normalize(pixels, self.mean, self.std)}
        if self.targets is not None:
            item["label"] = self.targets[index]
        return item | ({"mask": self.files.mask(index)[None]} if self.files.has_objects else {})

    def _boxes(self, paths: Sequence[Path], boxes: dict[str, list[float]]) -> Tensor:
        unknown = [torch.nan] * 4
        rows = [boxes.get(name, boxes.get(path.name, unknown)) for name, path in zip(self.names, paths, strict=True)]
        return torch.tensor(rows, dtype=torch.float64)

    def _segments(self, paths: Sequence[Path], masks: Path) -> list[Segment | None]:
        found: list[Segment | None] = []
        for name, path in zip(self.names, paths, strict=True):
            places = (masks / name).with_suffix(".png"), masks / f"{path.stem}.png"
            file = next((place for place in places if place.is_file()), None)
            found.append(None if file is None else SegmentFile(file, as_displayed=True))
        return found


def folder_splits(
    folder: Path,
    size: tuple[int, int],
    mean: list[float],
    std: list[float],
    masks: Path | None = None,
    boxes: dict[str, list[float]] | None = None,
) -> dict[str, FolderImages]:
    """Returns the images of a folder: "train" and "test" of one with `train` and `val` (or `test`), else "train" alone.

    Labels of both are the classes of the training images.

    Args:
        folder: Folder of images, of one folder per class, or of two splits.
        size: See `FolderImages`, as the others.
        mean: Mean per channel.
        std: Standard deviation per channel.
        masks: Folder of masks.
        boxes: Table of boxes.

    Raises:
        ValueError: See `FolderImages`; or no image has a mask.
    """
    given = size, mean, std, masks, boxes, folder
    held_out = next((folder / name for name in TEST_FOLDERS if (folder / name).is_dir()), None)
    if held_out is None or not (folder / "train").is_dir():
        splits = {"train": FolderImages(folder, *given)}
    else:
        train = FolderImages(folder / "train", *given)
        splits = {"train": train, "test": FolderImages(held_out, *given, train.classes or None)}
    if masks is not None and not any(any(images.files.table.segments or []) for images in splits.values()):
        path = masks / splits["train"].names[0]
        raise ValueError(f"{masks} has no mask of any image; expected {path.with_suffix('.png')}, for example")
    return splits


def _images(folder: Path) -> list[Path]:
    """The images of a folder, sorted by name; where it has none itself, those of the folders in it.

    Raises:
        ValueError: There are none.
    """
    found = find_images(folder)
    own = [path for path in found if path.parent == folder]
    if not found:
        raise ValueError(f"{folder} holds no images; expected a folder with {', '.join(SUFFIXES)}")
    return own or found

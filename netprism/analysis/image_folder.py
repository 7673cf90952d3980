"""Images of a folder as a network gets them, with their objects where these are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import functional as transforms

from netprism.datamodules.image_files import SUFFIXES, as_mode, open_image
from netprism.discarding.concentration import box_mask, segment_mask


class FolderImages(Dataset[dict[str, Any]]):
    """Images of a folder, stretched to one size and normalised; classes are its subfolders.

    Items are dicts of "image" `(C, H, W)`, "label" where there are classes, and "mask" `(1, H, W)` where objects are
    known: nothing for an image whose object is not, which has no concentration.

    Args:
        folder: Folder of images, or of one folder per class.
        size: Height and width for the network.
        mean: Mean per channel of pixels in [0, 1]; one number makes the images grey, three leave them their colour.
        std: Standard deviation per channel.
        masks: Folder with one PNG per image, of the same stem; what is not black is the object.
        boxes: Table {name of a file: left, top, right, bottom in pixels of that file}, see `read_boxes`.

    Attributes:
        paths: Paths of the images.
        classes: Names of the classes, sorted; empty for a folder without subfolders.
        targets: Number of each image's class, int64 (n,); None without classes.

    Raises:
        ValueError: There are no images, these are two splits, or mean and std do not fit.
    """

    def __init__(
        self,
        folder: Path,
        size: tuple[int, int],
        mean: list[float],
        std: list[float],
        masks: Path | None = None,
        boxes: dict[str, list[float]] | None = None,
    ) -> None:
        if len(mean) != len(std) or len(mean) not in (1, 3):
            raise ValueError(f"mean has {len(mean)} numbers and std {len(std)}; expected 1 each (grey) or 3 (colour)")
        self.paths, self.size, self.mean, self.std = find_images(folder), size, mean, std
        self.masks, self.boxes = masks, boxes or {}
        parts = [path.relative_to(folder).parts[0] if path.parent != folder else "" for path in self.paths]
        self.classes = [] if "" in parts else sorted(set(parts))
        if "train" in self.classes and (held_out := sorted({"val", "test"}.intersection(self.classes))):
            raise ValueError(f"{folder} holds train and {held_out[0]}; expected one of them: {folder / held_out[0]}")
        self.targets = torch.tensor([self.classes.index(part) for part in parts]) if self.classes else None
        self.names = [path.relative_to(folder).as_posix() for path in self.paths]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, mask = self._load(self.paths[index])
        item: dict[str, Any] = {"image": image}
        if self.targets is not None:
            item["label"] = self.targets[index]
        return item | ({"mask": mask[0]} if self.masks is not None or self.boxes else {})

    def _load(self, path: Path) -> tuple[Tensor, Tensor]:
        image = as_mode(open_image(path), "L" if len(self.mean) == 1 else "RGB", path)
        pixels = transforms.resize(transforms.to_tensor(image), list(self.size), antialias=True)
        return transforms.normalize(pixels, self.mean, self.std), self._mask(path, (image.height, image.width))

    def _mask(self, path: Path, original: tuple[int, int]) -> Tensor:
        """The object; nothing where it is not known, which has no concentration."""
        if self.masks is not None and (file := self.masks / f"{path.stem}.png").is_file():
            return segment_mask(transforms.pil_to_tensor(open_image(file).convert("L")), self.size)
        if path.name in self.boxes:
            return box_mask(torch.tensor([self.boxes[path.name]]), self.size, original)
        return torch.zeros(1, 1, *self.size, dtype=torch.bool)


def find_images(folder: Path) -> list[Path]:
    """Returns the images of a folder, sorted by name; where it has none itself, those of the folders in it.

    Raises:
        ValueError: There are none.
    """
    found: list[Path] = []
    for pattern in ("*", "*/**/*"):
        if folder.is_dir() and not found:
            found = sorted(path for path in folder.glob(pattern) if path.suffix.lower() in SUFFIXES)
    if not found:
        raise ValueError(f"{folder} holds no images; expected a folder with {', '.join(SUFFIXES)}")
    return found

"""Images of a folder as a network gets them, with their objects where these are known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms import functional as transforms

from netprism.datamodules.image_files import SUFFIXES, as_mode, open_image
from netprism.discarding.concentration import box_mask, segment_mask


@dataclass(frozen=True)
class ImageFolder:
    """Images of a folder, stretched to one size and normalised.

    Args:
        paths: Paths of the images, see :func:`find_images`.
        size: Height and width for the network.
        mean: Mean per channel of pixels in [0, 1]; one number makes the images grey, three leave them their colour.
        std: Standard deviation per channel.
        masks: Folder with one PNG per image, of the same stem; what is not black is the object.
        boxes: Table {name of a file: left, top, right, bottom in pixels of that file}, see `read_boxes` of datamodules.
    """

    paths: list[Path]
    size: tuple[int, int]
    mean: list[float]
    std: list[float]
    masks: Path | None = None
    boxes: dict[str, list[float]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.paths)

    def batches(self, size: int) -> Iterator[tuple[list[str], Tensor, Tensor | None]]:
        """Names, images `(n, C, H, W)` and masks `(n, 1, H, W)`, or None where no objects are known at all."""
        for start in range(0, len(self), size):
            paths = self.paths[start : start + size]
            images, masks = zip(*(self._load(path) for path in paths), strict=True)
            known = None if self.masks is None and not self.boxes else torch.cat(masks)
            yield [path.name for path in paths], torch.stack(images), known

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
    """Returns the images of a folder, sorted by name, without those of folders in it.

    Raises:
        ValueError: There are none.
    """
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not found:
        raise ValueError(f"{folder} holds no images; expected a folder with {', '.join(SUFFIXES)}")
    return found

"""Images in files, whatever their kind, brought to one size; their objects go through the same geometry."""

from __future__ import annotations

import csv
import math
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.functional import pil_to_tensor

from netprism.datamodules.base import Transform

Crop = Literal["image", "box"]
Fit = Literal["crop", "stretch"]
Rectangle = tuple[float, float, float, float]  # left, top, right, bottom in pixels, right and bottom exclusive
BOX = ("image", "left", "top", "right", "bottom")  # header of a table of boxes
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
RATIOS = (3 / 4, 4 / 3)  # of width to height of a random crop, as in Szegedy et al. 2015
ORIENTATION = 0x0112  # the tag of EXIF
DRAFT = 2  # a JPEG is decoded at the least of its scales 1, 1/2, 1/4, 1/8 that has this many pixels for one of ours


class UnreadableImageError(OSError):
    """A file that is missing, broken or does not fit: one line that names it, also where a worker raised it."""

    def __init__(self, message: str) -> None:
        # A worker's error is made anew from its traceback, whose last line is `module.UnreadableImageError: line`.
        super().__init__(message.strip().rpartition(f"{type(self).__name__}: ")[2])


class Segment(Protocol):
    """Where an object is in its image."""

    def read(self, size: tuple[int, int]) -> Image.Image:
        """The object in an image of (width, height) `size`: mode "L", not black on the object.

        Raises:
            UnreadableImageError: It cannot be read, or has another size.
        """


@dataclass(frozen=True)
class SegmentFile:
    """A picture of the object, of the size of its image.

    Args:
        path: File.
        value: Value of the object's pixels; None: all that are not black. Colours of a palette are their indices.
        as_displayed: Whether to turn it as its EXIF orientation says.
    """

    path: Path
    value: int | None = None
    as_displayed: bool = False

    def read(self, size: tuple[int, int]) -> Image.Image:
        """The object, of mode "L"."""
        picture = open_image(self.path, as_displayed=self.as_displayed)
        if picture.size != size:
            shape, expected = ("{} x {}".format(*s) for s in (picture.size, size))
            raise UnreadableImageError(
                f"{self.path} is {shape} pixels; expected {expected}, the size of the image that it is a mask of"
            )
        if self.value is not None:
            found = np.asarray(picture) == self.value
        elif picture.mode in ("1", "L") or picture.mode.startswith(("I", "F")):
            found = np.asarray(picture) != 0
        else:  # the luma of the darkest blue is 0
            found = np.asarray(as_mode(picture, "RGB", self.path)).any(-1)
        return Image.fromarray(found.astype(np.uint8) * 255)


@dataclass(frozen=True)
class ImageTable:
    """Files of images, and what is known of them.

    Args:
        paths: Files.
        targets: Labels (N,), int64.
        boxes: Boxes of the objects in pixels of the files, (N, 4): left, top, right, bottom, the last two just outside;
            a row of NaN where it is not known. None where none is.
        segments: Segments of the objects, None where one is not known. None where none is.
    """

    paths: Sequence[Path]
    targets: Tensor
    boxes: Tensor | None = None
    segments: Sequence[Segment | None] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, indices: Tensor, targets: Tensor) -> ImageTable:
        """Returns some rows, with other labels."""
        chosen = indices.tolist()
        segments = None if self.segments is None else [self.segments[i] for i in chosen]
        boxes = None if self.boxes is None else self.boxes[indices]
        return ImageTable([self.paths[i] for i in chosen], targets, boxes, segments)


@dataclass(frozen=True)
class Geometry:
    """Which rectangle of a file becomes an image.

    Args:
        size: Height and width of the image.
        crop: "image": the whole file; "box": the box of its object, the whole file where that is not known.
        margin: Width and height of what is cut out, as multiples of those of the box; cut off at the file's edges.
        fit: "crop": the largest rectangle with the ratio of `size`, from the middle; "stretch": all of it.
        min_area: Cut out a random part with at least this fraction of the area; None for no random part.
    """

    size: tuple[int, int]
    crop: Crop = "image"
    margin: float = 1.0
    fit: Fit = "crop"
    min_area: float | None = None

    def __post_init__(self) -> None:
        for name, value, kind in (("crop", self.crop, Crop), ("fit", self.fit, Fit)):
            if value not in get_args(kind):
                raise ValueError(f"{name} is {value!r}; expected {' or '.join(map(repr, get_args(kind)))}")
        if not 0 < self.margin < math.inf:
            raise ValueError(f"margin is {self.margin}; expected a number > 0")
        if self.min_area is not None and not 0 < self.min_area <= 1:
            raise ValueError(f"min_area is {self.min_area}; expected more than 0, at most 1")

    def rectangle(self, size: tuple[int, int], box: Sequence[float] | None) -> Rectangle:
        """Returns the rectangle of a file of (width, height) `size`; a random one draws from torch's random state.

        Raises:
            ValueError: The box has no area in the file.
        """
        whole: Rectangle = (0.0, 0.0, float(size[0]), float(size[1]))
        rectangle = whole if self.crop == "image" or box is None else self._around(box, whole)
        if self.min_area is not None:
            return self._random(rectangle, self.min_area)
        return rectangle if self.fit == "stretch" else self._middle(rectangle)

    def _around(self, box: Sequence[float], whole: Rectangle) -> Rectangle:
        left, top, right, bottom = box
        across, down = (self.margin - 1) * (right - left) / 2, (self.margin - 1) * (bottom - top) / 2
        if min(right, whole[2]) <= max(left, 0.0) or min(bottom, whole[3]) <= max(top, 0.0):
            shown = ", ".join(f"{side:g}" for side in box)
            raise ValueError(f"box is {shown}; expected one with an area in {whole[2]:g} x {whole[3]:g} pixels")
        return (
            max(left - across, 0.0),
            max(top - down, 0.0),
            min(right + across, whole[2]),
            min(bottom + down, whole[3]),
        )

    def _middle(self, rectangle: Rectangle) -> Rectangle:
        left, top, right, bottom = rectangle
        scale = min((right - left) / self.size[1], (bottom - top) / self.size[0])
        across, down = (right - left - scale * self.size[1]) / 2, (bottom - top - scale * self.size[0]) / 2
        return left + across, top + down, right - across, bottom - down

    def _random(self, rectangle: Rectangle, min_area: float) -> Rectangle:
        left, top, right, bottom = rectangle
        shape = max(round(bottom - top), 1), max(round(right - left), 1)
        found = RandomResizedCrop.get_params(torch.empty(1, *shape, device="meta"), [min_area, 1.0], list(RATIOS))
        down, across, height, width = found
        return left + across, top + down, min(left + across + width, right), min(top + down + height, bottom)


class ImageFiles:
    """Labelled images that are read from files when they are asked for: uint8 (C, H, W), label.

    Grey files become grey in three channels, coloured ones grey where `grayscale` says so; CMYK and palettes become
    RGB, 16 bits become 8, transparency is dropped.

    Args:
        table: Files.
        geometry: What of each file is the image.
        grayscale: One channel, the luma of ITU-R 601, instead of three.
        as_displayed: Turn images as their EXIF orientation says; boxes and segments are of the turned ones.

    Attributes:
        targets: Labels (N,), int64.
    """

    def __init__(
        self, table: ImageTable, geometry: Geometry, grayscale: bool = False, as_displayed: bool = False
    ) -> None:
        self.table, self.geometry, self.grayscale, self.as_displayed = table, geometry, grayscale, as_displayed
        self.targets = table.targets

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        height, width = self.geometry.size
        opened, rectangle = self._open(index, for_pixels=True)
        pixels = as_mode(opened.image, "L" if self.grayscale else "RGB", self.table.paths[index])
        left, top, right, bottom = rectangle
        scaled = (left / opened.reduction, top / opened.reduction, right / opened.reduction, bottom / opened.reduction)
        resized = pixels.resize((width, height), Image.Resampling.BILINEAR, box=scaled)
        return pil_to_tensor(resized), int(self.targets[index])

    def with_random_crops(self, min_area: float) -> ImageFiles:
        """Returns the same files, of each a random part."""
        geometry = replace(self.geometry, min_area=min_area)
        return ImageFiles(self.table, geometry, self.grayscale, self.as_displayed)

    @property
    def has_objects(self) -> bool:
        """Whether any object is known, and background beside it."""
        boxes, geometry = self.table.boxes, self.geometry
        shows_background = boxes is not None and (geometry.crop == "image" or geometry.margin > 1)
        return self.table.segments is not None or shows_background

    def mask(self, index: int) -> Tensor:
        """Returns where the object is in the image, bool (H, W): its segment or else its box; nothing if unknown."""
        height, width = self.geometry.size
        segment = None if self.table.segments is None else self.table.segments[index]
        box = self._box(index)
        if segment is None and box is None:
            return torch.zeros(height, width, dtype=torch.bool)
        opened, rectangle = self._open(index, for_pixels=False)
        if segment is not None:
            resized = segment.read(opened.size).resize((width, height), Image.Resampling.NEAREST, box=rectangle)
            return torch.from_numpy(np.array(resized)) != 0
        left, top, right, bottom = rectangle
        y = top + (torch.arange(height) + 0.5) * (bottom - top) / height  # centres of our pixels, in those of the file
        x = left + (torch.arange(width) + 0.5) * (right - left) / width
        assert box is not None
        return ((box[0] <= x) & (x < box[2])) & ((box[1] <= y) & (y < box[3]))[:, None]

    def _box(self, index: int) -> list[float] | None:
        if self.table.boxes is None or self.table.boxes[index].isnan().any():
            return None
        box: list[float] = self.table.boxes[index].tolist()
        return box

    def _open(self, index: int, for_pixels: bool) -> tuple[_Opened, Rectangle]:
        """The file, decoded where pixels are wanted, and the rectangle of it that is the image."""
        path, (height, width) = self.table.paths[index], self.geometry.size
        found: list[Rectangle] = []

        def least(size: tuple[int, int]) -> tuple[int, int]:
            left, top, right, bottom = self.geometry.rectangle(size, self._box(index))
            found.append((left, top, right, bottom))
            return int(DRAFT * width * size[0] / (right - left)), int(DRAFT * height * size[1] / (bottom - top))

        try:
            opened = _open(path, least, self.as_displayed, for_pixels)
        except ValueError as error:
            raise UnreadableImageError(f"{path}: {error}") from error
        return opened, found[0]


class CachedImages:
    """Images that are read once, as uint8, and kept up to a number of bytes; what has no room is read again.

    Args:
        source: Images.
        most_bytes: Memory of the kept ones.
        threads: Number of images that are decoded at a time.
    """

    def __init__(self, source: ImageFiles, most_bytes: int, threads: int = 1) -> None:
        self.source, self.most_bytes, self.threads, self.targets = source, most_bytes, threads, source.targets
        self._kept: dict[int, tuple[Tensor, Tensor | None]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.load([index])[0][0], int(self.targets[index])

    def load(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor | None]]:
        """Returns images (C, H, W), uint8, and their masks (H, W), bool, or None; Pillow decodes in threads."""
        missing = [index for index in dict.fromkeys(indices) if index not in self._kept]
        if self.threads > 1 and len(missing) > 1:
            with ThreadPoolExecutor(self.threads) as pool:
                read = dict(zip(missing, pool.map(self._read, missing), strict=True))
        else:
            read = {index: self._read(index) for index in missing}
        for index, pair in read.items():
            size = sum(t.numel() for t in pair if t is not None)
            if self._bytes + size <= self.most_bytes:
                self._kept[index] = pair
                self._bytes += size
        return [self._kept[index] if index in self._kept else read[index] for index in indices]

    def _read(self, index: int) -> tuple[Tensor, Tensor | None]:
        return self.source[index][0], self.source.mask(index) if self.source.has_objects else None


class CachedSubset(Dataset[tuple[Any, ...]]):
    """Some cached images, transformed: (image, label), or (image, label, mask: bool (H, W)) where objects are known.

    Args:
        source: Images.
        indices: Positions in `source`, int64 (n,).
        transform: Function from a uint8 image to a float tensor (C, H, W).

    Attributes:
        targets: Labels of the chosen images, int64 (n,).
    """

    def __init__(self, source: CachedImages, indices: Tensor, transform: Transform) -> None:
        self.source, self.indices, self.transform = source, indices, transform
        self.targets = source.targets[indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, ...]]:
        """Items of several indices, for which files are decoded at a time."""
        loaded = self.source.load([int(self.indices[index]) for index in indices])
        labels = self.targets[list(indices)].tolist()
        pairs = zip(loaded, labels, strict=True)
        return [(self.transform(image), label, *([] if mask is None else [mask])) for (image, mask), label in pairs]


def open_image(path: Path, as_displayed: bool = False) -> Image.Image:
    """Reads a file as an image, in the mode that it has.

    Args:
        path: File.
        as_displayed: Turn it as its EXIF orientation says.

    Raises:
        UnreadableImageError: It is missing or broken.
    """
    return _open(path, lambda size: size, as_displayed, decode=True).image


def read_boxes(table: Path) -> dict[str, list[float]]:
    """Reads a CSV with the columns image, left, top, right, bottom: one box per image, in pixels of the file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The columns are others, or a value is no number, or a box has no area.
    """
    if not table.is_file():
        raise FileNotFoundError(f"no table of boxes {table}")
    with table.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    try:
        boxes = {row["image"]: [float(row[side]) for side in BOX[1:]] for row in rows}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{table} is no table of boxes ({error}); expected columns {', '.join(BOX)}") from error
    for name, (left, top, right, bottom) in boxes.items():
        if not (left < right < math.inf and top < bottom < math.inf):
            shown = f"{left:g}, {top:g}, {right:g}, {bottom:g}"
            raise ValueError(f"{table}: box of {name} is {shown}; expected left < right and top < bottom")
    return boxes


def as_mode(image: Image.Image, mode: Literal["L", "RGB"], path: Path | str = "image") -> Image.Image:
    """Converts an image to grey or colour, 8 bits each; of 16 bits the upper 8 are kept, transparency is dropped.

    Raises:
        UnreadableImageError: Its pixels are real numbers, or above 16 bits, or of colours that Pillow cannot convert.
    """
    if image.mode == mode:
        return image
    if image.mode.startswith(("I", "F")):  # where Pillow's own conversion would cut off all above 255
        values = np.asarray(image)
        if image.mode == "F" or (values.size and not 0 <= values.min() <= values.max() < 1 << 16):
            raise UnreadableImageError(f"{path} has pixels of mode {image.mode}; expected 8 or 16 bits")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    try:
        return (image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image).convert(mode)
    except ValueError as error:
        raise UnreadableImageError(f"{path} has pixels of mode {image.mode}; expected grey or colour") from error


@dataclass(frozen=True)
class _Opened:
    """A file, its (width, height), and how many times smaller than that it was decoded."""

    image: Image.Image
    size: tuple[int, int]
    reduction: float


def _open(path: Path, least: Callable[[tuple[int, int]], tuple[int, int]], as_displayed: bool, decode: bool) -> _Opened:
    """Opens an image; a JPEG is decoded at a scale of 1/2, 1/4 or 1/8 if that suffices.

    Args:
        path: File.
        least: Function from the (width, height) of the image to the least (width, height) that suffices.
        as_displayed: Whether to turn it.
        decode: Whether pixels are wanted.
    """
    try:
        with Image.open(path) as image:
            turned = as_displayed and image.getexif().get(ORIENTATION, 1) >= 5  # 5 to 8 exchange width and height
            width, height = image.size
            wanted = least((height, width) if turned else (width, height))
            if decode:
                drafted = image.draft(None, (max(wanted[turned], 1), max(wanted[not turned], 1)))
                reduction = 1.0 if drafted is None else width / drafted[1][2]
                image.load()
            shown = ImageOps.exif_transpose(image) if as_displayed and decode else image
            return _Opened(shown, (height, width) if turned else (width, height), reduction if decode else 1.0)
    except UnidentifiedImageError as error:
        raise UnreadableImageError(f"{path} cannot be read as an image (Pillow knows no such kind)") from error
    except (OSError, SyntaxError, struct.error, EOFError, Image.DecompressionBombError) as error:
        why = f"cannot be read as an image ({' '.join(str(error).split())})"
        raise UnreadableImageError(f"{path} {'is missing' if isinstance(error, FileNotFoundError) else why}") from error

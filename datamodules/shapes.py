"""Coloured shapes on a textured ground: generated images whose every pixel is known to be of the object or not."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes

from netprism.datamodules.base import ImageDataModule, ImageSubset, ImageTensors, Split, Transform, check_split

AREA = (0.05, 0.12)  # of a shape, as a fraction of the image
_REACH = 0.944 * math.sqrt(AREA[1])  # farthest point of the largest shape, a star, from its centre; image side = 1
_CHUNK = 1000  # images drawn at a time: 12 MB per array of floats at 32 x 32


def _circle(u: Tensor, v: Tensor) -> Tensor:
    return u**2 + v**2 < 1 / math.pi


def _square(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(u.abs(), v.abs()) < 0.5


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    return _half_planes(u, v, 3, 27**-0.25) == 3


def _cross(u: Tensor, v: Tensor) -> Tensor:
    near, far = torch.minimum(u.abs(), v.abs()), torch.maximum(u.abs(), v.abs())
    arm = 1 / math.sqrt(20)  # five squares of side 2 arm
    return (near < arm) & (far < 3 * arm)


def _ring(u: Tensor, v: Tensor) -> Tensor:
    squared = u**2 + v**2
    return (squared < 4 / (3 * math.pi)) & (squared > 1 / (3 * math.pi))


def _star(u: Tensor, v: Tensor) -> Tensor:
    # A point is in a pentagram if it is on the inner side of at least four of its five lines.
    return _half_planes(u, v, 5, 0.29164) >= 4


def _half_planes(u: Tensor, v: Tensor, lines: int, distance: float) -> Tensor:
    """How many of the lines, at even angles and this distance from the centre, have a point on their inner side."""
    angles = [2 * math.pi * line / lines for line in range(lines)]
    return torch.stack([u * math.cos(angle) + v * math.sin(angle) < distance for angle in angles]).sum(0)


SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # each has the area 1: size does not tell the shape
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "ring": _ring,
    "star": _star,
}


class SegmentedImages(ImageTensors):
    """Labelled images, each with the segment of its object.

    Args:
        images: Images (N, C, H, W), uint8 in [0, 255] or float in [0, 1].
        targets: Labels (N,), int64.
        masks: Masks (N, H, W), bool, True on the object.

    Raises:
        ValueError: if there are not as many labels and masks as images.
    """

    def __init__(self, images: Tensor, targets: Tensor, masks: Tensor) -> None:
        super().__init__(images, targets)
        if len(images) != len(masks):
            raise ValueError(f"{len(images)} images have {len(masks)} masks: there must be one each")
        self.masks = masks

    @property
    def boxes(self) -> Tensor:
        """(N, 4), int64: left, top, right and bottom of each segment in pixels, the last two just outside it."""
        inclusive: Tensor = masks_to_boxes(self.masks)
        return inclusive.long() + torch.tensor([0, 0, 1, 1])


class SegmentedSubset(ImageSubset):
    """An :class:`ImageSubset` whose items are (image, label, mask of the object: bool (H, W)).

    Attributes:
        masks: Segments of the chosen images, bool (n, H, W).
        boxes: Boxes of the segments, int64 (n, 4): left, top, right and bottom of the segments, the last two just
            outside them.
    """

    def __init__(self, source: SegmentedImages, indices: Tensor, transform: Transform) -> None:
        super().__init__(source, indices, transform)
        self.masks, self.boxes = source.masks[indices], source.boxes[indices]

    def __getitem__(self, index: int) -> tuple[Tensor, int, Tensor]:  # type: ignore[override]  # a third item
        return (*super().__getitem__(index), self.masks[index])


class Shapes(ImageDataModule):
    """Circles, squares, triangles, crosses, rings and stars, one to an image; the label is the shape.

    Nothing but the shape tells the label: colours, textures, place, angle and area have the same distribution for all
    classes. Nor do they tell the object from the ground: both have a random colour, at least .3 apart in each channel,
    a random grating and noise. All is a function of `seed` and the split; `root` and `download` are not used.

    `monitor_dataset` gives (image, label, mask), the exact segment of the object as bool (H, W), and has `masks` and
    `boxes` of all its images; batches for training and validation are (images, labels).

    Args:
        image_size: Height and width, at least 16.
        train_images: Number of training images, balanced over the classes.
        test_images: Number of test images, balanced over the classes.
        kwargs: Options of :class:`ImageDataModule`.

    Raises:
        ValueError: if `image_size`, `train_images` or `test_images` is too small.
    """

    num_classes, classes = len(SHAPES), tuple(SHAPES)
    shape = (3, 32, 32)
    mean: Sequence[float] = (0.5, 0.5, 0.5)  # by symmetry
    std: Sequence[float] = (0.293, 0.293, 0.293)  # of 10 000 images

    def __init__(self, image_size: int = 32, train_images: int = 4800, test_images: int = 1200, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name, value, least in (
            ("image_size", image_size, 16),
            ("train_images", train_images, 1),
            ("test_images", test_images, 1),
        ):
            if value < least:
                raise ValueError(f"{name} is {value}: it must be at least {least}")
        self.shape = (3, image_size, image_size)
        self.train_images, self.test_images = train_images, test_images

    def read(self, split: Split) -> SegmentedImages:
        """Draws the images of a split, uint8; 1000 of 32 x 32 pixels take about .1 s."""
        count = self.train_images if split == "train" else self.test_images
        mixed = np.random.SeedSequence([self.seed, split == "test"]).generate_state(1)
        generator = torch.Generator().manual_seed(int(mixed[0]))
        labels = torch.arange(count) % self.num_classes
        drawn = [draw(chunk, self.shape[-1], generator) for chunk in labels.split(_CHUNK)]
        images, masks = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        return SegmentedImages(images, labels, masks)

    def monitor_dataset(self, split: Split) -> SegmentedSubset:
        """The images as in evaluation, each with the mask of its object: (image, label, bool (H, W))."""
        check_split(split)
        plain = self._dataset(split)
        source = self._source(split)
        assert isinstance(source, SegmentedImages)
        return SegmentedSubset(source, plain.indices, plain.transform)


def draw(labels: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws a shape per label, an index into `SHAPES`, in `size` x `size` pixels.

    Edges are hard: a pixel is of the shape if its centre is, and then has nothing of the ground in it.

    Returns:
        Images (N, 3, size, size), uint8, and the masks of the shapes (N, size, size), bool.
    """
    masks = _segments(labels, size, generator)
    ground_colour = torch.rand(len(labels), 3, 1, 1, generator=generator)
    # On a circle of circumference 1 the colours are .3 to .7 apart, so on the line as well, and interchangeable.
    apart = 0.3 + 0.4 * torch.rand(len(labels), 3, 1, 1, generator=generator)
    shape_colour = (ground_colour + apart) % 1
    ground = ground_colour + _grating(len(labels), size, generator)
    shape = shape_colour + _grating(len(labels), size, generator)
    noise = 0.05 * torch.randn(len(labels), 3, size, size, generator=generator)
    images = torch.where(masks[:, None], shape, ground) + noise
    return (images.clamp(0, 1) * 255).round().byte(), masks


def _segments(labels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Which pixels are of the shapes, bool (N, size, size): of random place, angle and area, all in the image."""
    place, angle, area = torch.rand(4, len(labels), 1, 1, generator=generator).split([2, 1, 1])
    across, down = 0.5 + (1 - 2 * _REACH) * (place - 0.5)
    angle = 2 * math.pi * angle[0]
    scale = (AREA[0] + (AREA[1] - AREA[0]) * area[0]).sqrt()
    x, y = _pixel_centres(size)
    u = ((x - across) * angle.cos() + (y - down) * angle.sin()) / scale
    v = ((y - down) * angle.cos() - (x - across) * angle.sin()) / scale
    masks = torch.zeros(u.shape, dtype=torch.bool)
    for label, inside in enumerate(SHAPES.values()):
        chosen = labels == label
        masks[chosen] = inside(u[chosen], v[chosen])
    return masks


def _grating(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Grey stripes (N, 1, size, size) of random angle, phase, strength to .15 and 4 to 10 periods across the image."""
    angle, phase, strength, periods = torch.rand(4, count, 1, 1, 1, generator=generator)
    angle, phase = 2 * math.pi * angle, 2 * math.pi * phase
    x, y = _pixel_centres(size)
    waves = 2 * math.pi * (4 + 6 * periods) * (x * angle.cos() + y * angle.sin()) + phase
    stripes: Tensor = 0.15 * strength * waves.sin()
    return stripes


def _pixel_centres(size: int) -> tuple[Tensor, Tensor]:
    """Coordinates x (size) and y (size, 1) of the pixels' centres in an image of side 1."""
    centres = (torch.arange(size) + 0.5) / size
    return centres, centres[:, None]

"""Patches of ten photographs that scikit-image and scikit-learn ship: natural images that need no download."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from netprism.datamodules.base import ImageDataModule, ImageTensors, Split, Transform

_SKIMAGE, _SKLEARN = ("skimage", "data"), ("sklearn", "datasets/images")
# Package, file and licence, as skimage.data and sklearn/datasets/images/README.txt state it.
PHOTOGRAPHS: dict[str, tuple[tuple[str, str], str, str]] = {
    "astronaut": (_SKIMAGE, "astronaut.png", "public domain, NASA"),
    "brick": (_SKIMAGE, "brick.png", "CC0, CC0Textures"),
    "chelsea": (_SKIMAGE, "chelsea.png", "CC0, Stefan van der Walt"),
    "china": (_SKLEARN, "china.jpg", "CC BY 2.0, danielbuechele"),
    "coffee": (_SKIMAGE, "coffee.png", "CC0, Rachel Michetti"),
    "coins": (_SKIMAGE, "coins.png", "no known restrictions, Brooklyn Museum"),
    "flower": (_SKLEARN, "flower.jpg", "CC BY 2.0, vultilion"),
    "grass": (_SKIMAGE, "grass.png", "CC0, linolafett"),
    "gravel": (_SKIMAGE, "gravel.png", "CC0, CC0Textures"),
    "ihc": (_SKIMAGE, "ihc.png", "no known restrictions, CMMI"),
    "motorcycle": (_SKIMAGE, "motorcycle_left.png", "Middlebury 2014, no licence stated"),
    "rocket": (_SKIMAGE, "rocket.jpg", "public domain, SpaceX"),
}
TEN = tuple(name for name in PHOTOGRAPHS if name not in ("chelsea", "ihc"))


class Photos(ImageDataModule):
    """Which photograph is a patch from? Natural images whose test half nobody has seen in training.

    A photograph is grey or coloured, is shrunk to `side` pixels on its shorter side and cut into two halves across its
    longer side: patches for training come from the left (or upper) half, those of the test from the other. No pixel is
    in both. Patches of one split may overlap. Places are drawn evenly, by `seed` and split alone. `root` and `download`
    are not used.

    With colour the task is easier, and four of the photographs are grey: `grayscale` keeps colour from telling them.

    Args:
        image_size: Height and width of a patch.
        grayscale: One channel, the luma of ITU-R 601, instead of three.
        photographs: Names out of `PHOTOGRAPHS`, which are the classes in this order.
        side: Length of the shorter side of a photograph, in pixels; a patch must fit into half of it.
        train_images: Number of training patches, balanced over the classes.
        test_images: Number of test patches, balanced over the classes.
        kwargs: Options of :class:`ImageDataModule`.

    Raises:
        ValueError: `photographs` has an unknown name, a name twice or fewer than two names, `image_size` is not within
            1 to half of `side`, or there are not enough images for one of each class.
        ModuleNotFoundError: scikit-image is missing.
        FileNotFoundError: An installed package has no such photograph.

    Example:
        >>> Photos(photographs=["grass", "gravel"], train_images=10).read("train").images.shape
        torch.Size([10, 1, 32, 32])
    """

    def __init__(
        self,
        image_size: int = 32,
        grayscale: bool = True,
        photographs: Sequence[str] = TEN,
        side: int = 256,
        train_images: int = 4000,
        test_images: int = 1000,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name in photographs:
            if name not in PHOTOGRAPHS:
                raise ValueError(f"photographs has {name!r}; expected names of {', '.join(PHOTOGRAPHS)}")
        if len(photographs) < 2 or len(set(photographs)) < len(photographs):
            raise ValueError(f"photographs is {list(photographs)}; expected two or more different names")
        if not 1 <= image_size <= side // 2:
            raise ValueError(f"image_size is {image_size}; expected 1 to {side // 2}, half of side={side}")
        for option, value in (("train_images", train_images), ("test_images", test_images)):
            if value < len(photographs):
                raise ValueError(f"{option} is {value}; expected at least {len(photographs)}, one per photograph")
        self.classes, self.num_classes = tuple(photographs), len(photographs)
        self.shape = (1 if grayscale else 3, image_size, image_size)
        self.mean, self.std = ((0.409,), (0.210,)) if grayscale else ((0.449, 0.395, 0.376), (0.256, 0.211, 0.222))
        self.side, self.train_images, self.test_images = side, train_images, test_images

    def augmentation(self) -> list[Transform]:
        """None: a shift would show the border of a patch, and others of its half are in the data already."""
        return []

    def read(self, split: Split) -> ImageTensors:
        """Cuts the patches of a split, uint8 (N, C, image_size, image_size); 5000 of 32 x 32 take half a second."""
        count = self.train_images if split == "train" else self.test_images
        mixed = np.random.SeedSequence([self.seed, split == "test"]).generate_state(1)
        generator = torch.Generator().manual_seed(int(mixed[0]))
        labels = torch.arange(count) % self.num_classes
        patches = torch.empty(count, *self.shape, dtype=torch.uint8)
        for label, name in enumerate(self.classes):
            of_class = labels == label
            half = half_of(photograph(name, self.side, grayscale=self.shape[0] == 1), split)
            patches[of_class] = cut(half, int(of_class.sum()), self.shape[-1], generator)
        return ImageTensors(patches, labels)


def photograph(name: str, side: int, grayscale: bool) -> Tensor:
    """Returns a photograph (C, H, W), uint8, its shorter side `side` pixels long.

    Raises:
        ModuleNotFoundError: Its package is missing.
        FileNotFoundError: Its package ships no such file.
    """
    (package, folder), file, _ = PHOTOGRAPHS[name]
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"Photos needs scikit-image for {name!r}: pip install scikit-image")
    path = Path(spec.origin).parent / folder / file
    if not path.is_file():
        raise FileNotFoundError(f"Photos: {path} is missing; install a scikit-image that ships it, 0.26 does")
    with Image.open(path) as opened:
        image = opened.convert("L" if grayscale else "RGB")
    scale = side / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    pixels: Tensor = pil_to_tensor(image.resize(size, Image.Resampling.LANCZOS))
    return pixels


def half_of(image: Tensor, split: Split) -> Tensor:
    """Returns the left or upper half (C, H, W) for "train", the other for "test", cut across the longer side."""
    dim = 2 if image.shape[2] >= image.shape[1] else 1
    middle = image.shape[dim] // 2
    return image.narrow(dim, 0, middle) if split == "train" else image.narrow(dim, middle, image.shape[dim] - middle)


def cut(image: Tensor, count: int, size: int, generator: torch.Generator) -> Tensor:
    """Returns `count` squares (count, C, size, size) of (C, H, W), from places that are drawn evenly."""
    windows = image.unfold(1, size, 1).unfold(2, size, 1)  # (C, places down, places across, size, size), a view
    down, across = (torch.randint(windows.shape[dim], (count,), generator=generator) for dim in (1, 2))
    return windows[:, down, across].transpose(0, 1)

"""scikit-learn's handwritten digits: real images that need no download."""

from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn import functional as F

from netprism.datamodules.base import ImageDataModule, ImageTensors, Split


class Digits(ImageDataModule):
    """1797 handwritten digits of 8 x 8 pixels, enlarged bilinearly: 1437 to train on, 360 to test.

    Both splits have the same fraction of each class; `seed` also chooses which images are held out. The images come
    with scikit-learn: `root` and `download` are not used.

    Args:
        image_size: Height and width of an enlarged image.
        kwargs: Options of :class:`ImageDataModule`.

    Raises:
        ValueError: if `image_size` is not positive.
    """

    num_classes = 10
    shape = (1, 32, 32)
    mean, std = (0.305,), (0.324,)  # of all images at 32 x 32

    def __init__(self, image_size: int = 32, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if image_size < 1:
            raise ValueError(f"image_size is {image_size}: it must be at least 1")
        self.shape = (1, image_size, image_size)

    def read(self, split: Split) -> ImageTensors:
        """Enlarges the images of a split; their grey levels, 0 to 16, become 0 to 1."""
        pixels, labels = load_digits(return_X_y=True)
        held_out = train_test_split(range(len(labels)), test_size=0.2, stratify=labels, random_state=self.seed)
        chosen = torch.tensor(held_out[0] if split == "train" else held_out[1])
        images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8)[chosen] / 16
        images = F.interpolate(images, size=self.shape[1:], mode="bilinear", align_corners=False)
        return ImageTensors(images, torch.tensor(labels)[chosen])

"""CIFAR-10."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torchvision import datasets, transforms
from torchvision.datasets.utils import check_integrity
from torchvision.transforms.functional import rgb_to_grayscale

from netprism.datamodules.base import ImageTensors, Transform
from netprism.datamodules.downloaded import DownloadedDataModule


class CIFAR10(DownloadedDataModule):
    """50 000 colour images of things and animals to train on, 10 000 to test, 32 x 32, in `root`/cifar-10-batches-py.

    `augment` crops 32 x 32 pixels out of the image with a black border of four, and mirrors every other image.

    Args:
        grayscale: Load one channel, the luma of ITU-R 601, instead of three.
        kwargs: Options of :class:`ImageDataModule`.
    """

    dataset = datasets.CIFAR10
    num_classes = 10
    shape = (3, 32, 32)
    mean: Sequence[float] = (0.4914, 0.4822, 0.4465)  # of the 50 000 training images
    std: Sequence[float] = (0.2470, 0.2435, 0.2616)

    def __init__(self, grayscale: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.grayscale = grayscale
        if grayscale:
            self.shape, self.mean, self.std = (1, 32, 32), (0.481,), (0.239,)

    def augmentation(self) -> list[Transform]:
        """Random crops and mirror images."""
        return [*super().augmentation(), transforms.RandomHorizontalFlip()]

    def files(self) -> list[Path]:
        """The batches of both splits and the names of the classes."""
        return [self._folder / name for name in self._checksums]

    def intact(self, file: Path) -> bool:
        """Whether the file has the published checksum."""
        return bool(check_integrity(file, self._checksums[file.name]))

    def tensors(self, dataset: datasets.CIFAR10) -> ImageTensors:
        """Images (N, 3, 32, 32) or, in grey, (N, 1, 32, 32), uint8."""
        self.classes = tuple(dataset.classes)
        images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
        return ImageTensors(rgb_to_grayscale(images) if self.grayscale else images, torch.tensor(dataset.targets))

    @property
    def _folder(self) -> Path:
        return Path(self.root).expanduser() / str(self.dataset.base_folder)

    @property
    def _checksums(self) -> dict[str, str]:
        meta = self.dataset.meta
        return {**dict(self.dataset.train_list), **dict(self.dataset.test_list), meta["filename"]: meta["md5"]}

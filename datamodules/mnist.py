"""MNIST."""

from pathlib import Path
from typing import Any

from torch.nn import functional as F
from torchvision import datasets
from torchvision.datasets.mnist import read_image_file, read_label_file

from netprism.datamodules.base import ImageTensors
from netprism.datamodules.downloaded import DownloadedDataModule

SIDE = 28


class MNIST(DownloadedDataModule):
    """60 000 handwritten digits to train on and 10 000 to test, 28 x 28 grey pixels, in `root`/MNIST/raw.

    Args:
        image_size: 28, or more for a black border around the digit: LeNet-5 takes 32.
        kwargs: Options of :class:`ImageDataModule`.

    Raises:
        ValueError: if `image_size` is less than 28.
    """

    dataset = datasets.MNIST
    num_classes = 10
    shape = (1, SIDE, SIDE)
    mean, std = (0.1307,), (0.3081,)  # of the 60 000 training images

    def __init__(self, image_size: int = SIDE, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if image_size < SIDE:
            raise ValueError(f"image_size is {image_size}: it must be at least {SIDE}, the size of an image")
        self.shape = (1, image_size, image_size)

    def files(self) -> list[Path]:
        """Images and labels of both splits, unpacked."""
        folder = Path(self.root).expanduser() / "MNIST" / "raw"
        return [folder / archive.removesuffix(".gz") for archive, _ in self.dataset.resources]

    def intact(self, file: Path) -> bool:
        """Whether torchvision can read the file: there is no checksum of an unpacked one."""
        read = read_image_file if "images" in file.name else read_label_file
        try:
            read(file)
        except Exception:  # see DownloadedDataModule
            return False
        return True

    def tensors(self, dataset: datasets.MNIST) -> ImageTensors:
        """Images (N, 1, image_size, image_size), uint8."""
        border = self.shape[-1] - SIDE
        before, after = border // 2, border - border // 2
        return ImageTensors(F.pad(dataset.data.unsqueeze(1), (before, after, before, after)), dataset.targets)

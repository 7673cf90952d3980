"""CIFAR-100."""

from collections.abc import Sequence
from typing import Any

from torchvision import datasets

from netprism.datamodules.cifar10 import CIFAR10


class CIFAR100(CIFAR10):
    """50 000 colour images of a hundred kinds of things to train on, 10 000 to test, 32 x 32.

    The files are in `root`/cifar-100-python. Arguments are those of :class:`CIFAR10`; labels are the fine ones.
    """

    dataset = datasets.CIFAR100
    num_classes = 100
    mean: Sequence[float] = (0.5071, 0.4865, 0.4409)  # of the 50 000 training images
    std: Sequence[float] = (0.2673, 0.2564, 0.2762)

    def __init__(self, grayscale: bool = False, **kwargs: Any) -> None:
        super().__init__(grayscale, **kwargs)
        if grayscale:
            self.mean, self.std = (0.487,), (0.25,)  # the mean is that of the colours; the deviation is not measured

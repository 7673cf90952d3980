"""Data sets, one LightningDataModule each; every one has `num_classes`, `shape` and `monitor_dataset(split)`."""

from netprism.datamodules.base import ImageDataModule
from netprism.datamodules.cifar10 import CIFAR10
from netprism.datamodules.digits import Digits
from netprism.datamodules.files import ImageFilesDataModule
from netprism.datamodules.image_folder import ImageFolder
from netprism.datamodules.mnist import MNIST
from netprism.datamodules.photos import Photos
from netprism.datamodules.sampling import EpochSampler, ResumableLoader
from netprism.datamodules.shapes import Shapes

__all__ = [
    "CIFAR10",
    "MNIST",
    "Digits",
    "EpochSampler",
    "ImageDataModule",
    "ImageFilesDataModule",
    "ImageFolder",
    "Photos",
    "ResumableLoader",
    "Shapes",
]

"""Data sets, one LightningDataModule each; every one has `num_classes`, `shape` and `monitor_dataset(split)`."""

from netprism.datamodules.base import ImageDataModule
from netprism.datamodules.celeba import CelebA
from netprism.datamodules.cifar10 import CIFAR10
from netprism.datamodules.cifar100 import CIFAR100
from netprism.datamodules.coco2014 import COCO2014
from netprism.datamodules.cub200 import CUB200
from netprism.datamodules.digits import Digits
from netprism.datamodules.files import ImageFilesDataModule
from netprism.datamodules.for_monitors import monitor_images
from netprism.datamodules.image_folder import ImageFolder
from netprism.datamodules.mnist import MNIST
from netprism.datamodules.photos import Photos
from netprism.datamodules.sampling import EpochSampler, ResumableLoader
from netprism.datamodules.shapes import Shapes
from netprism.datamodules.stanford_dogs import StanfordDogs
from netprism.datamodules.tiny_imagenet import TinyImageNet
from netprism.datamodules.voc2012 import VOC2012

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "COCO2014",
    "CUB200",
    "MNIST",
    "VOC2012",
    "CelebA",
    "Digits",
    "EpochSampler",
    "ImageDataModule",
    "ImageFilesDataModule",
    "ImageFolder",
    "Photos",
    "ResumableLoader",
    "Shapes",
    "StanfordDogs",
    "TinyImageNet",
    "monitor_images",
]

"""Small data sets in the real on-disk formats, for tests that read what a user's disk holds."""

import gzip
import hashlib
import pickle
import shutil
import tarfile
import urllib.error
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from netprism.gates.sampler import log_partition

torch.set_num_threads(1)  # a process forked from one that has used OpenMP threads hangs in its first parallel loop

NEWEST = {"torch": (2, 15), "matplotlib": (3, 11), "numpy": (2, 4)}  # what the tests have run on


def pytest_configure(config):
    """A warning is an error, but not with packages that are newer than the tests: it is no fault of their user."""
    for package, newest in NEWEST.items():
        if tuple(map(int, version(package).split(".")[:2])) > newest:
            config.addinivalue_line("filterwarnings", "default")


@pytest.fixture(autouse=True)
def pictures_in_an_instant(request, monkeypatch):
    """Pictures are not rendered, which takes a second each, but in tests/figures and where a test has the mark."""

    def pixel(figure, path):
        if path.suffix == ".png":
            Image.new("RGB", (1, 1)).save(path)
        else:
            path.write_text(f"a {path.suffix} of one pixel")

    looked_at = request.node.get_closest_marker("pictures") or "/figures/" in request.node.nodeid
    if not looked_at:
        monkeypatch.setattr("netprism.figures._common._write", pixel)


@pytest.fixture
def short_annealing(monkeypatch):
    """Two temperatures in place of forty for log Z, for tests that do not look at it."""
    monkeypatch.setattr("netprism.gates.energy.log_partition", partial(log_partition, temperatures=2))


MakeDataSet = Callable[..., Path]


@pytest.fixture
def make_mnist(tmp_path, monkeypatch) -> MakeDataSet:
    """Writes an MNIST and returns its root; `packed`: only the archives, as downloaded.

    The checksums of the small archives replace the published ones, in this process only.
    """

    def make(train: int = 50, test: int = 20, packed: bool = False) -> Path:
        root = tmp_path / "mnist"
        archives = write_mnist(root / "MNIST" / "raw", train, test, packed)
        monkeypatch.setattr(datasets.MNIST, "resources", archives)
        return root

    return make


@pytest.fixture
def make_cifar10(tmp_path, monkeypatch) -> MakeDataSet:
    """Writes a CIFAR-10 and returns its root; `packed`: only the archive, as downloaded.

    The checksums of the small files replace the published ones, in this process only.
    """

    def make(train: int = 50, test: int = 20, packed: bool = False) -> Path:
        root = tmp_path / "cifar10"
        for attribute, value in write_cifar10(root / "cifar-10-batches-py", train, test).items():
            monkeypatch.setattr(datasets.CIFAR10, attribute, value)
        if packed:
            monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", pack(root / "cifar-10-batches-py"))
        return root

    return make


@pytest.fixture
def mnist_root(make_mnist) -> Path:
    """Root of an MNIST with 50 training and 20 test images, all ten classes in both."""
    return make_mnist()


@pytest.fixture
def cifar10_root(make_cifar10) -> Path:
    """Root of a CIFAR-10 with 50 training and 20 test images, all ten classes in both."""
    return make_cifar10()


@pytest.fixture
def no_network(monkeypatch) -> None:
    """Every download fails as on a machine without a network."""

    def refuse(*args, **kwargs):
        raise urllib.error.URLError("Network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def labelled_noise(count, *shape, seed):
    """Noise whose brightness tells the class, and the labels 0, 1, ..., 9, 0, 1, ..."""
    labels = np.arange(count) % 10
    noise = np.random.default_rng(seed).integers(0, 76, size=(count, *shape))
    return (noise + 20 * labels.reshape(-1, *[1] * len(shape))).astype(np.uint8), labels.astype(np.uint8)


def write_mnist(folder, train, test, packed):
    """Four idx files: the bytes 0, 0, 8 for uint8, the number of dimensions, each size big-endian, then the entries."""
    folder.mkdir(parents=True)
    archives = []
    for seed, (split, count) in enumerate([("train", train), ("t10k", test)]):
        images, labels = labelled_noise(count, 28, 28, seed=seed)
        for kind, array in [("images-idx3", images), ("labels-idx1", labels)]:
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
            content = header + array.tobytes()
            archive = folder / f"{split}-{kind}-ubyte.gz"
            archive.write_bytes(gzip.compress(content))
            archives.append((archive.name, md5(archive)))
            if not packed:
                archive.rename(archive.with_suffix("")).write_bytes(content)
    return archives


def write_cifar10(folder, train, test):
    """Five training batches, a test batch and the names of the classes; returns torchvision's lists of them."""
    folder.mkdir(parents=True)

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        return [name, md5(folder / name)]

    def write_batch(name, images, labels):
        return write(name, {"data": images, "labels": labels.tolist()})

    parts = zip(*(np.array_split(array, 5) for array in labelled_noise(train, 3072, seed=0)), strict=True)
    train_list = [write_batch(f"data_batch_{number}", *part) for number, part in enumerate(parts, start=1)]
    test_list = [write_batch("test_batch", *labelled_noise(test, 3072, seed=1))]
    name, checksum = write("batches.meta", {"label_names": [f"class {number}" for number in range(10)]})
    meta = {"filename": name, "key": "label_names", "md5": checksum}
    return {"train_list": train_list, "test_list": test_list, "meta": meta}


def pack(folder):
    """Puts a folder into the archive that is downloaded and returns its checksum."""
    archive = folder.parent / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    shutil.rmtree(folder)
    return md5(archive)


def md5(file):
    return hashlib.md5(file.read_bytes()).hexdigest()

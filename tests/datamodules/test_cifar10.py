import hashlib
import pickle
import re
from pathlib import Path

import pytest
import torch
from torchvision import datasets

from netprism.datamodules import CIFAR10

BATCHES = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}


def pixels(root, split):
    """The images as the format says: 1024 bytes of red, 1024 of green, 1024 of blue, row by row."""
    contents = [pickle.loads((root / "cifar-10-batches-py" / name).read_bytes()) for name in BATCHES[split]]
    return torch.cat([torch.tensor(content["data"]) for content in contents]).reshape(-1, 3, 32, 32)


def prepared(root, **kwargs):
    data = CIFAR10(root=str(root), **kwargs)
    data.prepare_data()
    data.setup("fit")
    return data


def images(dataset):
    return torch.stack([image for image, _ in dataset])


@pytest.mark.parametrize(("split", "count"), [("train", 50), ("test", 20)])
def test_reads_and_normalises_what_the_files_hold(cifar10_root, split, count):
    data = prepared(cifar10_root)
    dataset = data.monitor_dataset(split)
    mean = torch.tensor([0.4914, 0.4822, 0.4465]).reshape(3, 1, 1)
    std = torch.tensor([0.2470, 0.2435, 0.2616]).reshape(3, 1, 1)
    assert images(dataset).shape == (count, *data.shape)
    torch.testing.assert_close(images(dataset), (pixels(cifar10_root, split) / 255 - mean) / std)
    assert dataset.targets.tolist() == [label for _, label in dataset] == [number % 10 for number in range(count)]


def test_grayscale_is_the_luma(cifar10_root):
    data = prepared(cifar10_root, grayscale=True)
    red, green, blue = pixels(cifar10_root, "test").float().unbind(dim=1)
    grey = (0.299 * red + 0.587 * green + 0.114 * blue) / 255
    found = images(data.monitor_dataset("test"))
    assert found.shape == (20, *data.shape) == (20, 1, 32, 32)
    torch.testing.assert_close(found[:, 0], (grey - 0.481) / 0.239, atol=1.5 / 255 / 0.239, rtol=0)


def test_augment_crops_and_mirrors(cifar10_root):
    data = prepared(cifar10_root, augment=True)
    (plain, _), dataset = data.monitor_dataset("train")[7], data.train_dataloader().dataset
    black = (0 - torch.tensor(data.mean)) / torch.tensor(data.std)
    border = black.reshape(3, 1, 1).expand(3, 40, 40).clone()
    border[:, 4:36, 4:36] = plain
    crops = [border[:, top : top + 32, left : left + 32] for top in range(9) for left in range(9)]
    allowed = torch.stack([*crops, *(crop.flip(-1) for crop in crops)]).flatten(1)
    drawn = [
        torch.isclose(dataset[7][0].flatten(), allowed, atol=1e-5).all(dim=1).nonzero().tolist() for _ in range(40)
    ]
    kinds = [match for ((match,),) in drawn]  # each draw is exactly one of the 2 x 81 images
    assert min(kinds) < 81 <= max(kinds)
    assert len(set(kinds)) > 20


def test_unpacks_the_archive_that_is_there(make_cifar10, no_network):
    data = prepared(make_cifar10(train=40, packed=True))
    assert len(data.monitor_dataset("train")) == 40


@pytest.mark.parametrize("name", ["data_batch_1", "test_batch", "batches.meta"])
def test_a_missing_file_is_named(cifar10_root, name):
    file = cifar10_root / "cifar-10-batches-py" / name
    file.unlink()
    data = CIFAR10(root=str(cifar10_root), download=False)
    data.prepare_data()
    with pytest.raises(FileNotFoundError) as error:
        data.setup("fit")
    expected = f"CIFAR10: {file} is missing; set download=True, or copy the files of CIFAR10 to {file.parent}"
    assert str(error.value) == expected


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_truncated_file_is_named(cifar10_root, name):
    file = cifar10_root / "cifar-10-batches-py" / name
    file.write_bytes(file.read_bytes()[:-10])
    remedy = f"delete it and set download=True, or copy the files of CIFAR10 to {file.parent}"
    with pytest.raises(OSError, match=f"^CIFAR10: {re.escape(f'{file} is broken; {remedy}')}$"):
        CIFAR10(root=str(cifar10_root), download=False).setup("fit")


def test_a_broken_pickle_with_the_right_checksum(cifar10_root, monkeypatch):
    file = cifar10_root / "cifar-10-batches-py" / "test_batch"
    file.write_bytes(file.read_bytes()[:100])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", hashlib.md5(file.read_bytes()).hexdigest()]])
    with pytest.raises(OSError, match=rf"^CIFAR10: {file.parent} is broken; delete it") as error:
        CIFAR10(root=str(cifar10_root), download=False).setup("fit")
    assert isinstance(error.value.__cause__, pickle.UnpicklingError | EOFError)


def test_download_without_a_network(tmp_path, no_network):
    with pytest.raises(FileNotFoundError) as error:
        CIFAR10(root=str(tmp_path)).prepare_data()
    folder = tmp_path / "cifar-10-batches-py"
    assert str(error.value) == (
        f"CIFAR10: {folder}/data_batch_1 is missing and no download succeeded (URLError: <urlopen error Network is "
        f"unreachable>); copy the files of CIFAR10 to {folder}"
    )


@pytest.mark.parametrize("size", [0, 100, -100])
def test_a_broken_archive_with_the_right_checksum(make_cifar10, monkeypatch, size):
    root = make_cifar10(packed=True)
    archive = root / "cifar-10-python.tar.gz"
    archive.write_bytes(archive.read_bytes()[:size])
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    with pytest.raises(OSError, match=r"^CIFAR10: .* is (missing|broken)") as error:
        CIFAR10(root=str(root)).prepare_data()
    assert "\n" not in str(error.value)
    assert not isinstance(error.value.__cause__, AttributeError | NameError)


def test_root_may_start_at_home(cifar10_root, monkeypatch):
    monkeypatch.setenv("HOME", str(cifar10_root.parent))
    assert len(prepared("~/cifar10").monitor_dataset("test")) == 20
    assert not Path("~").exists()

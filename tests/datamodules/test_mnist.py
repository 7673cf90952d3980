import gzip
import re

import numpy as np
import pytest
import torch

from netprism.datamodules import MNIST


def pixels(root, split, count):
    """The images as the format says: a header of 16 bytes, then one byte per pixel."""
    content = (root / "MNIST" / "raw" / f"{split}-images-idx3-ubyte").read_bytes()
    return torch.tensor(np.frombuffer(content, np.uint8, offset=16).reshape(count, 1, 28, 28).copy())


def prepared(root, **kwargs):
    data = MNIST(root=str(root), **kwargs)
    data.prepare_data()
    data.setup("fit")
    return data


@pytest.mark.parametrize(("split", "prefix", "count"), [("train", "train", 50), ("test", "t10k", 20)])
def test_reads_and_normalises_what_the_files_hold(mnist_root, split, prefix, count):
    data = prepared(mnist_root)
    dataset = data.monitor_dataset(split)
    images = torch.stack([image for image, _ in dataset])
    assert images.shape == (count, *data.shape)
    torch.testing.assert_close(images, (pixels(mnist_root, prefix, count) / 255 - 0.1307) / 0.3081)
    assert dataset.targets.tolist() == [label for _, label in dataset] == [number % 10 for number in range(count)]


@pytest.mark.parametrize(("size", "before", "after"), [(32, 2, 2), (29, 0, 1)])
def test_a_larger_image_has_a_black_border(mnist_root, size, before, after):
    data = prepared(mnist_root, image_size=size)
    image = data.read("test").images[3]
    assert image.shape == data.shape == (1, size, size)
    assert torch.equal(image[:, before : size - after, before : size - after], pixels(mnist_root, "t10k", 20)[3])
    assert image.sum() == pixels(mnist_root, "t10k", 20)[3].sum()


def test_image_size_must_not_be_smaller_than_an_image():
    with pytest.raises(ValueError, match=r"^image_size is 20: it must be at least 28, the size of an image$"):
        MNIST(image_size=20)


def test_unpacks_the_archives_that_are_there(make_mnist, no_network):
    data = prepared(make_mnist(train=30, packed=True))
    assert len(data.monitor_dataset("train")) == 30


def test_missing_files_without_download(tmp_path):
    data = MNIST(root=str(tmp_path), download=False)
    data.prepare_data()
    folder = tmp_path / "MNIST" / "raw"
    expected = (
        f"MNIST: {folder}/train-images-idx3-ubyte is missing; set download=True, or copy the files of MNIST to {folder}"
    )
    with pytest.raises(FileNotFoundError) as error:
        data.setup("fit")
    assert str(error.value) == expected


def test_download_without_a_network(tmp_path, no_network):
    with pytest.raises(FileNotFoundError) as error:
        MNIST(root=str(tmp_path)).prepare_data()
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(
        f"MNIST: {tmp_path}/MNIST/raw/train-images-idx3-ubyte is missing and no download succeeded"
    )
    assert "Network is unreachable" in message
    assert message.endswith(f"copy the files of MNIST to {tmp_path}/MNIST/raw")


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
@pytest.mark.parametrize("size", [0, 2, 6, 20])
def test_a_truncated_file_is_named(mnist_root, name, size):
    file = mnist_root / "MNIST" / "raw" / name
    file.write_bytes(file.read_bytes()[:size])
    remedy = f"delete it and set download=True, or copy the files of MNIST to {file.parent}"
    for read in (MNIST(root=str(mnist_root)).prepare_data, lambda: MNIST(root=str(mnist_root)).setup("fit")):
        with pytest.raises(OSError, match=f"^MNIST: {re.escape(f'{file} is broken; {remedy}')}$") as error:
            read()
        assert error.value.__cause__ is not None


def test_a_truncated_test_file_is_found_in_setup(mnist_root):
    file = mnist_root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(OSError, match=r"^MNIST: .*t10k-labels-idx1-ubyte is broken"):
        prepared(mnist_root)


def test_files_of_two_data_sets_do_not_mix(mnist_root):
    raw = mnist_root / "MNIST" / "raw"
    (raw / "train-labels-idx1-ubyte").write_bytes((raw / "t10k-labels-idx1-ubyte").read_bytes())
    with pytest.raises(OSError, match=rf"^MNIST: {raw} is broken") as error:
        MNIST(root=str(mnist_root), download=False).setup("fit")
    assert str(error.value.__cause__).startswith("50 images have 20 labels")


def test_a_truncated_archive(make_mnist, no_network):
    root = make_mnist(packed=True)
    archive = root / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    archive.write_bytes(gzip.compress(b"something else")[:-4])
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte is missing and no download succeeded"):
        MNIST(root=str(root)).prepare_data()

import pytest
import torch
from sklearn.datasets import load_digits

from netprism.datamodules import Digits


def split(data, name):
    dataset = data.monitor_dataset(name)
    return torch.stack([image for image, _ in dataset]), dataset.targets


def bilinear(image, size, row, column):
    """A pixel of an enlarged image, by hand: pixels are squares that cover the image, outside it the border goes on."""

    def neighbours(position):
        position = max((position + 0.5) * len(image) / size - 0.5, 0.0)
        return int(position), min(int(position) + 1, len(image) - 1), position % 1

    (top, bottom, down), (left, right, along) = neighbours(row), neighbours(column)
    above = (1 - along) * image[top][left] + along * image[top][right]
    below = (1 - along) * image[bottom][left] + along * image[bottom][right]
    return (1 - down) * above + down * below


def test_images_are_normalised_digits_of_the_declared_shape():
    data = Digits()
    (train, train_labels), (test, test_labels) = split(data, "train"), split(data, "test")
    assert (train.shape, test.shape) == ((1437, *data.shape), (360, *data.shape))
    assert train.dtype == torch.float32
    assert (train_labels.dtype, len(train_labels), len(test_labels)) == (torch.int64, 1437, 360)
    images = torch.cat([train, test])
    assert abs(images.mean()) < 0.01
    assert abs(images.std() - 1) < 0.01


@pytest.mark.parametrize("size", [12, 32])
def test_images_are_enlarged_bilinearly(size):
    original, enlarged = (Digits(image_size=pixels).read("train").images[17, 0] for pixels in (8, size))
    expected = [[bilinear(original, size, row, column) for column in range(size)] for row in range(size)]
    torch.testing.assert_close(enlarged, torch.tensor(expected))


def test_splits_are_a_partition_with_equal_shares_of_each_class():
    data = Digits(image_size=8)
    images = torch.cat([data.read("train").images, data.read("test").images]).flatten(1)
    everything = torch.tensor(load_digits().data / 16, dtype=torch.float32)
    assert sorted(images.tolist()) == sorted(everything.tolist())
    train, test = data.read("train").targets.bincount(), data.read("test").targets.bincount()
    assert (test / (train + test) - 0.2).abs().max() < 0.005


def test_labels_belong_to_their_images():
    labels = {tuple(digit): label for digit, label in zip(*load_digits(return_X_y=True), strict=True)}
    source = Digits(image_size=8).read("test")
    found = [labels[tuple((image.flatten() * 16).tolist())] for image, _ in source]
    assert found == source.targets.tolist()


def test_split_depends_on_the_seed_alone():
    torch.manual_seed(0)
    first = Digits(image_size=8).read("test").images
    torch.manual_seed(1)
    assert torch.equal(Digits(image_size=8).read("test").images, first)
    assert not torch.equal(Digits(image_size=8, seed=1).read("test").images, first)


def test_nothing_is_downloaded(no_network):
    data = Digits(root="/nonexistent")
    data.prepare_data()
    data.setup("fit")


def test_image_size_must_be_positive():
    with pytest.raises(ValueError, match=r"^image_size is 0: it must be at least 1$"):
        Digits(image_size=0)

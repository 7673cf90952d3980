from jsonargparse import ArgumentParser

from netprism.callbacks import GatingEntropy
from netprism.callbacks._monitor_data import targets_of


def train_data(node):
    """The data set of a monitor that a config describes."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--monitor", type=GatingEntropy)
    monitor = {"class_path": "netprism.callbacks.GatingEntropy", "init_args": {"train_data": node}}
    return parser.instantiate(parser.parse_object({"monitor": monitor})).monitor._given["train"]


def test_a_config_names_a_data_set_of_torchvision_with_its_transforms():
    transforms = [
        {"class_path": "torchvision.transforms.v2.Grayscale"},
        {"class_path": "torchvision.transforms.ToTensor"},
        {"class_path": "torchvision.transforms.v2.Normalize", "init_args": {"mean": [0.5], "std": [0.5]}},
    ]
    compose = {"class_path": "torchvision.transforms.v2.Compose", "init_args": {"transforms": transforms}}
    options = {"size": 6, "image_size": [3, 8, 8], "transform": compose}
    found = train_data({"class_path": "torchvision.datasets.FakeData", "init_args": options})
    assert len(found) == 6
    image, _ = found[0]
    assert image.shape == (1, 8, 8)
    assert -1 <= image.min() < 0 < image.max() <= 1


def test_a_config_names_a_data_module_for_a_monitor():
    digits = {"class_path": "netprism.datamodules.Digits", "init_args": {"image_size": 8}}
    options = {"data": digits, "split": "train"}
    found = train_data({"class_path": "netprism.datamodules.monitor_images", "init_args": options})
    assert len(found) == 1437
    assert targets_of(found).bincount().min() > 100

"""Images of a data module for `train_data` and `test_data` of a monitor, as a config can write them."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset

from netprism.datamodules.base import ImageDataModule, Split


def monitor_images(data: ImageDataModule, split: Split = "test") -> Dataset[Any]:
    """Returns the images of a data module as in evaluation, for a monitor of a training on other data.

    Args:
        data: The data module; in a config, a class path with its `init_args`. Its files must be there.
        split: "train" or "test".
    """
    return data.monitor_dataset(split)

"""What monitors need of a trainer, for a network that is not trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import Precision
from torch import Tensor, distributed, nn
from torch.utils.data import DataLoader, TensorDataset

from netprism.callbacks._monitor_data import HasMonitorDataset


class Still:
    """A trainer that does not train: data, ranks and precision, without folder and loggers.

    Args:
        data: Data module; or loader, data set, or tensors `(images, labels)` or images; or a dict of two of those,
            "train" and "test".

    Raises:
        ValueError: A dict has other keys.
    """

    current_epoch = global_step = 0
    max_epochs, max_steps, should_stop, fast_dev_run, sanity_checking = 1, -1, False, False, False
    log_dir = None

    def __init__(self, data: Any) -> None:  # noqa: ANN401 - anybody's data
        self.loggers: list[Any] = []
        self.callback_metrics: dict[str, Any] = {}
        self.precision_plugin = Precision()
        self.progress_bar_callback = self  # there is a terminal or there is none, see `View.progress`
        self.datamodule = data if isinstance(data, HasMonitorDataset) else None
        self.train_dataloader: Any = None
        self.val_dataloaders: Any = None
        if isinstance(data, pl.LightningDataModule):
            data.prepare_data()
            data.setup("fit")
        if self.datamodule is not None:
            return
        if isinstance(data, pl.LightningDataModule):
            data = {"train": data.train_dataloader(), "test": data.val_dataloader()}
        if isinstance(data, Mapping) and not set(data) <= {"train", "test"}:
            raise ValueError(f"data is a dict of {', '.join(map(str, data))}; expected train and test")
        parts = data if isinstance(data, Mapping) else {"train": data}
        self.train_dataloader = _loader(parts.get("train", parts.get("test")))
        self.val_dataloaders = _loader(parts["test"]) if {"train", "test"} <= set(parts) else None

    @property
    def world_size(self) -> int:
        """Number of processes of torch's group, 1 without one."""
        return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1

    @property
    def global_rank(self) -> int:
        """Rank of this process."""
        return distributed.get_rank() if self.world_size > 1 else 0

    @property
    def is_global_zero(self) -> bool:
        """Whether this is the first process."""
        return self.global_rank == 0


class Whole(pl.LightningModule):
    """A plain network as a LightningModule, whose layers keep their names.

    Args:
        net: The network.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net


def as_module(model: nn.Module) -> pl.LightningModule:
    """Returns a model as a LightningModule that knows on which device it is."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is a {type(model).__name__}; expected a module of torch, or a dict of them by name")
    is_lightning = any(kind.__name__ == "LightningModule" for kind in type(model).__mro__)  # of either package
    module: Any = model if is_lightning else Whole(model)
    tensor = next(model.parameters(), next(model.buffers(), None))
    found: pl.LightningModule = module.to(torch.device("cpu") if tensor is None else tensor.device)
    return found


def _loader(data: Any) -> Any:  # noqa: ANN401 - anybody's data
    if isinstance(data, Tensor):
        return DataLoader(TensorDataset(data))
    if isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        return DataLoader(TensorDataset(*data))
    if data is None or isinstance(data, DataLoader):
        return data
    if not hasattr(data, "__getitem__") and not hasattr(data, "__iter__"):
        raise ValueError(f"data is a {type(data).__name__}; expected a data set, a loader, a data module or tensors")
    return DataLoader(data)

"""The networks that a command names, and the data that they were trained on."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
from jsonargparse import ArgumentParser
from omegaconf import OmegaConf
from torch import nn

from netprism.callbacks._calling import callable_and_network
from netprism.datamodules.base import ImageDataModule
from netprism.runs.named_networks import named_network
from netprism.runs.teachers import EXPERIMENTS, build_network, config_for


def untrained_network(name: str) -> tuple[nn.Module, nn.Module, tuple[int, ...] | None]:
    """Returns the network that a name means, what is called, and the size of its samples where a run tells.

    Args:
        name: A checkpoint of a run, an experiment, a class path, or a model of torchvision or timm. Weights are not
            loaded.

    Raises:
        ValueError: There is no such network.
        FileNotFoundError: There is no such checkpoint.
    """
    is_experiment = (EXPERIMENTS / f"{name}.yaml").is_file()
    if is_experiment or Path(name).suffix in (".ckpt", ".pt", ".pth"):
        if not is_experiment and not Path(name).is_file():
            raise FileNotFoundError(f"no checkpoint {name}")
        checkpoint, experiment = (None, name) if is_experiment else (name, None)
        network = build_network(config_for(checkpoint, experiment)).eval()
        try:
            size: tuple[int, ...] | None = tuple(data_of_run(checkpoint, experiment).shape)
        except ValueError:
            size = None
        return network, network, size
    module = named_network(name).eval()
    called, network = callable_and_network(module) if isinstance(module, pl.LightningModule) else (module, module)
    return network, called, None


def data_of_run(checkpoint: str | None, experiment: str | None) -> ImageDataModule:
    """Returns the data module that a run was trained on, for its size and normalisation; nothing is read.

    Raises:
        ValueError: No run is known, or its data module is not of netprism.
    """
    config = config_for(checkpoint, experiment)
    node = OmegaConf.select(OmegaConf.load(config), "data")
    if isinstance(node, str):
        node = OmegaConf.load(config.parent / node)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--data", type=ImageDataModule)
    data: ImageDataModule = parser.instantiate(parser.parse_object({"data": OmegaConf.to_container(node)})).data
    return data

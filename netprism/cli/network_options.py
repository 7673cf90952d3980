"""Which trained network a command is about: the options that name it, and the data that it was trained on."""

from __future__ import annotations

import argparse

from jsonargparse import ArgumentParser
from omegaconf import OmegaConf

from netprism.datamodules.base import ImageDataModule
from netprism.runs.teachers import config_for


def add_network_options(parser: argparse.ArgumentParser, layers: str) -> None:
    """Adds --checkpoint, --experiment, --net, --weights and --layers; `layers` is the help of the last one."""
    group = parser.add_argument_group("network", "a checkpoint, an experiment that has been run, or --net")
    group.add_argument("--checkpoint", help="of a netprism run, with its size and normalisation; or a state dict")
    group.add_argument("--experiment", help="take its newest finished run, or the network of --checkpoint")
    group.add_argument("--net", help="one of torchvision's models")
    group.add_argument("--weights", help="torchvision's name of its weights, such as DEFAULT")
    group.add_argument("--layers", nargs="+", help=layers)


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

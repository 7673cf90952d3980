"""Which trained network a command is about: the options that name it."""

from __future__ import annotations

import argparse


def add_network_options(parser: argparse.ArgumentParser, layers: str, many: bool = False) -> None:
    """Adds --checkpoint, --experiment, --net, --weights and --layers.

    Args:
        parser: Parser of a command.
        layers: Help of --layers.
        many: Whether there may be several checkpoints.
    """
    group = parser.add_argument_group("network", "a checkpoint, an experiment that has been run, or --net")
    group.add_argument(
        "--checkpoint",
        nargs="+" if many else None,
        help="of a netprism run, with its size and normalisation; or a state dict",
    )
    group.add_argument("--experiment", help="take its newest finished run, or the network of --checkpoint")
    group.add_argument("--net", help="a model of torchvision or timm (timm.NAME), or a class path")
    group.add_argument("--weights", help="the library's name of its weights, such as DEFAULT, or a file")
    group.add_argument("--layers", nargs="+", help=layers)

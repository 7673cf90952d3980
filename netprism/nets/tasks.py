"""Tasks of known depth: random networks with a chosen number of ReLUs, for other networks to mimic.

Weights are Kaiming's, so that features keep their size through the layers; there are no biases.
"""

from __future__ import annotations

from itertools import pairwise

from torch import nn


def conv_task(
    relus: int, in_channels: int = 3, channels: int = 16, out_channels: int = 64, pool: int = 4
) -> nn.Sequential:
    """Returns Task-n: a convolution, n times a ReLU and a convolution, a max-pool, and a 1x1 convolution.

    Args:
        relus: The number n of ReLUs.
        in_channels: Channels of the images.
        channels: Channels of all 3x3 convolutions.
        out_channels: Channels of the output.
        pool: Factor by which the max-pool reduces height and width.

    Raises:
        ValueError: relus is negative, or a size is below 1.

    Shape:
        (N, in_channels, H, W) to (N, out_channels, H / pool, W / pool).

    Source: Ren et al. 2020, section 4 and appendix, https://arxiv.org/abs/2006.15920.

    Example:
        >>> import torch
        >>> conv_task(2, in_channels=1)(torch.zeros(1, 1, 32, 32)).shape
        torch.Size([1, 64, 8, 8])
    """
    _check(relus, in_channels=in_channels, channels=channels, out_channels=out_channels, pool=pool)

    def conv(inputs: int, outputs: int, size: int) -> nn.Conv2d:
        return nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)

    layers: list[nn.Module] = [conv(in_channels, channels, 3)]
    for _ in range(relus):
        layers += [nn.ReLU(), conv(channels, channels, 3)]
    return _kaiming(nn.Sequential(*layers, nn.MaxPool2d(pool), conv(channels, out_channels, 1)))


def mlp_task(relus: int, in_features: int, width: int = 1024, out_features: int = 1024) -> nn.Sequential:
    """Returns a task MLP: a linear layer on the flattened image, n times a ReLU and a linear layer.

    Args:
        relus: The number n of ReLUs.
        in_features: Numbers of an image.
        width: Units of the hidden layers.
        out_features: Units of the output.

    Raises:
        ValueError: relus is negative, or a size is below 1.

    Shape:
        (N, ...) with `in_features` numbers per image to (N, out_features).

    Source: Ren et al. 2022, section 4.3, https://arxiv.org/abs/2205.01940.
    """
    _check(relus, in_features=in_features, width=width, out_features=out_features)
    widths = [in_features, *[width] * relus, out_features]
    layers: list[nn.Module] = [nn.Flatten()]
    for number, (inputs, outputs) in enumerate(pairwise(widths)):
        layers += [nn.ReLU()] if number else []
        layers.append(nn.Linear(inputs, outputs, bias=False))
    return _kaiming(nn.Sequential(*layers))


def _check(relus: int, **sizes: int) -> None:
    if relus < 0:
        raise ValueError(f"relus is {relus}; expected a number >= 0")
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}; expected a number >= 1")


def _kaiming(network: nn.Sequential) -> nn.Sequential:
    for layer in network:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return network

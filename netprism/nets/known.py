"""What is known of torchvision's and timm's networks: layers worth looking at, weights of auxiliary losses.

There is no table of gating layers: `netprism.gates.record_gates` finds them all by running the network.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TypeVar

from torch import nn

MOST = 6  # layers of a transformer that are looked at

Rule = Callable[[nn.Module], list[str]]
Known = TypeVar("Known")


def tap_points(network: nn.Module) -> tuple[str, ...]:
    """Returns names of the layers worth looking at, shallow to deep; none where nobody has chosen any.

    They are the network's own `tap_points`, or those of the table below for its class or a class that it extends.

    Args:
        network: Any module.

    Example:
        >>> from torchvision.models import resnet18
        >>> tap_points(resnet18())
        ('layer1', 'layer2', 'layer3', 'layer4')
    """
    own = getattr(network, "tap_points", None)
    if own:
        return tuple(own)
    rule = _of_class(network, TAP_POINTS)
    return () if rule is None else tuple(rule(network))


def auxiliary_weight(network: nn.Module) -> float:
    """Returns the weight of the loss of an auxiliary head, .3 for networks that are not in the table below."""
    return _of_class(network, AUXILIARY_WEIGHTS) or 0.3


def _of_class(network: nn.Module, table: Mapping[str, Known]) -> Known | None:
    """What a table says of the class of a network, or of a class that it extends."""
    names = (f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(network).__mro__)
    return next((table[name] for name in names if name in table), None)


def named(pattern: str) -> Rule:
    """Layers whose whole name fits a pattern; of more than six, those that divide them evenly, the last one too."""

    def rule(network: nn.Module) -> list[str]:
        found = [name for name, _ in network.named_modules() if re.fullmatch(pattern, name)]
        if len(found) <= MOST:
            return found
        return [found[round((i + 1) * len(found) / MOST) - 1] for i in range(MOST)]

    return rule


def pools(network: nn.Module) -> list[str]:
    """The poolings of a network that has no other stages."""
    return [name for name, m in network.named_modules() if name.startswith("features.") and isinstance(m, nn.MaxPool2d)]


def before_strides(network: nn.Module) -> list[str]:
    """The last parts of `features` before their size is halved, and the very last; the first of them is the stem."""
    parts = list(network.get_submodule("features").children())
    halves = [any(isinstance(m, nn.Conv2d) and max(m.stride) > 1 for m in part.modules()) for part in parts]
    ends = [i for i in range(len(parts)) if i == len(parts) - 1 or halves[i + 1]]
    return [f"features.{i}" for i in ends]


TAP_POINTS: dict[str, Rule] = {
    "torchvision.ResNet": named(r"layer\d"),  # ResNeXt and Wide ResNet as well
    "torchvision.VGG": pools,
    "torchvision.AlexNet": pools,
    "torchvision.DenseNet": named(r"features\.denseblock\d"),
    "torchvision.MobileNetV2": before_strides,
    "torchvision.MobileNetV3": before_strides,
    "torchvision.EfficientNet": before_strides,
    "torchvision.ConvNeXt": before_strides,
    "torchvision.SwinTransformer": named(r"features\.[1357]"),
    "torchvision.VisionTransformer": named(r"encoder\.layers\.encoder_layer_\d+"),
    "torchvision.GoogLeNet": named(r"inception(3b|4e|5b)"),
    "torchvision.Inception3": named(r"Mixed_(5d|6e|7c)"),
    "torchvision.RegNet": named(r"trunk_output\.block\d"),
    "torchvision.ShuffleNetV2": named(r"stage\d"),
    "timm.ResNet": named(r"layer\d"),
    "timm.VGG": pools,
    "timm.DenseNet": named(r"features\.denseblock\d"),
    "timm.EfficientNet": named(r"blocks\.\d+"),  # MobileNetV2 as well
    "timm.MobileNetV3": named(r"blocks\.\d+"),
    "timm.ConvNeXt": named(r"stages\.\d"),
    "timm.VisionTransformer": named(r"blocks\.\d+"),
}

AUXILIARY_WEIGHTS = {
    "torchvision.GoogLeNet": 0.3,  # Szegedy et al. 2015, section 5, https://arxiv.org/abs/1409.4842
    "torchvision.Inception3": 0.4,  # torchvision's tutorial of fine-tuning, and the authors' own TensorFlow code
}

"""VGG-11 for images of 32 x 32 or 28 x 28 pixels."""

from collections import OrderedDict

from torch import Tensor, nn

from netprism.nets._layers import conv3x3, kaiming_convs

_STAGES = ((1,), (2,), (4, 4), (8, 8), (8, 8))  # output channels of the convolutions of each stage, in units of `width`


class VGG11(nn.Module):
    """The revised VGG-11: its eight convolutions, each with BatchNorm, and one linear layer.

    "Understanding, Analyzing, and Optimizing the Complexity of Deep Models" (section 4.4) takes it from "Three Factors
    Influencing Minima in SGD" and draws no plan of it. Revised here against configuration A of the VGG paper:

    - a BatchNorm follows each convolution, which therefore has no bias;
    - one linear layer stands for the three fully connected ones and their dropout: after five poolings an image of
      32 x 32 is a single pixel of 8 `width` channels;
    - pooling rounds up, which changes nothing at 32 x 32 and lets 28 x 28 end at a single pixel, too (28, 14, 7, 4, 2,
      1).

    Layers are named as in the VGG paper: `features.conv3_2`, `features.bn3_2`, `features.relu3_2`, `features.pool3`.

    Args:
        num_classes: Number of logits.
        in_channels: Number of channels of the images.
        width: Number of channels of the first convolution; 2, 4, 8 and 8 times as many in the later stages.

    Raises:
        ValueError: if an image is higher or wider than 32 pixels, since it would not end at a single one.

    Shape:
        (N, in_channels, H, W) to (N, num_classes).

    Source: Simonyan and Zisserman 2015, table 1, column A, https://arxiv.org/abs/1409.1556.

    Example:
        >>> VGG11(width=8).gating_layers[:3]
        ('features.relu1_1', 'features.relu2_1', 'features.relu3_1')
    """

    tap_points: tuple[str, ...] = tuple(f"features.pool{stage}" for stage in range(1, 6))
    gating_layers: tuple[str, ...] = tuple(
        f"features.relu{stage}_{i}" for stage, convs in enumerate(_STAGES, 1) for i in range(1, len(convs) + 1)
    )

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: int = 64) -> None:
        super().__init__()
        self.features = _features(in_channels, width)
        self.classifier = nn.Linear(8 * width, num_classes)
        kaiming_convs(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) to logits (N, num_classes)."""
        height, width = x.shape[-2:]
        if max(height, width) > 32:
            raise ValueError(f"VGG11 takes images of at most 32 x 32 pixels, got {height} x {width}")
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


def _features(in_channels: int, width: int) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for stage, convs in enumerate(_STAGES, 1):
        for i, multiple in enumerate(convs, 1):
            channels = multiple * width
            layers[f"conv{stage}_{i}"] = conv3x3(in_channels, channels)
            layers[f"bn{stage}_{i}"] = nn.BatchNorm2d(channels)
            layers[f"relu{stage}_{i}"] = nn.ReLU()
            in_channels = channels
        layers[f"pool{stage}"] = nn.MaxPool2d(2, ceil_mode=True)
    return nn.Sequential(layers)

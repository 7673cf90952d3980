"""A network that rebuilds the input of another one from the features of a layer."""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from netprism.module_names import key_of_layer
from netprism.nets._layers import kaiming_convs

_LARGEST_FACTOR = 4  # the channels double with each halving of the image, up to this factor


class Decoder(nn.Module):
    """Six residual blocks from features to images; the first ones double height and width until the image's is reached.

    A block that doubles has a transposed convolution on both its tracks, the others have an identity as shortcut. The
    doublings come first, as many as the ratio of the sizes requires; where the last size is not the image's (the ratio
    is no power of two), a bilinear interpolation follows. Features without pixels, (d,) or (d, 1, 1), first go through
    a linear layer to a sixteenth of the image's height and width.

    A BatchNorm comes first, so that the scale of the features does not matter; the output is not bounded, since the
    range of normalised images is unknown.

    Args:
        feature_shape: Shape (C, H, W) or (d,) of the features of one image.
        input_shape: Shape (C, H, W) of the images.
        width: Number of channels at the size of the image; twice as many at half of it, at most four times as many.
        blocks: Number of residual blocks.

    Raises:
        ValueError: `feature_shape` or `input_shape` has another form, or there is no block; in the forward pass,
            features have another shape, as those of another layer do.

    Shape:
        (N, *feature_shape) to (N, *input_shape).

    Source: Ma et al. 2019, section 4, which leaves the widths open, https://openreview.net/forum?id=BygG3hEYvB.

    Example:
        >>> import torch
        >>> decoder = Decoder((64, 8, 8), (1, 32, 32), width=8)
        >>> decoder(torch.zeros(2, 64, 8, 8)).shape
        torch.Size([2, 1, 32, 32])
        >>> [block.doubles for block in decoder.blocks]
        [True, True, False, False, False, False]
    """

    def __init__(
        self, feature_shape: tuple[int, ...], input_shape: tuple[int, int, int], width: int = 32, blocks: int = 6
    ) -> None:
        super().__init__()
        if len(feature_shape) not in (1, 3) or min(feature_shape) < 1:
            raise ValueError(f"features of an image have the shape {feature_shape}; expected (C, H, W) or (d,)")
        if len(input_shape) != 3 or min(input_shape) < 1:
            raise ValueError(f"images have the shape {input_shape}; expected (C, H, W)")
        if blocks < 1 or width < 1:
            raise ValueError(f"width is {width} and blocks is {blocks}; both must be at least 1")
        self.feature_shape, self.input_shape = tuple(feature_shape), tuple(input_shape)
        without_pixels = math.prod(feature_shape[1:]) == 1
        grid = tuple(math.ceil(side / 16) for side in input_shape[1:]) if without_pixels else feature_shape[1:]
        doublings = min(_doublings(grid, input_shape[1:]), blocks)
        widths = [width * min(2 ** max(doublings - done, 0), _LARGEST_FACTOR) for done in range(blocks + 1)]
        from_features = _from_vector if without_pixels else _from_map
        self.stem = from_features(feature_shape[0], widths[0], grid)
        self.blocks = nn.ModuleList(
            _Block(before, after, doubles=done < doublings) for done, (before, after) in enumerate(pairwise(widths))
        )
        kaiming_convs(self)
        self.to_image = nn.Conv2d(width, input_shape[0], kernel_size=3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, *feature_shape) to images (N, *input_shape)."""
        if features.shape[1:] != self.feature_shape:
            raise ValueError(
                f"a decoder of features {self.feature_shape} was given {tuple(features.shape[1:])}, another layer's?"
            )
        x = self.stem(features)
        for block in self.blocks:
            x = block(x)
        if x.shape[2:] != self.input_shape[1:]:
            x = F.interpolate(x, size=self.input_shape[1:], mode="bilinear", align_corners=False)
        images: Tensor = self.to_image(x)
        return images


def load_decoders(checkpoint: Mapping[str, Any]) -> dict[str, Decoder]:
    """Returns the decoders in a checkpoint of `netprism.lightning_modules.InputDecoder`, by layer, in eval mode.

    Args:
        checkpoint: The checkpoint, as `netprism.runs.checkpoints.read_training` reads it.

    Raises:
        ValueError: The checkpoint is of another module.
    """
    options, weights = checkpoint.get("hyper_parameters", {}), checkpoint["state_dict"]
    if "feature_shapes" not in options:
        raise ValueError("the checkpoint has no decoders; expected one of an InputDecoder")
    decoders = {}
    for layer in options["feature_shapes"]:
        prefix = f"decoders.{key_of_layer(layer)}."
        shape = tuple(options["feature_shapes"][layer])
        decoder = Decoder(shape, tuple(options["input_shape"]), options["width"], options["blocks"])
        own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        decoder.load_state_dict(own)
        decoders[layer] = decoder.eval()
    return decoders


class _Block(nn.Module):
    """`ReLU(BN(conv(ReLU(BN(conv(x))))) + shortcut(x))`; to double, the first conv and the shortcut are transposed."""

    def __init__(self, in_channels: int, channels: int, doubles: bool) -> None:
        super().__init__()
        self.doubles = doubles
        self.conv1 = _doubling(in_channels, channels) if doubles else _conv(in_channels, channels)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = _doubling(in_channels, channels) if doubles else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        out: Tensor = (residual + self.shortcut(x)).relu()
        return out


def _conv(in_channels: int, channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, kernel_size=3, padding=1, bias=False)


def _doubling(in_channels: int, channels: int) -> nn.ConvTranspose2d:
    # Each output pixel meets 2 x 2 of the 4 x 4 weights: an odd kernel would make a checkerboard.
    return nn.ConvTranspose2d(in_channels, channels, kernel_size=4, stride=2, padding=1, bias=False)


def _from_map(features: int, channels: int, grid: tuple[int, ...]) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(features), _conv(features, channels), nn.ReLU())


def _from_vector(features: int, channels: int, grid: tuple[int, ...]) -> nn.Sequential:
    to_grid = nn.Linear(features, channels * math.prod(grid))
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(features), to_grid, nn.ReLU(), nn.Unflatten(1, (channels, *grid)))


def _doublings(grid: tuple[int, ...], image: tuple[int, ...]) -> int:
    """How often both sides have to double until none is smaller than the image's."""
    ratios = [target / side for side, target in zip(grid, image, strict=True)]
    return max(0, math.ceil(math.log2(max(ratios))))

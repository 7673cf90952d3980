"""Auto-encoders: the layers of a network up to one of them, and a decoder that rebuilds the image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from netprism.discarding.decoder import Decoder
from netprism.nets.known import tap_points
from netprism.taps import tap


class AutoEncoder(nn.Module):
    """Rebuilds images from a layer of a network; both parts are trained.

    `netprism.lightning_modules.Distillation` trains it to mimic its input, see `discarding/autoencoder_digits`.

    Args:
        encoder: Any network for images. What lies behind the layer is run and not trained.
        layer: The layer whose features are decoded; in the paper the last one before the fully connected one.
        input_shape: Shape (C, H, W) of an image.
        width: Number of channels of the decoder at the size of the image.
        blocks: Number of residual blocks of the decoder.

    Attributes:
        tap_points: Layers of the encoder that are worth looking at, as they are named in here.

    Raises:
        ValueError: The encoder has no such layer, or its output is neither (N, C, H, W) nor (N, d).

    Shape:
        (N, C, H, W) to the same.

    Source: Ma et al. 2019, section 4 and figure 3, https://openreview.net/forum?id=BygG3hEYvB.

    Example:
        >>> from netprism.nets import ResNet
        >>> net = AutoEncoder(ResNet(depth=8, in_channels=1, width=4), "layer3", (1, 16, 16), width=4)
        >>> net(torch.zeros(2, 1, 16, 16)).shape, net.tap_points[-1]
        (torch.Size([2, 1, 16, 16]), 'encoder.layer3')
    """

    def __init__(
        self, encoder: nn.Module, layer: str, input_shape: tuple[int, int, int], width: int = 32, blocks: int = 6
    ) -> None:
        super().__init__()
        self.encoder, self.layer = encoder.requires_grad_(True), layer
        points = tap_points(encoder)
        points = points[: points.index(layer) + 1] if layer in points else points
        self.tap_points: tuple[str, ...] = tuple(f"encoder.{point}" for point in points)
        example = torch.zeros(1, *input_shape, device=next(encoder.parameters()).device)
        self.eval()
        features = self._features(example)
        used = torch.autograd.grad(features.sum(), list(encoder.parameters()), allow_unused=True)
        for parameter, gradient in zip(encoder.parameters(), used, strict=True):
            parameter.requires_grad_(gradient is not None)  # DDP asks for a gradient of each that is trained
        self.decoder = Decoder(tuple(features.shape[1:]), input_shape, width, blocks)
        self.train()

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to rebuilt ones."""
        rebuilt: Tensor = self.decoder(self._features(x))
        return rebuilt

    def _features(self, x: Tensor) -> Tensor:
        with tap(self.encoder, [self.layer]) as features:
            self.encoder(x)
        found: Tensor = features[self.layer]
        return found

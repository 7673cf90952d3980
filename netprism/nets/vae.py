"""A variational auto-encoder whose code is classified, fully connected as in the paper, or convolutional."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from netprism.nets._layers import kaiming_convs

_HALVINGS = 3  # of a convolutional encoder


class Coded(NamedTuple):
    """What a variational auto-encoder makes of images.

    Attributes:
        rebuilt: Reconstructed images (N, C, H, W), from a sample of the code.
        mean: Means of the code (N, latent).
        log_variance: Logarithms of its variances (N, latent).
        logits: Logits (N, num_classes), from the same sample.
    """

    rebuilt: Tensor
    mean: Tensor
    log_variance: Tensor
    logits: Tensor


class GaussianSample(nn.Module):
    """Draws from N(mean, exp(log_variance)) in train mode, with a gradient to both; gives the mean in eval mode."""

    def forward(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """Means and logarithms of variances (N, latent) to a sample (N, latent)."""
        if not self.training:
            return mean
        return mean + (log_variance / 2).exp() * torch.randn_like(mean)


class VAE(nn.Module):
    """Encoder, sampled code, decoder, and a classifier of the code with two ReLUs, whose gates are looked at.

    Encoder and decoder have two fully connected layers each. Gates depend on the sample as well as on the image: in
    train mode H(Sigma) is more than I(X; Sigma), which eval mode gives.

    Args:
        num_classes: Number of logits.
        shape: Shape (C, H, W) of an image.
        latent: Number of dimensions of the code.
        hidden: Number of units between an image and its code, and of each hidden layer of the classifier.

    Shape:
        (N, C, H, W) to (N, num_classes).

    Source: Ren et al. 2022, figure 6, https://arxiv.org/abs/2205.01940, which states no widths; Kingma and Welling
    2014, https://arxiv.org/abs/1312.6114.

    Example:
        >>> net = VAE(shape=(1, 8, 8))
        >>> net.coded(torch.zeros(2, 1, 8, 8)).rebuilt.shape, net.gating_layers
        (torch.Size([2, 1, 8, 8]), ('classifier.relu1', 'classifier.relu2'))
    """

    tap_points: tuple[str, ...] = ("sample", "classifier.relu1", "classifier.relu2")
    gating_layers: tuple[str, ...] = ("classifier.relu1", "classifier.relu2")

    def __init__(
        self, num_classes: int = 10, shape: Sequence[int] = (1, 28, 28), latent: int = 16, hidden: int = 256
    ) -> None:
        super().__init__()
        self.shape, self.latent = tuple(shape), latent
        self.encoder = self._encoder(hidden)
        self.sample = GaussianSample()
        self.decoder = self._decoder(hidden)
        self.classifier = nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(latent, hidden),
                relu1=nn.ReLU(),
                fc2=nn.Linear(hidden, hidden),
                relu2=nn.ReLU(),
                fc3=nn.Linear(hidden, num_classes),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, num_classes)."""
        logits: Tensor = self.classifier(self.sample(*self._code(x)))
        return logits

    def coded(self, x: Tensor) -> Coded:
        """Images (N, C, H, W) to their reconstructions, codes and logits."""
        mean, log_variance = self._code(x)
        sample = self.sample(mean, log_variance)
        return Coded(self.decoder(sample).reshape(x.shape), mean, log_variance, self.classifier(sample))

    def _code(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        return mean, log_variance

    def _encoder(self, hidden: int) -> nn.Module:
        pixels = math.prod(self.shape)
        return nn.Sequential(nn.Flatten(), nn.Linear(pixels, hidden), nn.ReLU(), nn.Linear(hidden, 2 * self.latent))

    def _decoder(self, hidden: int) -> nn.Module:
        return nn.Sequential(nn.Linear(self.latent, hidden), nn.ReLU(), nn.Linear(hidden, math.prod(self.shape)))


class ConvVAE(VAE):
    """The same with convolutions: three of stride 2 to 1/8 of height and width, and three transposed ones back.

    Args:
        num_classes: Number of logits.
        shape: Shape (C, H, W) of an image; H and W are multiples of 8.
        latent: Number of dimensions of the code.
        hidden: Number of units of each hidden layer of the classifier; the convolutions have hidden / 8, / 4 and / 2
            channels.

    Raises:
        ValueError: H or W is no multiple of 8.
    """

    def __init__(
        self, num_classes: int = 10, shape: Sequence[int] = (3, 32, 32), latent: int = 64, hidden: int = 256
    ) -> None:
        if any(side % 2**_HALVINGS for side in shape[1:]):
            raise ValueError(f"shape is {tuple(shape)}; expected height and width to be multiples of {2**_HALVINGS}")
        super().__init__(num_classes, shape, latent, hidden)
        kaiming_convs(self)

    def _encoder(self, hidden: int) -> nn.Module:
        channels = (self.shape[0], *self._channels(hidden))
        layers: list[nn.Module] = []
        for before, after in pairwise(channels):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(self._units(hidden), 2 * self.latent))

    def _decoder(self, hidden: int) -> nn.Module:
        *_, last = channels = self._channels(hidden)
        height, width = (side // 2**_HALVINGS for side in self.shape[1:])
        layers: list[nn.Module] = [nn.Linear(self.latent, self._units(hidden)), nn.ReLU()]
        layers.append(nn.Unflatten(1, (last, height, width)))
        down = (*channels[::-1], self.shape[0])
        for before, after in pairwise(down):
            layers += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    def _channels(self, hidden: int) -> tuple[int, int, int]:
        return max(hidden // 8, 1), max(hidden // 4, 1), max(hidden // 2, 1)

    def _units(self, hidden: int) -> int:
        height, width = (side // 2**_HALVINGS for side in self.shape[1:])
        return int(self._channels(hidden)[-1] * height * width)

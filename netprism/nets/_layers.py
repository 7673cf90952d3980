"""Pieces that more than one net is made of."""

from torch import Tensor, nn
from torch.nn import functional as F


def conv3x3(in_channels: int, channels: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps H x W at stride 1; no bias, since a BatchNorm follows and subtracts it."""
    return nn.Conv2d(in_channels, channels, kernel_size=3, stride=stride, padding=1, bias=False)


def subsample_and_pad(x: Tensor, channels: int, stride: int) -> Tensor:
    """The shortcut without parameters: every `stride`-th pixel, and zeros for the channels that `x` lacks.

    Args:
        x: (N, C, H, W) with C <= `channels`.
        channels: Number of channels of the result; the zeros come after the channels of `x`.
        stride: Step in both directions of the image.

    Returns:
        (N, channels, ceil(H / stride), ceil(W / stride)); `x` itself where nothing changes.

    Source: option A of "Deep Residual Learning for Image Recognition", sections 3.3 and 4.2.
    """
    missing = channels - x.shape[1]
    if missing == 0 and stride == 1:
        return x
    return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, 0, missing))


class Shortcut(nn.Module):
    """`subsample_and_pad` as a module, so that a shortcut has a name and can be looked at, replaced or removed.

    Args:
        channels: Number of channels of the result.
        stride: Step in both directions of the image.
    """

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.channels, self.stride = channels, stride

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, channels, H / stride, W / stride)."""
        return subsample_and_pad(x, self.channels, self.stride)

    def extra_repr(self) -> str:
        """Returns the arguments."""
        return f"{self.channels}, stride={self.stride}"


def kaiming_convs(net: nn.Module) -> None:
    """Draws the weights of every convolution of `net` from N(0, 2 / fan_out), biases zero.

    Source: He et al. 2015, eq. (14), which keeps the variance of gradients, https://arxiv.org/abs/1502.01852.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)

"""Disentangler nets: a fixed width and a chosen number of ReLUs, to find out how much of a feature these can make."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from netprism.nets._layers import conv3x3, kaiming_convs, subsample_and_pad

ORDERS = (4, 7, 13, 25, 49, 97)  # the paper's: 1, 2, 4, 8, 16 and 32 blocks per stage
FEW_ORDERS = ORDERS[:4]  # those of its experiments on reliability

_BIG = 64  # pixels of the shorter side from which on images are first reduced four times, as in networks for them


class Block(nn.Module):
    """One layer of weights and one ReLU: `ReLU(BN(layer(x)) + shortcut(x))`, or stacked without the shortcut.

    Args:
        layer: A 3x3 convolution or a linear layer.
        skip: Whether there is a shortcut. It has no parameters, and the layer needs at least as many outputs as inputs.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear, skip: bool) -> None:
        super().__init__()
        self.layer, self.skip = layer, skip
        self.bn: nn.BatchNorm2d | nn.BatchNorm1d
        if isinstance(layer, nn.Conv2d):
            self.bn = nn.BatchNorm2d(layer.out_channels)
        else:
            self.bn = nn.BatchNorm1d(layer.out_features)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) or (N, D) to the layer's number of outputs, with H and W divided by its stride."""
        y: Tensor = self.bn(self.layer(x))
        if self.skip and isinstance(self.layer, nn.Conv2d):
            y = y + subsample_and_pad(x, self.layer.out_channels, self.layer.stride[0])
        elif self.skip:
            y = y + F.pad(x, (0, y.shape[1] - x.shape[1]))
        out: Tensor = self.relu(y)
        return out


class DisentanglerNet(nn.Module):
    """Phi^(l): a net that mimics a feature with l = 3m + 1 ReLUs and 3m + 2 layers of weights.

    It consists of a first convolution, three stages of m blocks with 128 r, 256 r and 512 r channels, and a 1x1
    convolution to the feature's channels. The size is halved as often as the feature's size requires: up to three times
    by strides of the stages, and twice more by a 7x7 convolution and a max-pool for images of more than 64 pixels. A
    feature whose size is no such fraction (or 1 x 1) is met by averaging over adaptive windows before the last
    convolution, which is linear and so adds no order. For a feature without positions, (D,), all convolutions are
    replaced by linear layers on the flattened input.

    Args:
        input_shape: Shape of one input, (C, H, W); any shape for a feature (D,).
        feature_shape: Shape of one feature, (C, H, W) or (D,).
        order: The order l, one of 4, 7, 10, 13, ...
        width: The factor r; the stages have 128 r, 256 r and 512 r channels.
        skip: Whether the net is residual; otherwise it is stacked, without shortcuts.

    Raises:
        ValueError: The order is not 3m + 1, the width gives no whole number of channels, or a shape has another form.

    Shape:
        (N, *input_shape) to (N, *feature_shape).

    Source: Ren et al. 2020, section 3.1, appendix A, fig. 10, https://arxiv.org/abs/2006.15920.

    Example:
        >>> net = DisentanglerNet((3, 32, 32), (64, 8, 8), order=7, width=0.125)
        >>> net(torch.randn(2, 3, 32, 32)).shape, net.body(torch.randn(2, 3, 32, 32)).shape
        (torch.Size([2, 64, 8, 8]), torch.Size([2, 64, 8, 8]))
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        feature_shape: Sequence[int],
        order: int,
        width: float = 1.0,
        skip: bool = True,
    ) -> None:
        super().__init__()
        blocks = blocks_of_order(order)
        widths = stage_widths(width)
        self.order, self.width, self.skip = order, width, skip
        self.input_shape, self.feature_shape = tuple(input_shape), tuple(feature_shape)
        if len(self.feature_shape) == 1:
            self.size: tuple[int, int] | None = None
            first: nn.Module = nn.Sequential(
                nn.Flatten(), Block(_linear(math.prod(self.input_shape), widths[0]), skip=False)
            )
            strides = (1, 1, 1)
            out: nn.Linear | nn.Conv2d = nn.Linear(widths[-1], self.feature_shape[0])
        elif len(self.feature_shape) == 3 and len(self.input_shape) == 3:
            self.size = (self.feature_shape[1], self.feature_shape[2])
            first, strides = _first_convolution(self.input_shape, self.size, widths[0])
            out = nn.Conv2d(widths[-1], self.feature_shape[0], kernel_size=1)
        else:
            raise ValueError(
                f"feature_shape is {self.feature_shape} for inputs of shape {self.input_shape}; expected (C, H, W) for "
                "(C, H, W), or (D,)"
            )
        self.first = first
        self.stages = nn.ModuleList(
            _stage(inputs, outputs, blocks, stride, skip, conv=self.size is not None)
            for inputs, outputs, stride in zip((widths[0], *widths[:-1]), widths, strides, strict=True)
        )
        kaiming_convs(self)
        # The first guess is 0. 150 steps from kaiming's weights left 2.1 of a feature's variance unexplained, not .05.
        for parameter in out.parameters():
            nn.init.zeros_(parameter)
        self.out = out

    @property
    def body_channels(self) -> int:
        """Channels of `body(x)`: 512 r."""
        return stage_widths(self.width)[-1]

    def body(self, x: Tensor) -> Tensor:
        """Runs all l ReLUs without `out`: returns (N, 512 r, H, W) of the feature's size, or (N, 512 r)."""
        x = self.first(x)
        for stage in self.stages:
            x = stage(x)
        return x if self.size is None or x.shape[-2:] == self.size else F.adaptive_avg_pool2d(x, self.size)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, *input_shape) to (N, *feature_shape)."""
        feature: Tensor = self.out(self.body(x))
        return feature

    @torch.no_grad()
    def start_from(self, shallower: DisentanglerNet) -> None:
        """Copies the weights of a shallower net: its first and last layer, and the blocks that it has of each stage.

        In the residual form the blocks that it lacks start with a BatchNorm weight of zero. They pass their input on
        unchanged, so that this net begins as exactly the function of the shallower one. In the stacked form they start
        at random, and the function is another one.

        Raises:
            ValueError: The other net is deeper, or differs in more than the order.
        """
        alike = ("input_shape", "feature_shape", "width", "skip")
        differs = [name for name in alike if getattr(self, name) != getattr(shallower, name)]
        if differs or shallower.order > self.order:
            what = differs[0] if differs else "order"
            raise ValueError(
                f"{what} of the shallower net is {getattr(shallower, what)}; expected {getattr(self, what)}"
            )
        self.first.load_state_dict(shallower.first.state_dict())
        self.out.load_state_dict(shallower.out.state_dict())
        for stage, source in zip(self.stages, shallower.stages, strict=True):
            trained = list(source.children())
            for i, block in enumerate(stage.children()):
                if i < len(trained):
                    block.load_state_dict(trained[i].state_dict())
                elif self.skip and isinstance(block, Block):
                    nn.init.zeros_(block.bn.weight)


class Disentanglers(nn.Module):
    """One disentangler net per order, shallow to deep: Phi^(l) for several l.

    Args:
        input_shape: Shape of one input, as in `DisentanglerNet`.
        feature_shape: Shape of one feature, as in `DisentanglerNet`.
        orders: Numbers of ReLUs, rising.
        width: The factor r of each net.
        skip: Whether each net is residual.

    Raises:
        ValueError: The orders do not rise or are not 3m + 1, or `DisentanglerNet` refuses an option.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        feature_shape: Sequence[int],
        orders: Sequence[int] = ORDERS,
        width: float = 1.0,
        skip: bool = True,
    ) -> None:
        super().__init__()
        self.orders = check_orders(orders)
        self.nets = nn.ModuleList(
            DisentanglerNet(input_shape, feature_shape, order, width, skip) for order in self.orders
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps inputs (N, ...) to Phi^(l) (N, ...), one for each order."""
        return [net(x) for net in self.nets]

    def __getitem__(self, position: int) -> DisentanglerNet:
        """Returns the net of the order at this position."""
        net = self.nets[position]
        assert isinstance(net, DisentanglerNet)
        return net

    def __len__(self) -> int:
        return len(self.orders)


def check_orders(orders: Sequence[int]) -> tuple[int, ...]:
    """Returns the orders as a tuple.

    Raises:
        ValueError: There are none, one is not 3m + 1, or they do not rise.
    """
    for order in orders:
        blocks_of_order(order)
    if not orders or any(a >= b for a, b in pairwise(orders)):
        raise ValueError(f"orders is {tuple(orders)}; expected one or more that rise, such as {ORDERS}")
    return tuple(orders)


def blocks_of_order(order: int) -> int:
    """Returns m of l = 3m + 1.

    Raises:
        ValueError: There is no m >= 1.
    """
    blocks, rest = divmod(order - 1, 3)
    if rest or blocks < 1:
        raise ValueError(f"order is {order}; expected 3m + 1 with m >= 1 blocks per stage: 4, 7, 10, 13, ...")
    return blocks


def stage_widths(width: float) -> tuple[int, int, int]:
    """Returns 128 r, 256 r and 512 r.

    Raises:
        ValueError: 128 r is not a whole number >= 1.
    """
    channels = round(128 * width)
    if channels < 1 or channels != 128 * width:
        raise ValueError(f"width is {width}; expected n / 128 with a whole n >= 1, so that stages have whole channels")
    return channels, 2 * channels, 4 * channels


def halvings(size: Sequence[int], wanted: Sequence[int]) -> int:
    """Returns how often a size can be halved, rounding up, without becoming smaller than the wanted one anywhere.

    Example:
        >>> halvings((32, 32), (8, 8)), halvings((224, 224), (14, 14)), halvings((28, 28), (5, 5))
        (2, 4, 2)
    """
    count = 0
    while True:
        smaller = tuple(-(-n // 2) for n in size)
        if smaller == tuple(size) or any(n < m for n, m in zip(smaller, wanted, strict=True)):
            return count
        size, count = smaller, count + 1


def _first_convolution(
    input_shape: tuple[int, ...], size: tuple[int, int], channels: int
) -> tuple[nn.Module, tuple[int, int, int]]:
    """The layers before the stages, and the strides of these."""
    count = halvings(input_shape[1:], size)
    if count >= 2 and min(input_shape[1:]) > _BIG:
        conv = nn.Conv2d(input_shape[0], channels, kernel_size=7, stride=2, padding=3, bias=False)
        first: nn.Module = nn.Sequential(Block(conv, skip=False), nn.MaxPool2d(3, stride=2, padding=1))
        count -= 2
    else:
        first = Block(conv3x3(input_shape[0], channels), skip=False)
    # The second stage is the first to be halved, as in ResNets of three stages; then the third, then the first.
    halved = {0: (), 1: (1,), 2: (1, 2)}.get(count, (0, 1, 2))
    one, two, three = (2 if stage in halved else 1 for stage in range(3))
    return first, (one, two, three)


def _stage(inputs: int, outputs: int, blocks: int, stride: int, skip: bool, conv: bool) -> nn.Sequential:
    """`blocks` blocks, the first of which changes width and size."""

    def layer(i: int) -> nn.Conv2d | nn.Linear:
        wide = outputs if i else inputs
        return conv3x3(wide, outputs, 1 if i else stride) if conv else _linear(wide, outputs)

    return nn.Sequential(*(Block(layer(i), skip) for i in range(blocks)))


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer in front of a BatchNorm and a ReLU: no bias, kaiming weights."""
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layer

"""Residual networks: ResNet-8, 14, 20, 32, 44, ... of three stages, their pre-activation form, and PreActResNet-18/34.

The first two are for small images and have depth 6n + 2: a convolution, three stages of n blocks with two convolutions
each, and a linear layer. The stages have `width`, 2 `width` and 4 `width` channels on H x W, H/2 x W/2 and H/4 x W/4
pixels. Any image size works.
"""

from torch import Tensor, nn

from netprism.nets._layers import Shortcut, conv3x3, kaiming_convs


class BasicBlock(nn.Module):
    """`ReLU(BN(conv(ReLU(BN(conv(x))))) + shortcut(x))`; its one ReLU module is two gating layers, `relu` and `relu#1`.

    Args:
        in_channels: Number of channels of the input.
        channels: Number of channels of the output, at least `in_channels`.
        stride: Stride of the first convolution and of the shortcut.
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = Shortcut(channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        residual = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu(residual + self.shortcut(x))
        return out


class PreActBlock(nn.Module):
    """`conv(ReLU(BN(conv(ReLU(BN(x)))))) + shortcut(x)`; its one ReLU module is two gating layers, `relu` and `relu#1`.

    Args:
        in_channels: Number of channels of the input.
        channels: Number of channels of the output, at least `in_channels`.
        stride: Stride of the first convolution and of the shortcut.
        activate_shortcut: Whether to give the shortcut `ReLU(BN(x))` instead of `x`. The first block of a net does:
            there, `x` is the output of a convolution that nothing has activated yet.
        project: Where the shape changes, a 1 x 1 convolution of `ReLU(BN(x))` is the shortcut.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        activate_shortcut: bool = False,
        project: bool = False,
    ) -> None:
        super().__init__()
        projects = project and (stride != 1 or in_channels != channels)
        self.shortcut = (
            nn.Conv2d(in_channels, channels, 1, stride, bias=False) if projects else Shortcut(channels, stride)
        )
        self.activate_shortcut = activate_shortcut or projects
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu = nn.ReLU()
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        activated = self.relu(self.bn1(x))
        residual: Tensor = self.conv2(self.relu(self.bn2(self.conv1(activated))))
        out: Tensor = residual + self.shortcut(activated if self.activate_shortcut else x)
        return out


class ResNet(nn.Module):
    """ResNet of depth 6n + 2 for small images, with shortcuts that have no parameters.

    Args:
        depth: Number of convolutions on the main path plus the linear layer: 8, 14, 20, 32, 44, or any other 6n + 2.
        num_classes: Number of logits.
        in_channels: Number of channels of the images.
        width: Number of channels of the first stage; the second and third have twice and four times as many.

    Raises:
        ValueError: if `depth` is not 6n + 2 with n >= 1.

    Shape:
        (N, in_channels, H, W) to (N, num_classes).

    Source: He et al. 2016, "Deep Residual Learning", section 4.2 (0.27M parameters at depth 20 on RGB images),
    https://arxiv.org/abs/1512.03385.

    Example:
        >>> net = ResNet(depth=8)
        >>> net.tap_points
        ('relu', 'layer1', 'layer2', 'layer3')
        >>> net.gating_layers[:3]
        ('relu', 'layer1.0.relu', 'layer1.0.relu#1')
    """

    def __init__(self, depth: int = 20, num_classes: int = 10, in_channels: int = 3, width: int = 16) -> None:
        super().__init__()
        blocks = blocks_per_stage(depth)
        self.conv1 = conv3x3(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.layer1 = nn.Sequential(*(BasicBlock(width, width) for _ in range(blocks)))
        self.layer2 = _downsampling_stage(BasicBlock, 2 * width, blocks)
        self.layer3 = _downsampling_stage(BasicBlock, 4 * width, blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, num_classes)
        kaiming_convs(self)
        self.tap_points: tuple[str, ...] = ("relu", "layer1", "layer2", "layer3")
        self.gating_layers: tuple[str, ...] = ("relu", *_block_gates(blocks))

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) to logits (N, num_classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


class PreActResNet(nn.Module):
    """ResNet of depth 6n + 2 with BatchNorm and ReLU before each convolution, so that shortcuts add up unchanged.

    The first block's shortcut starts from activated features, and a last BatchNorm and ReLU (`bn`, `relu`) follow the
    last block. Arguments, errors and shapes are those of :class:`ResNet`.

    Source: He et al. 2016, "Identity Mappings", section 4.1 and the appendix, https://arxiv.org/abs/1603.05027.

    Example:
        >>> net = PreActResNet(depth=8)
        >>> net.tap_points
        ('conv1', 'layer1', 'layer2', 'layer3', 'relu')
        >>> net.gating_layers[-2:]
        ('layer3.0.relu#1', 'relu')
    """

    def __init__(self, depth: int = 20, num_classes: int = 10, in_channels: int = 3, width: int = 16) -> None:
        super().__init__()
        blocks = blocks_per_stage(depth)
        self.conv1 = conv3x3(in_channels, width)
        self.layer1 = nn.Sequential(*(PreActBlock(width, width, activate_shortcut=i == 0) for i in range(blocks)))
        self.layer2 = _downsampling_stage(PreActBlock, 2 * width, blocks)
        self.layer3 = _downsampling_stage(PreActBlock, 4 * width, blocks)
        self.bn = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, num_classes)
        kaiming_convs(self)
        self.tap_points: tuple[str, ...] = ("conv1", "layer1", "layer2", "layer3", "relu")
        self.gating_layers: tuple[str, ...] = (*_block_gates(blocks), "relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) to logits (N, num_classes)."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        x = self.relu(self.bn(x))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


class PreActResNet18(nn.Module):
    """Pre-activation ResNet-18: four stages of two blocks with 64, 128, 256 and 512 channels, for large images.

    A stem of 7 x 7 with stride 2 and max-pooling leaves a quarter of height and width; with `small_images` it is 3 x 3
    without a stride. Where a shape changes, the shortcut is a 1 x 1 convolution.

    Args:
        num_classes: Number of logits.
        in_channels: Number of channels of the images.
        small_images: For images of about 32 x 32 to 64 x 64.
        width: Number of channels of the first stage.

    Shape:
        (N, in_channels, H, W) to (N, num_classes).

    Source: He et al. 2016, "Deep Residual Learning", table 1, with the blocks of "Identity Mappings",
    https://arxiv.org/abs/1603.05027.

    Example:
        >>> PreActResNet18().tap_points
        ('layer1', 'layer2', 'layer3', 'layer4', 'relu')
    """

    blocks: tuple[int, ...] = (2, 2, 2, 2)

    def __init__(
        self, num_classes: int = 10, in_channels: int = 3, small_images: bool = False, width: int = 64
    ) -> None:
        super().__init__()
        if small_images:
            self.conv1: nn.Module = conv3x3(in_channels, width)
            self.maxpool: nn.Module = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(in_channels, width, kernel_size=7, stride=2, padding=3, bias=False)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        stages = range(len(self.blocks))
        for stage, blocks in enumerate(self.blocks):
            channels = width * 2**stage
            before, stride = (width, 1) if stage == 0 else (channels // 2, 2)
            first = PreActBlock(before, channels, stride, activate_shortcut=stage == 0, project=True)
            others = (PreActBlock(channels, channels) for _ in range(blocks - 1))
            self.add_module(f"layer{stage + 1}", nn.Sequential(first, *others))
        self.bn = nn.BatchNorm2d(width * 2 ** stages[-1])
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width * 2 ** stages[-1], num_classes)
        kaiming_convs(self)
        self.tap_points: tuple[str, ...] = (*(f"layer{stage + 1}" for stage in stages), "relu")
        paths = [f"layer{i + 1}.{block}.relu" for i, blocks in enumerate(self.blocks) for block in range(blocks)]
        self.gating_layers: tuple[str, ...] = (*(name for path in paths for name in (path, f"{path}#1")), "relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) to logits (N, num_classes)."""
        x = self.maxpool(self.conv1(x))
        for stage in range(len(self.blocks)):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        x = self.relu(self.bn(x))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


class PreActResNet34(PreActResNet18):
    """Pre-activation ResNet-34: 3, 4, 6 and 3 blocks; arguments and shapes are those of :class:`PreActResNet18`."""

    blocks = (3, 4, 6, 3)


def blocks_per_stage(depth: int) -> int:
    """The n of depth = 6n + 2.

    Raises:
        ValueError: if there is no n >= 1.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth must be 6n + 2 (8, 14, 20, 26, 32, 38, 44, ...), got {depth}")
    return blocks


def _downsampling_stage(block: type[BasicBlock] | type[PreActBlock], channels: int, blocks: int) -> nn.Sequential:
    """A stage whose first block halves H and W and doubles the channels to `channels`."""
    first = block(channels // 2, channels, stride=2)
    return nn.Sequential(first, *(block(channels, channels) for _ in range(blocks - 1)))


def _block_gates(blocks: int) -> tuple[str, ...]:
    """Names of the gating layers of all blocks, in the order of the calls."""
    paths = [f"layer{stage}.{block}.relu" for stage in (1, 2, 3) for block in range(blocks)]
    return tuple(name for path in paths for name in (path, f"{path}#1"))

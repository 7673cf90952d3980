"""Fully connected networks of "Understanding, Analyzing, and Optimizing the Complexity of Deep Models", section 4.

The paper does not say how the weights start. Here they start as in `torch.nn.Linear`, with variance 1 / (3 inputs):
from the first to the last hidden layer of the residual MLP the standard deviation of features then goes from .7 to 1.5,
where Kaiming's 2 / inputs takes it from 1 to 32 (measured on white noise, width 3072, depth 10).
"""

from itertools import pairwise

from torch import Tensor, nn

MLP_MNIST = (784, 1024, 256, 128, 64, 10)
MLP_ALPHA = (784, 1024, 1024, 512, 512, 256, 256, 128, 128, 64, 16, 10)  # MNIST, with 11 layers instead of 5
MLP_BETA = (784, 1024, 256, 120, 84, 10)  # MNIST, the last three layers as wide as those of LeNet-5
MLP_CIFAR10 = (3072, 1024, 256, 128, 64, 10)


class MLP(nn.Module):
    """Fully connected layers `fc1`, `fc2`, ... with a ReLU between each two: `relu1`, `relu2`, ...

    Args:
        widths: Numbers of units per layer, from the flattened input to the logits. The paper's are here under their
            names: `MLP_MNIST`, `MLP_ALPHA`, `MLP_BETA` and `MLP_CIFAR10`.

    Raises:
        ValueError: if there are fewer than two widths, or if an input does not have `widths[0]` numbers per sample.

    Shape:
        (N, ...) with `widths[0]` numbers per sample to (N, widths[-1]).

    Example:
        >>> MLP(widths=(64, 32, 16, 10)).gating_layers
        ('relu1', 'relu2')
    """

    def __init__(self, widths: tuple[int, ...] = MLP_MNIST) -> None:
        super().__init__()
        if len(widths) < 2:
            raise ValueError(f"widths must be two numbers or more, input to logits, got {tuple(widths)}")
        for i, (inputs, outputs) in enumerate(pairwise(widths[:-1]), start=1):
            self.add_module(f"fc{i}", nn.Linear(inputs, outputs))
            self.add_module(f"relu{i}", nn.ReLU())
        self.add_module(f"fc{len(widths) - 1}", nn.Linear(widths[-2], widths[-1]))
        self.gating_layers: tuple[str, ...] = tuple(f"relu{i}" for i in range(1, len(widths) - 1))
        self.tap_points: tuple[str, ...] = self.gating_layers

    def forward(self, x: Tensor) -> Tensor:
        """Any (N, ...) with `widths[0]` numbers per sample to logits (N, widths[-1])."""
        assert isinstance(self.fc1, nn.Linear)  # perhaps not the first one: `fit_to` replaces it
        x = _flatten(x, self.fc1.in_features)
        for layer in self.children():
            x = layer(x)
        return x


class ResidualLayer(nn.Module):
    """`ReLU(x + fc(x))`, as wide as its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, width) to (N, width)."""
        out: Tensor = self.relu(x + self.fc(x))
        return out


class ResidualMLP(nn.Module):
    """`depth` fully connected layers and `depth` - 1 ReLUs, with a skip connection to each hidden layer.

    All that the paper says of its residual MLP (section 4.2 and a footnote of 4.3) is that each fully connected layer
    gets a skip connection, that there are 10 of them and 9 ReLUs, and that input and features are 3072-d. Read here as:
    the skip spans one fully connected layer and ends before the ReLU, `x <- ReLU(x + W x + b)`, as the shortcut of a
    ResNet block does, so that a gate tells the sign of the sum. The flattened image (3 x 32 x 32 = 3072 numbers) goes
    straight into the first such layer; the last layer, from `width` to `num_classes`, cannot have a skip.

    Args:
        width: Number of units of the input and of every hidden layer.
        depth: Number of fully connected layers, at least 2.
        num_classes: Number of logits.

    Raises:
        ValueError: if `depth` is below 2, or if an input does not have `width` numbers per sample.

    Shape:
        (N, ...) with `width` numbers per sample to (N, num_classes).

    Example:
        >>> ResidualMLP(width=64, depth=3).gating_layers
        ('layers.0.relu', 'layers.1.relu')
    """

    def __init__(self, width: int = 3072, depth: int = 10, num_classes: int = 10) -> None:
        super().__init__()
        if depth < 2:
            raise ValueError(f"depth must be 2 or more, got {depth}")
        self.width = width
        self.layers = nn.Sequential(*(ResidualLayer(width) for _ in range(depth - 1)))
        self.fc = nn.Linear(width, num_classes)
        self.tap_points: tuple[str, ...] = tuple(f"layers.{i}" for i in range(depth - 1))
        self.gating_layers: tuple[str, ...] = tuple(f"layers.{i}.relu" for i in range(depth - 1))

    def forward(self, x: Tensor) -> Tensor:
        """Any (N, ...) with `width` numbers per sample to logits (N, num_classes)."""
        logits: Tensor = self.fc(self.layers(_flatten(x, self.width)))
        return logits


def _flatten(x: Tensor, features: int) -> Tensor:
    """(N, ...) to (N, features)."""
    flat = x.flatten(1)
    if flat.shape[1] != features:
        raise ValueError(f"this net takes {features} numbers per sample, got {flat.shape[1]} (shape {tuple(x.shape)})")
    return flat

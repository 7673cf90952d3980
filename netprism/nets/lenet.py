"""LeNet-5 as it is trained today: ReLU instead of the squashing functions, max-pooling instead of subsampling."""

from torch import Tensor, nn


class LeNet5(nn.Module):
    """Two 5x5 convolutions with max-pooling and three fully connected layers: 6, 16, 120, 84, `num_classes` wide.

    Args:
        num_classes: Number of logits.
        in_channels: Number of channels of the images.
        image_size: Height and width of the images: 32 as in the paper, or 28, which the first convolution pads by 2.

    Raises:
        ValueError: if `image_size` is neither 28 nor 32.

    Shape:
        (N, in_channels, image_size, image_size) to (N, num_classes).

    Source: LeCun et al. 1998, section II.B, https://doi.org/10.1109/5.726791, with
    a linear layer for the RBF output and every map of C3 joined to every map of S2. Its C5, a 5x5 convolution of
    5x5 pixels, is `fc1` here.

    Example:
        >>> LeNet5().gating_layers
        ('relu1', 'relu2', 'relu3', 'relu4')
    """

    tap_points: tuple[str, ...] = ("pool1", "pool2", "relu3", "relu4")
    gating_layers: tuple[str, ...] = ("relu1", "relu2", "relu3", "relu4")

    def __init__(self, num_classes: int = 10, in_channels: int = 1, image_size: int = 28) -> None:
        super().__init__()
        if image_size not in (28, 32):
            raise ValueError(f"image_size must be 28 or 32, got {image_size}")
        self.conv1 = nn.Conv2d(in_channels, 6, kernel_size=5, padding=(32 - image_size) // 2)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(6, 16, kernel_size=5)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.relu3 = nn.ReLU()
        self.fc2 = nn.Linear(120, 84)
        self.relu4 = nn.ReLU()
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, image_size, image_size) to logits (N, num_classes)."""
        x = self.pool1(self.relu1(self.conv1(x)))
        x = self.pool2(self.relu2(self.conv2(x)))
        x = self.relu3(self.fc1(x.flatten(1)))
        logits: Tensor = self.fc3(self.relu4(self.fc2(x)))
        return logits

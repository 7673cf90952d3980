"""Networks to look into.

Each that classifies has two tuples of names, both shallow to deep: `tap_points`, the modules worth looking at with
:func:`netprism.taps.tap`, and `gating_layers`, what :func:`netprism.gates.record_gates` calls its ReLUs.
`tap_points(network)` knows those of torchvision's and timm's networks, too.
"""

from netprism.nets.fitting import fit_to, fitted
from netprism.nets.known import tap_points
from netprism.nets.lenet import LeNet5
from netprism.nets.mlp import MLP, MLP_ALPHA, MLP_BETA, MLP_CIFAR10, MLP_MNIST, ResidualMLP
from netprism.nets.resnet import PreActResNet, PreActResNet18, PreActResNet34, ResNet
from netprism.nets.tasks import conv_task, mlp_task
from netprism.nets.vae import VAE, ConvVAE
from netprism.nets.vgg import VGG11

__all__ = [
    "MLP",
    "MLP_ALPHA",
    "MLP_BETA",
    "MLP_CIFAR10",
    "MLP_MNIST",
    "VAE",
    "VGG11",
    "ConvVAE",
    "LeNet5",
    "PreActResNet",
    "PreActResNet18",
    "PreActResNet34",
    "ResNet",
    "ResidualMLP",
    "conv_task",
    "fit_to",
    "fitted",
    "mlp_task",
    "tap_points",
]

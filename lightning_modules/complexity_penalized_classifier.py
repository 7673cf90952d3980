"""A classifier that learns with gates of little entropy."""

from typing import Any

from pytorch_lightning import Callback
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn, optim

from netprism.callbacks import ComplexityPenalty
from netprism.lightning_modules.classifier import Classifier


class ComplexityPenalizedClassifier(Classifier):
    """Trains a network with the cross-entropy of its logits + weight * the complexity of its gates.

    In each batch the energy models of the gates take a step with the network frozen, then the network takes one with
    the energy models frozen. A `Classifier` that brings its own `ComplexityPenalty`: its keys are `Classifier`'s and
    that callback's, its weights and checkpoints those of a `Classifier`. `weight=0` trains like one, to the bit.

    Args:
        net: images (N, ...) to logits (N, num_classes).
        num_classes: the labels are 0 to num_classes - 1.
        optimizer: parameters to optimiser, as for `Classifier`.
        scheduler: likewise.
        weight: weight of the complexity, a sum over layers in nats.
        **penalty: the other options of `netprism.callbacks.ComplexityPenalty`, such as `layers`.

    Source: "Understanding, Analyzing, and Optimizing the Complexity of Deep Models", section 4.3 and appendix J.
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int = 10,
        optimizer: OptimizerCallable = optim.Adam,
        scheduler: LRSchedulerCallable | None = None,
        weight: float = 1e-3,
        **penalty: Any,
    ) -> None:
        super().__init__(net, num_classes, optimizer, scheduler)
        self.penalty = ComplexityPenalty(weight, **penalty)

    def configure_callbacks(self) -> list[Callback]:
        """Adds the penalty to those of the trainer."""
        return [self.penalty]

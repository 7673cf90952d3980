"""A classifier that penalises the entropy of its gates."""

from typing import Any

from pytorch_lightning import Callback
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn, optim

from netprism.callbacks import ComplexityPenalty
from netprism.lightning_modules.classifier import Classifier


class ComplexityPenalizedClassifier(Classifier):
    """Trains a network with the cross-entropy of its logits + weight * the complexity of its gates.

    In each batch the energy models of the gates take a step with the network frozen, then the network takes one with
    the energy models frozen. A `Classifier` that brings its own `ComplexityPenalty`: its keys are those of
    `Classifier` and of that callback, its weights and checkpoints those of a `Classifier`. With `weight=0` it trains
    bitwise like one.

    Args:
        net: Network from images (N, ...) to logits (N, num_classes).
        num_classes: See `Classifier`.
        optimizer: See `Classifier`.
        scheduler: See `Classifier`.
        auxiliary_weight: See `Classifier`.
        weight: Weight of the complexity, a sum over layers in nats.
        penalty: Other options of `netprism.callbacks.ComplexityPenalty`, such as `layers`.

    Source: Ren et al. 2022, section 4.3 and appendix J of the first version, https://arxiv.org/abs/2205.01940.
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int | None = None,
        optimizer: OptimizerCallable = optim.Adam,
        scheduler: LRSchedulerCallable | None = None,
        auxiliary_weight: float | None = None,
        weight: float = 1e-3,
        **penalty: Any,
    ) -> None:
        super().__init__(net, num_classes, optimizer, scheduler, auxiliary_weight)
        self.penalty = ComplexityPenalty(weight, **penalty)

    def configure_callbacks(self) -> list[Callback]:
        """Adds the penalty to the callbacks of the trainer."""
        return [self.penalty]

"""A trained classifier that is pruned in rounds, retrained after each, and given few values of weights at the end."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn

from netprism.interventions.compress import (
    begin_pruning,
    compressible_layers,
    layer_sizes,
    prune,
    share_weights,
    total_bytes,
)
from netprism.lightning_modules.classifier import Classifier


class CompressedClassifier(Classifier):
    """Prunes a trained network at the start of each round, retrains it, and shares its weights at the very end.

    The training and its keys are those of `Classifier`. The weights are shared before the last validation, so that
    `val/accuracy` of the last epoch is that of the compressed network.

    | key, once per epoch | meaning | unit | range | better |
    | --- | --- | --- | --- | --- |
    | `compression/kept` | fraction of the weights of the layers that is not 0 | 1 | 0 to 1 | lower |
    | `compression/kept/<layer>` | the same of one layer | 1 | 0 to 1 | lower |
    | `compression/bytes` | all parameters, stored as `netprism.interventions.LayerSize` says | byte | | lower |

    Checkpoints hold the plain weights of the network, as if it had never been pruned: `trained` and
    `load_state_dict` read them.

    Args:
        net: The trained network; its weights are changed.
        num_classes: See `Classifier`.
        optimizer: See `Classifier`.
        scheduler: See `Classifier`.
        s: Threshold of `netprism.interventions.prune`, in standard deviations of the weights of a layer.
        rounds: Number of rounds of pruning and retraining.
        epochs_per_round: Number of epochs of a round; the last round lasts until the end of the training.
        bits: Bits of a shared weight of a convolution and of a fully connected layer; None: weights are not shared.

    Raises:
        ValueError: A number is out of range, the training is shorter than the rounds, pruning would leave no weight of
            a layer, or a layer has fewer weights than centres; otherwise see `Classifier`.

    Source: Han et al. 2016, https://arxiv.org/abs/1510.00149; the use is that of Ren et al. 2020, figure 8,
    https://arxiv.org/abs/2006.15920.
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int | None = None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        scheduler: LRSchedulerCallable | None = None,
        s: float = 1.0,
        rounds: int = 3,
        epochs_per_round: int = 2,
        bits: tuple[int, int] | None = (8, 5),
    ) -> None:
        super().__init__(net.requires_grad_(True).train(), num_classes, optimizer, scheduler)
        for name, value in (("rounds", rounds), ("epochs_per_round", epochs_per_round)):
            if value < 1:
                raise ValueError(f"{name} is {value}; expected a number >= 1")
        self.s, self.rounds, self.epochs_per_round, self.bits = s, rounds, epochs_per_round, bits
        self.layers = compressible_layers(net)
        begin_pruning(net)

    def on_fit_start(self) -> None:
        """Refuses a training that ends before its last round."""
        epochs, needed = self.trainer.max_epochs, self.rounds * self.epochs_per_round
        if epochs is not None and 0 <= epochs < needed and not getattr(self.trainer, "fast_dev_run", False):
            raise ValueError(
                f"trainer.max_epochs is {epochs}; expected at least {needed}, {self.rounds} rounds of "
                f"{self.epochs_per_round} epochs"
            )

    def on_train_epoch_start(self) -> None:
        """Prunes where a round begins."""
        done, within = divmod(self.current_epoch, self.epochs_per_round)
        if not within and done < self.rounds:
            prune(self.net, self.s)

    def on_validation_epoch_start(self) -> None:
        """Shares the weights before the last validation."""
        if not self.trainer.sanity_checking and self.trainer.state.fn == "fit" and self._is_last_epoch:
            if self.trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
                self._share()

    def on_train_epoch_end(self) -> None:
        """Logs the sizes; shares the weights where there was no validation."""
        if self._is_last_epoch:
            self._share()
        sizes = layer_sizes(self.net)
        values = {f"compression/kept/{size.layer}": size.kept / size.weights for size in sizes}
        values["compression/kept"] = sum(size.kept for size in sizes) / sum(size.weights for size in sizes)
        values["compression/bytes"] = float(total_bytes(sizes, self.net)[1])
        # The ranks agree already: a maximum keeps the value bitwise.
        self.log_dict(values, sync_dist=True, reduce_fx="max")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Replaces masks and masked weights by plain weights."""
        state = checkpoint["state_dict"]
        for key in self._weights():
            if f"{key}_orig" in state:
                state[key] = state.pop(f"{key}_orig") * state.pop(f"{key}_mask")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Finds the masks again: what was pruned is 0."""
        state = checkpoint["state_dict"]
        for key in self._weights():
            if key in state:
                weight = state.pop(key)
                state[f"{key}_orig"], state[f"{key}_mask"] = weight, (weight != 0).to(weight)

    @property
    def _is_last_epoch(self) -> bool:
        trainer = self.trainer
        return trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs

    def _weights(self) -> list[str]:
        return [f"net.{layer}.weight" if layer else "net.weight" for layer in self.layers]

    def _share(self) -> None:
        """Weights that are shared already stay as they are: each is a centre."""
        if self.bits is not None:
            conv_bits, linear_bits = self.bits
            share_weights(self.net, conv_bits, linear_bits)

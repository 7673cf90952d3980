"""A training whose ranks have different numbers of batches is refused: they would get out of step."""

from __future__ import annotations

import math

import pytorch_lightning as pl

from netprism.distributed import all_gather_object


class CheckEqualBatches(pl.Callback):
    """Sees to it that each rank trains on as many batches as the others; `netprism fit` has it.

        trainer = Trainer(strategy="ddp", devices=2, callbacks=[CheckEqualBatches()])

    In DDP all ranks add up their gradients after each batch. A rank without further batches proceeds to the next epoch:
    its gradients are added to those of another epoch, or the others wait for it until the process group gives up, after
    half an hour by default. Lightning's own sampler and netprism's data modules deal out equally many; a sampler of
    one's own, or shards of different sizes with `use_distributed_sampler=False`, may not.

    One number is sent for each training, and for each epoch that reloads its data. Loaders without a length cannot
    be compared. Validation may be uneven: nothing is added up there between its batches.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compares the ranks.

        Raises:
            ValueError: on all of them, with the number of batches of each.
        """
        counts = all_gather_object(trainer.num_training_batches)
        if len(set(counts)) > 1 and all(map(math.isfinite, counts)):
            raise ValueError(
                f"ranks 0 to {len(counts) - 1} have {', '.join(map(str, counts))} training batches and would get "
                "out of step; deal out equally many, as torch's DistributedSampler does"
            )

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compares them again where the data may have changed."""
        if trainer.reload_dataloaders_every_n_epochs:  # type: ignore[attr-defined]  # set in one of Lightning's connectors
            self.on_train_start(trainer, pl_module)

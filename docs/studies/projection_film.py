"""How ten digits separate while ResNet-8 learns them: a projection after each epoch, rotated onto the one before.

    python docs/studies/projection_film.py

It trains on 500 digits for ten epochs, half a minute, and writes `docs/figures/projection_film.gif`.
"""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from netprism.callbacks._monitor import undisturbed
from netprism.datamodules import Digits
from netprism.figures import projection as figures
from netprism.knowledge.sample_projection import (
    SampleProjector,
    fit_projection,
    output_entropy,
    soft_targets,
    strength_correlation,
)
from netprism.lightning_modules import Classifier
from netprism.nets import ResNet
from netprism.taps import tap

EPOCHS = 10


class Film(pl.Callback):
    """Fits a projection to the training images after each epoch, starting from that of the epoch before."""

    def __init__(self, data: Digits) -> None:
        dataset = data.monitor_dataset("train")
        self.images, self.labels = torch.stack([image for image, _ in dataset]), dataset.targets
        self.last: SampleProjector | None = None
        self.scatters: list[figures.Scatter] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Classifier) -> None:
        """Adds a scatter to the film."""
        with undisturbed(pl_module.net), torch.no_grad(), tap(pl_module.net, "fc", detach=True, inputs=True) as taken:
            logits = pl_module.net.eval()(self.images)
        features = taken["fc"]
        self.last = fit_projection(features, logits, initial=self.last)
        g = self.last(features).detach()
        correlation = strength_correlation(g.norm(dim=1), output_entropy(soft_targets(logits)))
        title = f"epoch {trainer.current_epoch}, correlation of strength and entropy {correlation:.2f}"
        print(title, flush=True)
        self.scatters.append(figures.Scatter(g, self.labels, self.last.directions, title))


def main() -> None:
    """Trains and writes the film."""
    pl.seed_everything(0)
    data = Digits(train_samples=500, batch_size=32)
    film = Film(data)
    module = Classifier(
        ResNet(depth=8, in_channels=1),
        optimizer=lambda parameters: torch.optim.Adam(parameters, 1e-2),
        scheduler=lambda optimizer: CosineAnnealingLR(optimizer, EPOCHS),
    )
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    pl.Trainer(max_epochs=EPOCHS, accelerator="cpu", callbacks=[film], **quiet).fit(module, data)
    figures.film(film.scatters, Path(__file__).parents[1] / "figures" / "projection_film.gif")


if __name__ == "__main__":
    main()

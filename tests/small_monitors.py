"""All four monitors at their smallest, and a module that suits them."""

from functools import partial

import pytest
import torch
from third_party_modules import Net, Stranger
from torch.nn import functional as F

from netprism.callbacks import FeatureComponents, GatingEntropy, InformationDiscarding, KnowledgePoints
from netprism.knowledge.sample_projection import lbfgs

MONITORS = {
    "gates": partial(GatingEntropy, num_images=20, batch_size=7),
    "discarding": partial(
        InformationDiscarding, ["conv", "fc1"], num_images=8, num_scale_images=8, batch_size=3, num_vjps=2, num_shown=0
    ),
    "knowledge": partial(
        KnowledgePoints, ["conv", "fc1"], images_per_class=6, classes=3, steps=2, num_compared=4, batch_size=6,
        every_n_epochs=1,
    ),
    "components": partial(
        FeatureComponents, "conv", orders=(4, 7), width=1 / 64, steps=2, num_images=12, batch_size=5, every_n_epochs=1,
        measure_untrained=True,
    ),
}  # fmt: skip


class Logits(Net):
    def forward(self, x):
        return super().forward(x)["logits"]


class Module(Stranger):
    """Its network returns logits, as some monitors want it."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(Logits(dropout=0.5))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]), sync_dist=True)


def shorten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pictures, and without most steps of L-BFGS."""
    monkeypatch.setattr("pytorch_lightning.Trainer.log_dir", None)
    monkeypatch.setattr("netprism.knowledge.sample_projection.lbfgs", lambda parameters, _: lbfgs(parameters, steps=3))

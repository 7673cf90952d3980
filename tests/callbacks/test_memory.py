"""What is in memory after eight epochs with all monitors is what is there after two dozen."""

import gc

import pytest
import pytorch_lightning as pl
import torch
from third_party_modules import Stranger, fit

from netprism.callbacks import (
    ComplexityPenalty,
    FeatureComponents,
    GatingEntropy,
    InformationDiscarding,
    KnowledgePoints,
)
from netprism.knowledge.sample_projection import lbfgs
from netprism.loggers import ResumableCSVLogger

EPOCHS, FROM = 24, 8
pytestmark = pytest.mark.filterwarnings("ignore:knowledge. layer 'fc1' has one region")


class Weighing(pl.Callback):
    """Bytes of all tensors, and the number of objects that hold others, at the start of each epoch.

    A row of numbers is no such object: those of the curves, and of the logger, are meant to be kept.
    """

    def __init__(self):
        self.bytes, self.objects = [], []

    def on_train_epoch_start(self, trainer, pl_module):
        gc.collect()
        found = gc.get_objects()
        storages = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found if type(t) is torch.Tensor
        }
        self.bytes.append(sum(storages.values()))
        self.objects.append(len(found))


def all_monitors():
    few = {"batch_size": 8}
    return [
        GatingEntropy(num_images=8, **few),
        InformationDiscarding(["norm"], num_images=4, num_scale_images=4, num_vjps=1, num_shown=1),
        KnowledgePoints(
            ["conv", "fc1"], images_per_class=3, classes=3, tau=0.4, steps=1, num_compared=3, every_n_epochs=1
        ),
        FeatureComponents(
            "norm", orders=(4, 7), width=1 / 64, steps=1, every_n_epochs=1, num_shown=1, num_images=8, **few
        ),
        ComplexityPenalty(1e-3, estimator="energy", widths=(4,), chains=2, sampler_steps=1),
    ]


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """A film of few frames, so that it is full in time; few steps; no figures at the end.

    Half a million objects that were there before are put aside: to look through them takes longer than an epoch.
    """
    gc.freeze()
    monkeypatch.setattr("netprism.figures.knowledge.FRAMES", 4)
    monkeypatch.setattr("netprism.knowledge.sample_projection.lbfgs", lambda parameters, _: lbfgs(parameters, steps=2))
    monkeypatch.setattr("netprism.gates.layer_models.RECENT_ROWS", 32)
    for figures in ("knowledge", "components", "gating_entropy", "complexity_loss"):
        monkeypatch.setattr(f"netprism.figures.{figures}.draw", lambda *_: [])
    yield
    gc.unfreeze()


def test_memory_does_not_grow_over_the_epochs(tmp_path):
    weighing = Weighing()
    logger = ResumableCSVLogger(tmp_path)
    fit(Stranger(), *all_monitors(), weighing, folder=tmp_path, max_epochs=EPOCHS, logger=logger, limit_train_batches=1)
    assert len(weighing.bytes) == EPOCHS
    assert max(weighing.bytes[FROM:]) <= max(weighing.bytes[:FROM])
    assert max(weighing.objects[FROM:]) <= max(weighing.objects[:FROM]) + 10

"""Every monitor and every analysis logs the same numbers on one process, on two and on four, on each rank."""

from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from deadline import deadline
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from netprism.callbacks import (
    ComplexityPenalty,
    FeatureComponents,
    GatingEntropy,
    InformationDiscarding,
    KnowledgePoints,
)
from netprism.datamodules import ImageDataModule
from netprism.datamodules.base import ImageTensors
from netprism.discarding.decoder import Decoder
from netprism.knowledge.sample_projection import lbfgs
from netprism.lightning_modules import (
    Classifier,
    ComplexityPenalizedClassifier,
    Disentangler,
    InputDecoder,
    RegionProjection,
    ReliableDisentangler,
    SampleProjection,
)

PROCESSES = (2, 4)  # beside one
BATCH, SHAPE, CLASSES = 8, (1, 8, 8), 3
DEADLINE = 60  # seconds; a run takes one
MONITORED = 21  # images: three batches, so that one of four ranks has none

pytestmark = [
    pytest.mark.usefixtures("short_annealing"),
    pytest.mark.filterwarnings(
        "ignore:Found .* in eval mode",  # teachers, and all BatchNorms here, on purpose
        "ignore:.*does not have many workers",
        "ignore:knowledge. layer 'fc1' has one region",
    ),
]


class Images(ImageDataModule):
    """Noise on a pattern of the class.

    Of the training images each process has as many as the others. Of nine test images the first of two has five in two
    batches, the other four in one; of four the first has three in two, the others two in one.
    """

    num_classes, shape = CLASSES, SHAPE
    mean, std = (0.0,), (1.0,)

    def read(self, split):
        count, seed = {"train": (24, 0), "test": (9, 1)}[split]
        labels = torch.arange(count) % CLASSES
        patterns = torch.randn(CLASSES, *SHAPE, generator=torch.Generator().manual_seed(9))
        noise = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))
        return ImageTensors(patterns[labels] + noise, labels)


class Net(nn.Module):
    """A convolution with BatchNorm, a gated layer with dropout, a head."""

    def __init__(self, dropout=0.0, seed=0):
        torch.manual_seed(seed)
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4)
        self.fc1, self.fc2 = nn.Linear(36, 16), nn.Linear(16, CLASSES)
        self.dropout = dropout

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        return self.fc2(F.dropout(torch.relu(self.fc1(x.flatten(1))), self.dropout, self.training))


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05)


def standing_still(parameters):
    return torch.optim.SGD(parameters, lr=0.0)


def monitored():
    """All monitors in one training. It does not learn: sums of gradients round, which L-BFGS makes much of."""
    return Classifier(Net(dropout=0.5), CLASSES, standing_still), [make() for make in MONITORS]


def discarding():
    torch.manual_seed(1)
    decoder = Decoder((16,), SHAPE, width=2, blocks=2)
    options = {
        "num_images": MONITORED,
        "num_scale_images": MONITORED,
        "batch_size": BATCH,
        "num_vjps": 4,
        "num_shown": 0,
    }
    layers = ["norm", "fc1"]
    return InformationDiscarding(layers, decoders={"fc1": decoder}, masks=left_half, **options)


def left_half(batch, size):
    mask = torch.zeros(len(batch[0]), 1, *size, dtype=torch.bool)
    mask[..., : size[1] // 2] = True
    return mask


MONITORS = [
    partial(GatingEntropy, num_images=MONITORED, batch_size=BATCH, kinds=("relu", "dropout")),
    discarding,
    partial(
        KnowledgePoints, ["conv", "fc1"], images_per_class=7, classes=CLASSES, tau=0.36, steps=5, num_compared=10,
        batch_size=BATCH,
    ),
    partial(
        FeatureComponents, "norm", orders=(4, 7), width=1 / 64, steps=3, num_images=MONITORED, batch_size=BATCH,
        every_n_epochs=1, measure_untrained=True,
    ),
]  # fmt: skip
SMALL = {"layers": None, "widths": (4, 8), "chains": 8, "estimator": "energy"}  # energy models

ANALYSES = {
    "Classifier": lambda: Classifier(Net(), CLASSES, sgd),
    "ComplexityPenalizedClassifier": lambda: ComplexityPenalizedClassifier(Net(), CLASSES, sgd, weight=0.01, **SMALL),
    "Disentangler": lambda: Disentangler(Net(), "norm", (4, 7), 1 / 64, input_shape=SHAPE),
    "ReliableDisentangler": lambda: ReliableDisentangler(
        [Net(), Net(seed=1)], "norm", (4, 7), width=1 / 32, rounds=2, input_shape=SHAPE
    ),
    "InputDecoder": lambda: InputDecoder(Net(), ["norm", "fc1"], input_shape=SHAPE, width=2, blocks=2),
    "SampleProjection": lambda: SampleProjection(
        Net(), ["norm", "before_last"], SHAPE, optimizer=partial(lbfgs, steps=20)
    ),
    "RegionProjection": lambda: RegionProjection(Net(), ["norm"], SHAPE, steps=3, num_compared=10),
}


class Keep(pl.Callback):
    """Writes down what a rank has logged: all rows of the monitors, and what Lightning has."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_end(self, trainer, pl_module):
        values = {key: float(value) for key, value in trainer.callback_metrics.items()}
        for callback in trainer.callbacks:
            for row in getattr(callback, "history", []):
                when = f"{type(callback).__name__} in epoch {row['epoch']}"
                values |= {f"{when}: {key}": value for key, value in row.items()}
        torch.save(values, self.folder / f"{trainer.global_rank}.pt")


def fit(folder, make, precision, processes):
    torch.manual_seed(0)
    module, callbacks = make()
    for layer in module.modules():  # statistics of a batch are those of a rank's share of it
        if isinstance(layer, _BatchNorm):
            layer.eval()
    trainer = pl.Trainer(
        max_epochs=1, num_sanity_val_steps=0, accelerator="cpu", devices=processes,
        strategy="auto" if processes == 1 else "ddp_fork", precision=precision, callbacks=[*callbacks, Keep(folder)],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, Images(batch_size=BATCH // processes))


def logged(folder, make, precision, processes):
    """What each rank has logged."""
    folder = folder / str(processes)
    folder.mkdir()
    with deadline(DEADLINE):
        fit(folder, make, precision, processes)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(processes)]


def check(folder, make, precision, without=()):
    """All that is logged, but for keys that start with one of `without`; returns what one process has logged."""
    [alone] = logged(folder, make, precision, 1)
    for processes in PROCESSES:
        ranks = logged(folder, make, precision, processes)
        for rank in ranks:
            assert str(rank) == str(ranks[0])  # to the bit; NaN is not itself
        assert set(ranks[0]) == set(alone)
        differing = {key: (alone[key], value) for key, value in ranks[0].items() if not close(key, value, alone[key])}
        assert not {key for key in differing if not key.startswith(without)}, f"{processes} processes: {differing}"
    return alone


def close(key, value, expected):
    # Energy models are float32: a weight whose gradient is 0 in one process and 9e-10 in four moves by 8.5e-5 in Adam's
    # first step, with a learning rate of 1e-3. 1.4e-6 nats seen.
    # The other gap is the difference of two losses of about 1 in float32.
    absolute = 1e-5 if "energy_gap" in key else 1e-6 if "train_test_gap" in key else 1e-9
    return value == pytest.approx(expected, rel=1e-6, abs=absolute, nan_ok=True)


@pytest.fixture(autouse=True)
def short(tmp_path, monkeypatch):
    """Without pictures, and without most steps of L-BFGS."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pytorch_lightning.Trainer.log_dir", None)
    monkeypatch.setattr("netprism.knowledge.sample_projection.lbfgs", lambda parameters, _: lbfgs(parameters, steps=10))


def test_monitors_agree(tmp_path):
    # Each rank draws its own dropout masks to train with; the monitor's are everywhere the same.
    values = check(tmp_path, monitored, "32-true", without=("train/",))
    assert values["gates/entropy"] > values["gates/input_information"]  # dropout was on
    for monitor in ("gates", "discarding", "knowledge", "components"):
        assert any(key.startswith(f"{monitor}/") for key in values)


def test_a_penalty_of_weight_zero_agrees(tmp_path):
    check(tmp_path, lambda: (Classifier(Net(), CLASSES, sgd), [ComplexityPenalty(0.0, **SMALL)]), "64-true")


@pytest.mark.parametrize("name", ANALYSES)
def test_analyses_agree(tmp_path, name):
    check(tmp_path, lambda: (ANALYSES[name](), []), "64-true")

import copy
import csv

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from netprism.knowledge.sample_projection import (
    divergence,
    fit_projection,
    lbfgs,
    output_entropy,
    soft_targets,
    strength_correlation,
)
from netprism.lightning_modules import SampleProjection
from netprism.loggers import ResumableCSVLogger
from netprism.taps import tap

pytestmark = pytest.mark.filterwarnings("ignore:Found .* in eval mode")  # the teacher, on purpose

SHAPE = (1, 4, 4)
KEYS = {f"knowledge/{split}{what}" for split in ("", "test/") for what in ("KL", "strength_uncertainty_corr")}


class Net(nn.Module):
    """A stranger's network: BatchNorm, a functional ReLU, one fully connected layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.fc = nn.Linear(24, 5)

    def forward(self, x):
        return 3 * self.fc(F.relu(self.norm(self.conv(x))).flatten(1))


@pytest.fixture(autouse=True)
def nothing_is_left_behind(tmp_path, monkeypatch):
    """A trainer without a folder draws into the current one."""
    monkeypatch.chdir(tmp_path)


def few_steps(parameters):
    return lbfgs(parameters, steps=10)


def teacher(seed=0):
    torch.manual_seed(seed)
    net = Net()
    net(torch.randn(50, *SHAPE))  # so that BatchNorm has seen something
    return net


def images(count=60, seed=1):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def loader(count=60, batch_size=60, seed=1):
    return DataLoader(TensorDataset(images(count, seed), torch.zeros(count).long()), batch_size)


def fit(module, folder, train=None, validation=None, **options):
    settings = {
        "max_epochs": 2, "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder,
    }  # fmt: skip
    trainer = pl.Trainer(**(settings | options))
    if isinstance(train, pl.LightningDataModule):
        trainer.fit(module, train)
    else:
        trainer.fit(module, train or loader(), validation or loader(21, 10, seed=2))
    return trainer


def test_it_finds_what_the_function_finds(tmp_path):
    net = teacher().eval()
    module = SampleProjection(net, input_shape=SHAPE, optimizer=lambda p: lbfgs(p, steps=20))
    values = fit(module, tmp_path).callback_metrics
    with torch.no_grad(), tap(net, "fc", inputs=True) as features:
        logits = net(images())
    alone = fit_projection(features["fc"], logits, steps=40)
    targets, g = soft_targets(logits), module(images())["before_last"].detach()
    kl = divergence(targets, alone.log_posterior(alone(features["fc"]))).mean().item()
    assert values["knowledge/KL/before_last"].item() == pytest.approx(kl, abs=0.02)
    found = divergence(targets, module.projection().log_posterior(g)).mean().item()
    assert values["knowledge/KL/before_last"].item() == pytest.approx(found, rel=1e-5)
    correlation = strength_correlation(g.norm(dim=1), output_entropy(targets))
    assert values["knowledge/strength_uncertainty_corr/before_last"].item() == pytest.approx(correlation, rel=1e-5)


def test_the_teacher_does_not_change_by_a_bit(tmp_path):
    net = teacher()
    before = copy.deepcopy(net.state_dict())
    fit(SampleProjection(net, input_shape=SHAPE, optimizer=few_steps), tmp_path)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not net.training
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_layers_together_are_as_each_alone(tmp_path):
    layers = ["conv", "norm", "before_last"]
    together = SampleProjection(teacher(), layers=layers, input_shape=SHAPE, optimizer=few_steps)
    values = fit(together, tmp_path).callback_metrics
    assert set(values) == {f"{key}/{layer}" for key in KEYS for layer in layers}
    alone = SampleProjection(teacher(), layers=["norm"], input_shape=SHAPE, optimizer=few_steps)
    fit(alone, tmp_path)
    assert torch.equal(together.projection("norm").matrix, alone.projection("norm").matrix)


def test_small_batches_with_adam_come_near_the_whole(tmp_path):
    whole = fit(SampleProjection(teacher(), input_shape=SHAPE), tmp_path).callback_metrics["knowledge/KL/before_last"]
    module = SampleProjection(teacher(), input_shape=SHAPE, steps=2, optimizer=lambda p: torch.optim.Adam(p, 0.2))
    values = fit(module, tmp_path, train=loader(batch_size=20), max_epochs=6).callback_metrics
    assert values["knowledge/KL/before_last"] < whole + 0.05


class Shared(pl.LightningDataModule):
    """The batches of one process, each dealt out to all of them; Lightning's own sampler would shuffle."""

    def __init__(self, batch_size):
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self):
        return self.dealt(images())

    def val_dataloader(self):
        return self.dealt(images(21, seed=2))  # an odd number

    def dealt(self, all_images):
        rank, processes = self.trainer.global_rank, self.trainer.world_size
        return DataLoader(TensorDataset(all_images[rank::processes]), self.batch_size // processes)


@pytest.mark.parametrize("batch_size", [60, 20])
def test_one_process_equals_two(tmp_path, batch_size):
    make = {"steps": 3, "optimizer": lambda p: torch.optim.SGD(p, 0.3)}
    one, two = (
        SampleProjection(teacher(), input_shape=SHAPE, **make),
        SampleProjection(teacher(), input_shape=SHAPE, **make),
    )
    options = {"use_distributed_sampler": False}
    alone = fit(one, tmp_path, Shared(batch_size), **options).callback_metrics
    pair = fit(two, tmp_path, Shared(batch_size), **options, strategy="ddp_fork", devices=2).callback_metrics
    assert torch.allclose(one.projection().matrix, two.projection().matrix, atol=1e-9)
    assert set(pair) == set(alone) == {f"{key}/before_last" for key in KEYS}
    for key, value in alone.items():
        assert pair[key].item() == pytest.approx(value.item(), abs=1e-6), key


def test_two_processes_find_with_lbfgs_bitwise_what_one_finds(tmp_path):
    one, two = (SampleProjection(teacher(), input_shape=SHAPE, optimizer=few_steps) for _ in range(2))
    options = {"use_distributed_sampler": False, "max_epochs": 2}
    fit(one, tmp_path, Shared(60), **options)
    fit(two, tmp_path, Shared(60), **options, strategy="ddp_fork", devices=2)
    assert torch.equal(one.projection().matrix, two.projection().matrix)


def test_a_run_has_its_curves_pictures_and_a_checkpoint_to_load(tmp_path):
    module = SampleProjection(teacher(), input_shape=SHAPE, optimizer=few_steps)
    trainer = fit(module, tmp_path, logger=ResumableCSVLogger(tmp_path), log_every_n_steps=1)
    with open(tmp_path / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert set(rows[-1]) == {"epoch", "step"} | {f"{key}/before_last" for key in KEYS}
    assert [row["epoch"] for row in rows] == ["0", "1"]
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {"projection_before_last.png", "projection_before_last.html", "plotly.min.js"}
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    path = tmp_path / "last.ckpt"
    loaded = SampleProjection.load_from_checkpoint(path, teacher=teacher(seed=0), weights_only=True)
    assert torch.equal(loaded(images())["before_last"], module(images())["before_last"])
    assert torch.equal(loaded.projection().directions, module.projection().directions)


def test_predictions_are_projected_features(tmp_path):
    module = SampleProjection(teacher(), input_shape=SHAPE, dimensions=2, optimizer=few_steps)
    trainer = fit(module, tmp_path)
    (predicted,) = trainer.predict(module, loader(5))
    assert predicted["before_last"].shape == (5, 2)


class Softmax(Net):
    def forward(self, x):
        return super().forward(x).softmax(1)


def test_bad_input_is_named(tmp_path):
    with pytest.raises(ValueError, match="Conv2d has no fully connected layer; expected one"):
        SampleProjection(nn.Conv2d(1, 1, 1), input_shape=SHAPE)
    with pytest.raises(ValueError, match="nonsense"):
        SampleProjection(teacher(), layers=["nonsense"], input_shape=SHAPE)
    with pytest.raises(ValueError, match="expected at least one of each"):
        SampleProjection(teacher(), layers=[], input_shape=SHAPE)
    with pytest.raises(ValueError, match="layer is 'conv'; expected one of before_last"):
        SampleProjection(teacher(), input_shape=SHAPE).projection("conv")
    with pytest.raises(ValueError, match="dimensions is 6; expected 2 to 5"):
        SampleProjection(teacher(), input_shape=SHAPE, dimensions=6)
    with pytest.raises(ValueError, match="logits is already a probability"):
        fit(SampleProjection(Softmax(), input_shape=SHAPE), tmp_path)


def test_a_stopped_run_continues(tmp_path):
    whole = SampleProjection(teacher(), input_shape=SHAPE, optimizer=few_steps)
    fit(whole, tmp_path, max_epochs=3)
    fit(SampleProjection(teacher(), input_shape=SHAPE, optimizer=few_steps), tmp_path, max_epochs=2).save_checkpoint(
        tmp_path / "last.ckpt"
    )
    resumed = SampleProjection(teacher(), input_shape=SHAPE, optimizer=few_steps)
    trainer = pl.Trainer(
        max_epochs=3, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(resumed, loader(), loader(21, 10, seed=2), ckpt_path=str(tmp_path / "last.ckpt"), weights_only=True)
    assert trainer.current_epoch == 3
    assert torch.equal(resumed.projection().matrix, whole.projection().matrix)

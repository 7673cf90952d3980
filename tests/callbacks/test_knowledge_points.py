"""The laws of a monitor, what is counted, and that planted patterns are found."""

import math
import random

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from third_party_modules import Net, Stranger, figures_of, fit, images
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from netprism.callbacks import KnowledgePoints
from netprism.knowledge.sample_projection import lbfgs

LAYERS = ["conv", "fc1"]
SHORT = {
    "images_per_class": 8, "classes": 3, "tau": 0.34, "steps": 5, "num_compared": 10, "batch_size": 8,
    "every_n_epochs": 1,
}  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore:knowledge. layer 'fc1' has one region")


@pytest.fixture(autouse=True)
def short(request, monkeypatch):
    """Without pictures and most steps of the sample projection, where most of the time would go."""
    monkeypatch.setattr("netprism.knowledge.sample_projection.lbfgs", lambda parameters, _: lbfgs(parameters, steps=15))
    if request.node.name != "test_figures":
        monkeypatch.setattr("netprism.figures.knowledge.draw", lambda *_: [])


def knowledge_of(trainer, name="knowledge"):
    values = {key: float(value) for key, value in trainer.callback_metrics.items()}
    return {key.removeprefix(f"{name}/"): value for key, value in values.items() if key.startswith(f"{name}/")}


def taught():
    """Learned some steps: two of the 36 regions of an image are knowledge points, half of these reliable."""
    pl.seed_everything(5, verbose=False)
    module = Stranger()
    optimizer = module.configure_optimizers()
    for _ in range(30):
        optimizer.zero_grad()
        module.training_step(images().tensors, 0).backward()
        optimizer.step()
    return module


def test_the_key_set_is_exact(tmp_path):
    monitor = KnowledgePoints(LAYERS, **SHORT)
    trainer = fit(taught(), monitor, folder=tmp_path)
    keys = {
        "strength_uncertainty_corr",
        *(f"{key}/{layer}" for key in ("points", "reliable", "ratio") for layer in LAYERS),
    }
    assert set(knowledge_of(trainer)) == keys
    assert [row["epoch"] for row in monitor.history] == [-1, 0, 1]
    values = knowledge_of(trainer)
    assert 0 < values["reliable/conv"] <= values["points/conv"] <= 36
    assert values["ratio/conv"] == pytest.approx(values["reliable/conv"] / values["points/conv"], rel=1e-6)
    assert -1 <= values["strength_uncertainty_corr"] <= 1


def state_after_training(folder, *callbacks):
    pl.seed_everything(3, verbose=False)
    module = Stranger(Net(dropout=0.5))
    trainer = fit(module, *callbacks, folder=folder, max_epochs=1)
    numbers = torch.rand(3).tolist() + np.random.rand(3).tolist() + [random.random()]
    return [*module.state_dict().values(), *trainer.optimizers[0].state_dict()["state"].values()], numbers


def test_training_with_the_monitor_is_bitwise_the_same(tmp_path):
    weights, numbers = state_after_training(tmp_path, KnowledgePoints(LAYERS, **SHORT))
    weights_alone, numbers_alone = state_after_training(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(weights, weights_alone, strict=True))
    assert numbers == numbers_alone


class Keep(pl.Callback):
    def __init__(self, folder, monitor):
        self.folder, self.monitor = folder, monitor

    def on_train_end(self, trainer, pl_module):
        torch.save((self.monitor.history, knowledge_of(trainer)), f"{self.folder}/{trainer.global_rank}.pt")


def test_two_processes_get_the_same_numbers(tmp_path):
    def run(folder, devices, strategy):
        folder.mkdir()
        # 21 images, 3 batches: the second process has one of them
        monitor = KnowledgePoints(LAYERS, **(SHORT | {"images_per_class": 7, "steps": 30, "tau": 0.5}))
        options = {"devices": devices, "strategy": strategy, "max_epochs": 1}
        fit(taught(), monitor, Keep(folder, monitor), folder=folder, **options)
        return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(devices)]

    [(alone, _)] = run(tmp_path / "one", 1, "auto")
    (first, logged), (second, logged_too) = run(tmp_path / "two", 2, "ddp_fork")
    assert str(first) == str(second)  # NaN is not itself
    assert str(logged) == str(logged_too)
    assert str(first[0]) == str(alone[0])  # before training; afterwards the networks differ
    assert 0.3 < alone[0]["reliable/conv"] < alone[0]["points/conv"] < 18  # of 36
    assert 0 < alone[0]["reliable/fc1"] < 1


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_resumed_run_continues_the_curve_and_the_film(tmp_path):
    def run(name, max_epochs, resume=None):
        pl.seed_everything(1, verbose=False)
        checkpoint = pl.callbacks.ModelCheckpoint(tmp_path / name, save_last=True, save_on_train_epoch_end=True)
        monitor = KnowledgePoints(LAYERS, **SHORT)
        trainer = pl.Trainer(
            max_epochs=max_epochs, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[monitor, checkpoint], default_root_dir=tmp_path, limit_val_batches=0,
        )  # fmt: skip
        loader = DataLoader(images(), 16)
        trainer.fit(Stranger(), loader, loader, ckpt_path=resume, weights_only=True)
        return monitor

    run("stopped", 1)
    resumed, straight = run("resumed", 3, tmp_path / "stopped" / "last.ckpt"), run("straight", 3)
    assert [row["epoch"] for row in resumed.history] == [-1, 0, 1, 2]
    assert str(resumed.history) == str(straight.history)  # NaN is not itself
    for one, other in zip(resumed.frames, straight.frames, strict=True):
        assert torch.equal(one["layers"]["conv"]["points"], other["layers"]["conv"]["points"])


def test_the_film_does_not_spin(tmp_path):
    # A network that does not learn: what is left of the change between epochs is that of further steps.
    monitor = KnowledgePoints(LAYERS, **(SHORT | {"steps": 20}))
    fit(Stranger(learning_rate=0.0), monitor, folder=tmp_path)
    first, *others = (frame["directions"] for frame in monitor.frames)
    for directions in others:
        assert (first * directions).sum(dim=1).min() > 0.98


class Patches(nn.Module):
    """Sees an image of 4 x 4 patches, 4 x 4 pixels each, one by one."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(1, 64, 4, stride=4)
        self.fc = nn.Linear(64, 4)

    def forward(self, x):
        return {"logits": self.fc(F.relu(self.patches(x)).mean(dim=(2, 3)))}


def planted_images(count=80, seed=0):
    """Noise patches, of which three an image are the pattern of its class; and where these are."""
    draws = torch.Generator().manual_seed(seed)
    patterns = 2 * torch.randn(4, 4, 4, generator=draws)
    labels = torch.arange(count) % 4
    patches = torch.randn(count, 4, 4, 4, 4, generator=draws)
    where = (torch.rand(count, 16, generator=draws).argsort(dim=1) < 3).view(count, 4, 4)
    patches[where] = 0.3 * patches[where] + patterns[labels].repeat_interleave(3, dim=0)
    return TensorDataset(patches.transpose(2, 3).reshape(count, 1, 16, 16), labels), where.flatten(1)


def area_under_roc(scores, positive):
    above, below = scores[positive][:, None], scores[~positive]
    return ((above > below).double() + 0.5 * (above == below)).mean().item()


def test_planted_patterns_are_the_knowledge_points(tmp_path):
    pl.seed_everything(0, verbose=False)
    data, where = planted_images()
    monitor = KnowledgePoints(["patches"], images_per_class=20, classes=4, every_n_epochs=20, measure_untrained=False)
    fit(
        Stranger(Patches(), learning_rate=0.3), monitor, folder=tmp_path, train=DataLoader(data, 20, shuffle=True),
        max_epochs=20, limit_val_batches=0,
    )  # fmt: skip
    _, found = monitor.last["patches"]
    where = where[[index for batch in monitor.chosen[0].batches for index in batch]]
    assert area_under_roc(found.confidence, where) > 0.95
    assert found.reliable[where].double().mean() > 0.9


def test_fewer_classes_and_images_than_asked_for_give_a_warning(tmp_path):
    data = TensorDataset(torch.randn(9, 1, 8, 8), torch.tensor([0, 0, 0, 0, 0, 2, 2, 2, 2]))
    monitor = KnowledgePoints(LAYERS, images_per_class=5, tau=0.6, steps=2, num_compared=3, measure_untrained=False)
    with pytest.warns() as warned:
        fit(Stranger(), monitor, folder=tmp_path, train=DataLoader(data, 4), max_epochs=1)
    texts = {str(warning.message) for warning in warned}
    assert "knowledge: 2 classes; classes is 10, there are no more" in texts
    assert "knowledge: fewer than 5 images of some classes: {2: 4}" in texts
    assert monitor.chosen[1] == [0, 2]


def test_one_class_is_too_few(tmp_path):
    data = TensorDataset(torch.randn(9, 1, 8, 8), torch.zeros(9, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"number of images per class is \{0: 9\}; expected at least 3 images"):
        fit(Stranger(), KnowledgePoints(LAYERS), folder=tmp_path, train=DataLoader(data, 4), max_epochs=1)


class Collapsed(Net):
    def forward(self, x):
        return super().forward(0 * x)


def test_a_collapsed_network_has_no_knowledge_points_and_trains_on(tmp_path):
    monitor = KnowledgePoints(LAYERS, **SHORT, measure_untrained=False)
    with pytest.warns(
        UserWarning, match="knowledge: no categories in epoch 0 .covariance of features and outputs is 0"
    ):
        trainer = fit(Stranger(Collapsed()), monitor, folder=tmp_path, max_epochs=1)
    values = knowledge_of(trainer)
    assert values["points/conv"] == values["reliable/conv"] == 0
    assert math.isnan(values["ratio/conv"])
    assert math.isnan(values["strength_uncertainty_corr"])


def test_a_vector_is_one_region_with_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="knowledge: layer 'fc1' has one region"):
        trainer = fit(Stranger(), KnowledgePoints(["fc1"], **SHORT), folder=tmp_path, max_epochs=1)
    assert knowledge_of(trainer)["points/fc1"] <= 1


def test_figures(tmp_path):
    fit(Stranger(), KnowledgePoints(LAYERS, **SHORT), folder=tmp_path)
    names = {path.name for path in figures_of(tmp_path).iterdir()}
    assert names == {
        "knowledge_points.png", "knowledge_ellipsoids.png", "knowledge_regions.png", "knowledge_layers.png",
        "knowledge_film_conv.gif", "knowledge_film_conv.html", "knowledge_film_fc1.gif", "knowledge_film_fc1.html",
        "plotly.min.js",
    }  # fmt: skip


def test_two_named_instances_do_not_collide(tmp_path):
    first, second = KnowledgePoints(LAYERS, **SHORT), KnowledgePoints(["conv"], **SHORT, name="deep")
    trainer = fit(Stranger(), first, second, folder=tmp_path, max_epochs=1)
    assert set(knowledge_of(trainer, "deep")) == {
        "strength_uncertainty_corr",
        "points/conv",
        "reliable/conv",
        "ratio/conv",
    }
    assert first.state_key != second.state_key


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": []}, "layers is empty; expected"),
        ({"reference_layer": "conv9"}, "reference_layer is 'conv9'; expected None or one of conv"),
        ({"images_per_class": 0}, "images_per_class is 0; expected a number >= 1"),
        ({"classes": 1}, "classes is 1; expected a number >= 2"),
        ({"tau": 1.0}, "tau is 1.0; expected > 0 and < 1"),
        ({"every_n_epochs": 0}, "every_n_epochs is 0"),
    ],
)
def test_bad_options_are_named_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        KnowledgePoints(**({"layers": ["conv"]} | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ["layer9"]}, "has no layer 'layer9'; it has conv, norm, fc1, fc2"),
        ({"layers": ["conv"], "logits_layer": "conv"}, r"shape of logits is .*; expected \(N, C\)"),
    ],
)
def test_unknown_layers_list_the_layers(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        fit(Stranger(), KnowledgePoints(**(SHORT | options)), folder=tmp_path, max_epochs=1)

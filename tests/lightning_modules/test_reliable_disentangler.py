import csv
import json
from functools import cache

import pytest
import pytorch_lightning as pl
import torch
from reference import reliability as reference
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from netprism.components.as_published import learned_round_trips
from netprism.components.regressor import component_ratios
from netprism.components.reliability import parts_after
from netprism.datamodules import MNIST
from netprism.lightning_modules import ReliableDisentangler

pytestmark = [
    pytest.mark.filterwarnings("ignore:Found .* module.* in eval mode"),  # the teachers, on purpose
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),  # the images are in memory
]

ORDERS = (4, 7)
NUMBERS = ("reliability", "reliable_significance", "unreliable_significance", "unexplained")
TEST = "reliability/test"
VALIDATED = {f"{TEST}/{name}/{order}" for name in NUMBERS for order in ORDERS}
VALIDATED |= {f"{TEST}/reliability", f"{TEST}/unexplained"}
SMALL = {"layer": "feature", "width": 1 / 32, "orders": ORDERS}  # psi of 16 channels


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A trainer without a logger writes pictures into the current folder."""
    monkeypatch.chdir(tmp_path)


class Teacher(nn.Module):
    """Looks at some channels of the image only: conv, ReLU, conv to `channels` maps, and logits."""

    def __init__(self, sees=(0, 1), channels=4, seed=0, stride=1):
        super().__init__()
        torch.manual_seed(seed)
        self.sees = list(sees)
        self.inner = nn.Sequential(
            nn.Conv2d(len(self.sees), 8, 3, stride, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5)
        )
        self.feature = nn.Conv2d(8, channels, 1)
        nn.init.kaiming_normal_(self.inner[0].weight)
        nn.init.normal_(self.feature.weight, std=0.6)
        self.fc = nn.Linear(channels, 3)

    def forward(self, x):
        return self.fc(self.feature(self.inner(x[:, self.sees])).mean((2, 3)))


def images(count, channels=3, seed=0):
    return torch.randn(count, channels, 8, 8, generator=torch.Generator().manual_seed(seed))


def loader(count, batch_size=32, seed=0, shuffle=False):
    return DataLoader(TensorDataset(images(count, seed=seed), torch.zeros(count)), batch_size, shuffle=shuffle)


def trainer(**options):
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(**{"logger": False, "accelerator": "cpu", "max_epochs": 1, **quiet, **options})


def module(teachers=None, **options):
    torch.manual_seed(1)
    return ReliableDisentangler(teachers or [Teacher((0, 1), 4), Teacher((0, 2), 5, seed=1)], **(SMALL | options))


def fitted(teachers=None, epochs=1, train=64, **options):
    options = {"input_shape": (3, 8, 8)} | options
    analysis, run = module(teachers, **options), trainer(max_epochs=epochs)
    run.fit(analysis, loader(train, shuffle=True), loader(25, seed=1))
    return analysis, run


def state(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def test_logs_these_keys_and_leaves_the_teachers_alone():
    teachers = [Teacher(), Teacher(seed=1)]
    before = [state(teacher) for teacher in teachers]
    _, run = fitted(teachers, rounds=3)
    trained = {f"train/{name}_loss/{order}" for name in ("shared", "mimic") for order in ORDERS}
    assert set(run.callback_metrics) == {"train/loss"} | trained | VALIDATED
    assert run.callback_metrics["train/loss"].item() == pytest.approx(
        sum(run.callback_metrics[key].item() for key in trained), rel=1e-5
    )
    for teacher, kept in zip(teachers, before, strict=True):
        assert all(torch.equal(tensor, kept[name]) for name, tensor in teacher.state_dict().items())
        assert not any(part.training for part in teacher.modules())
        assert all(parameter.grad is None for parameter in teacher.parameters())


def test_numbers_are_those_of_the_features_themselves():
    """By passes over the images and the reference's regressions, in place of the covariance of everything together."""
    analysis, run = fitted()
    x = images(25, seed=1)
    with torch.no_grad():
        psis, approximations = analysis.eval().nets(x)
        feature = analysis.teacher[0].feature(analysis.teacher[0].inner(x[:, [0, 1]])).numpy()
    before = None
    for i, order in enumerate(ORDERS):
        psi = psis[i].movedim(1, -1).double().numpy()
        readouts = [readout.double().numpy() for readout in analysis.nets.wide[i].readout_matrices]
        rows = psi.reshape(-1, psi.shape[-1])
        reliable = reference.reliable_parts(rows, readouts, rounds=10, refit=True)[0].reshape(*psi.shape[:-1], 4)
        phi = approximations[i].movedim(1, -1).double().numpy()
        logged = {name: run.callback_metrics[f"{TEST}/{name}/{order}"].item() for name in NUMBERS}
        assert logged["reliability"] == pytest.approx(reference.variance(reliable) / reference.variance(phi), rel=1e-4)
        new = (reliable, phi - reliable) if before is None else (reliable - before[0], phi - reliable - before[1])
        whole = reference.variance(feature)
        assert logged["reliable_significance"] == pytest.approx(reference.variance(new[0]) / whole, rel=1e-4)
        assert logged["unreliable_significance"] == pytest.approx(reference.variance(new[1]) / whole, rel=1e-4)
        missed = feature.transpose(0, 2, 3, 1) - psi @ readouts[0].T
        assert logged["unexplained"] == pytest.approx(reference.variance(missed) / whole, rel=1e-4)
        before = (reliable, phi - reliable)
        with torch.no_grad():
            predicted, kept = (parts[i].movedim(1, -1).numpy() for parts in analysis(x))
        assert predicted == pytest.approx(phi, rel=1e-4, abs=1e-5)
        assert kept == pytest.approx(reliable, rel=1e-3, abs=1e-4)


@cache
def of_two_networks(first, second):
    """ReliableDisentangler of order 4 and its trainer, after ten epochs with networks that see these channels."""
    options = {"orders": (4,), "width": 1 / 16, "optimizer": lambda parameters: torch.optim.Adam(parameters, 0.02)}
    return fitted([Teacher(first), Teacher(second, seed=int(first != second))], 10, train=320, **options)


def reliability(first, second):
    """rho of order 4 on new images of noise, and what psi misses of the target."""
    _, run = of_two_networks(first, second)
    return run.callback_metrics[f"{TEST}/reliability/4"].item(), run.callback_metrics[f"{TEST}/unexplained/4"].item()


def test_two_identical_networks_are_reliable():
    rho, missed = reliability((0, 1), (0, 1))
    assert missed < 0.2
    assert 0.95 <= rho <= 1.05


def test_networks_of_independent_features_are_not_reliable():
    rho, missed = reliability((0,), (1,))
    assert missed < 0.4
    assert rho < 0.2


def as_published_reliability(first, second):
    """rho of order 4 with the maps of the paper's training, on new images of noise."""
    analysis, _ = of_two_networks(first, second)
    with torch.no_grad():
        (psi,), (phi,) = analysis.eval().nets(images(25, seed=1))
    readouts = analysis.nets.wide[0].readout_matrices
    kept = parts_after(psi, readouts, learned_round_trips(psi, readouts, rounds=5, steps=100))[0]
    return reference.variance(kept.numpy()) / reference.variance(phi.numpy())


def test_trained_maps_tell_the_two_apart_as_well():
    assert 0.8 < as_published_reliability((0, 1), (0, 1)) < 1.1
    assert as_published_reliability((0,), (1,)) < 0.2


def test_the_losses_are_those_of_the_targets_each_net_has():
    analysis = module(input_shape=(3, 8, 8), orders=(4,))
    run = trainer()
    x = images(32)
    with torch.no_grad():
        features = [teacher.feature(teacher.inner(x[:, teacher.sees])) for teacher in analysis.teacher]
        (psi,), (phi,) = analysis.train().nets(x)  # in train mode: the BatchNorm of the batch
        readouts = analysis.nets.wide[0].readout_matrices
        mimics = [nn.functional.conv2d(psi, readout[:, :, None, None]) for readout in readouts]
    run.fit(analysis, loader(32), loader(25))
    shared = sum(((mimic - f) ** 2).mean().item() for mimic, f in zip(mimics, features, strict=True))
    assert run.callback_metrics["train/shared_loss/4"].item() == pytest.approx(shared, rel=1e-5)
    mimicked = ((phi - features[0]) ** 2).mean().item()
    assert run.callback_metrics["train/mimic_loss/4"].item() == pytest.approx(mimicked, rel=1e-5)


def test_two_processes_find_the_numbers_of_one(make_mnist):
    data = {"root": str(make_mnist(train=40, test=21)), "batch_size": 5}  # 11 images and 10
    teachers = [nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10)) for _ in range(2)]
    for teacher in teachers:
        teacher(torch.zeros(1, 1, 28, 28))
    found = []
    for processes in ({"devices": 1}, {"devices": 2, "strategy": "ddp_fork"}):
        run = trainer(**processes)
        run.validate(module(teachers, layer="0"), MNIST(**data), verbose=False)
        found.append({key: value.item() for key, value in run.callback_metrics.items()})
    assert set(found[0]) == VALIDATED
    assert found[1] == pytest.approx(found[0], rel=1e-6)


def test_processes_measure_the_network_of_rank_0(make_mnist):
    """Its BatchNorm buffers differ from those of rank 1 after a training; rank 0's come back from the processes."""
    data = {"root": str(make_mnist(train=40, test=21)), "batch_size": 5}
    teachers = [nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(676, 10)) for _ in range(2)]
    analysis = module(teachers, layer="0", input_shape=(1, 28, 28))
    run = trainer(devices=2, strategy="ddp_fork")
    run.fit(analysis, MNIST(**data))
    measured = {key: run.callback_metrics[key].item() for key in VALIDATED}
    alone = trainer()
    alone.validate(analysis, MNIST(**data), verbose=False)
    assert measured == pytest.approx({key: alone.callback_metrics[key].item() for key in VALIDATED}, rel=1e-5)


def test_the_shape_of_an_image_comes_from_the_data_module(make_mnist):
    teachers = [nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(2704, 10)) for _ in range(2)]
    analysis = module(teachers, layer="0")
    with pytest.raises(RuntimeError, match="^the nets are made when the training begins; give input_shape"):
        _ = analysis.nets
    trainer(fast_dev_run=1).fit(analysis, MNIST(root=str(make_mnist()), batch_size=8))
    assert analysis.nets.own[0].input_shape == (1, 28, 28)


def test_vectors_and_one_layer_for_each_network():
    teachers = [nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.ReLU(), nn.Linear(6, width)) for width in (4, 3)]
    analysis, run = fitted(teachers, layer=["3", "1"])
    assert [readout.shape for readout in analysis.nets.wide[0].readouts] == [(4, 16), (6, 16)]
    assert 0 <= run.callback_metrics[f"{TEST}/unexplained"] < 2


def test_tables_and_pictures_of_a_run(tmp_path):
    analysis = module(input_shape=(3, 8, 8))
    run = trainer(max_epochs=2)
    run.fit(analysis, loader(64), loader(25, seed=1))
    names = ["curves.png", "parts.png", "rounds.png"]
    (folder,) = tmp_path.glob("netprism/*/figures")
    files = {path.name for path in folder.iterdir()}
    assert files == {"reliability.csv", "reliability.json", *(f"reliability_{name}" for name in names)}
    with (folder / "reliability.csv").open() as file:
        rows = list(csv.DictReader(file))
    ratios = component_ratios(rows, ORDERS)
    logged = [run.callback_metrics[f"{TEST}/{name}/{o}"].item() for name in NUMBERS[1:3] for o in ORDERS]
    assert ratios == pytest.approx(logged, rel=1e-6)
    document = json.loads((folder / "reliability.json").read_text())
    for row in document["orders"]:
        by_round = document["reliability_by_round"][str(row["order"])]
        assert len(by_round) == 11
        assert by_round[-1] == row["reliability"] == row["var_reliable_up_to_order"] / row["var_up_to_order"]
    assert [row["epoch"] for row in analysis.history] == [0, 1]
    assert set(analysis.history[0]) == {"epoch", "reliability/4", "reliability/7"}


def test_a_checkpoint_holds_tensors_alone_and_goes_on(tmp_path):
    analysis, run = fitted()
    run.save_checkpoint(tmp_path / "last.ckpt")
    loaded = ReliableDisentangler.load_from_checkpoint(
        tmp_path / "last.ckpt", teachers=list(module().teacher), weights_only=True
    )
    assert loaded.history == analysis.history
    for ours, theirs in zip(analysis.eval()(images(3)), loaded.eval()(images(3)), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_the_learning_rate_falls_to_a_hundredth():
    _, run = fitted(epochs=3, orders=(4,))
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teachers": [Teacher()]}, "^there are 1 teachers and 1 layers; expected 2 or more, and a layer for each$"),
        ({"layer": ["feature"]}, "^there are 2 teachers and 1 layers"),
        ({"layer": "features"}, "^Teacher has no layer 'features', did you mean 'feature'"),
        ({"orders": (4, 6)}, "^order is 6; expected 3m"),
        ({"width": 1 / 128}, "^the number of psi's channels is 4; expected more than the 5 of a target"),
        (
            {"teachers": [Teacher(), Teacher(stride=2)]},
            r"^feature 1 has shape \(4, 4, 4\); expected the size of the target's \(4, 8, 8\)$",
        ),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        module(**({"input_shape": (3, 8, 8)} | options))


def test_not_measured_yet():
    with pytest.raises(RuntimeError, match="^the round trips have not been measured yet: validate first$"):
        module(input_shape=(3, 8, 8))(images(2))


def test_a_constant_feature_and_one_that_is_not_finite():
    constant = Teacher()
    nn.init.zeros_(constant.feature.weight)
    with pytest.raises(ValueError, match="^the feature is the same for all 25 samples; expected a variance above 0$"):
        trainer().validate(module([constant, Teacher()], input_shape=(3, 8, 8)), loader(25), verbose=False)
    broken = Teacher()
    nn.init.constant_(broken.feature.bias, float("nan"))
    with pytest.raises(ValueError, match="^train/shared_loss/4 is nan in epoch 0, step 0: try a smaller learning rate"):
        trainer(num_sanity_val_steps=0).fit(module([broken, Teacher()], input_shape=(3, 8, 8)), loader(25), loader(25))

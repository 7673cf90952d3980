import csv
import json
import math

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.loggers import CSVLogger
from third_party_modules import Net, Stranger, fit, images
from torch import nn

from netprism.callbacks import FeatureComponents
from netprism.lightning_modules import Disentangler
from netprism.metrics import ComponentMetric

pytestmark = pytest.mark.filterwarnings("ignore:Found .* in eval mode")  # a teacher, on purpose

ORDERS = (4, 7)


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    """Pictures take a second a training; one test has them."""
    if "pictures" not in request.node.name:
        monkeypatch.setattr("netprism.figures.components.draw", lambda *_: [])


def monitor(**options):
    return FeatureComponents(**({"layer": "norm", "orders": ORDERS, "width": 1 / 64, "steps": 6} | options))


def values_of(trainer, name="components"):
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
    return {key.removeprefix(f"{name}/"): value for key, value in metrics.items() if key.startswith(f"{name}/")}


def keys(labels=True):
    """The documented table, by hand."""
    each = ["significance", "unexplained"] + (["contribution", "effectiveness", "loss", "accuracy"] if labels else [])
    names = {f"{key}/{order}" for key in each for order in ORDERS} | {"rest_significance"}
    names |= {"feature_loss", "feature_accuracy", "gain"} if labels else set()
    both = names | {f"test/{name}" for name in names}
    return both | ({f"overfitting/{order}" for order in ORDERS} if labels else set())


def test_the_key_set_is_exact(tmp_path):
    assert set(values_of(fit(Stranger(), monitor(), folder=tmp_path))) == keys()
    without = monitor(unpack=lambda batch: (batch[0], None))
    assert set(values_of(fit(Stranger(), without, folder=tmp_path))) == keys(labels=False)


class Collapsed(Net):
    def forward(self, x):
        return super().forward(0 * x)


def test_a_collapsed_network_has_no_components_and_trains_on(tmp_path):
    looking = monitor(layer="conv", measure_untrained=False)
    with pytest.warns(UserWarning, match="components: no components in epoch 1 .the feature is the same for all"):
        values = values_of(fit(Stranger(Collapsed()), looking, folder=tmp_path))
    assert set(values) == {f"{key}/{order}" for key in ("significance", "unexplained") for order in ORDERS}
    assert all(math.isnan(value) for value in values.values())


@pytest.mark.parametrize("layer", ["norm", "model.norm", "fc1"])
def test_the_values_are_those_of_the_trained_network(tmp_path, layer):
    module, mine = Stranger(), monitor(layer=layer, batch_size=8)
    values = values_of(fit(module, mine, folder=tmp_path))
    x, y = images().tensors
    module.eval()
    with torch.no_grad():
        feature = module.model.norm(module.model.conv(x))
        logits = module(x)["logits"]
        if layer == "fc1":
            feature = module.model.fc1(F.max_pool2d(F.relu(feature), 2, padding=1).flatten(1))
        phi = mine.distiller.nets(x)
    total = (feature - feature.mean(0)).square().flatten(1).sum(1).mean().item()
    first = (phi[0] - phi[0].mean(0)).square().flatten(1).sum(1).mean().item()
    error = (feature - phi[1]).square().flatten(1).sum(1).mean().item()
    assert values["significance/4"] == pytest.approx(first / total, rel=1e-4)
    assert values["unexplained/7"] == pytest.approx(error / total, rel=1e-4)
    assert values["feature_loss"] == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-5, abs=1e-6)
    assert values["feature_accuracy"] == pytest.approx((logits.argmax(1) == y).float().mean().item())
    assert sum(values[f"contribution/{order}"] for order in ORDERS) == pytest.approx(values["gain"], abs=1e-6)
    excess = 1 - values["test/contribution/4"] / values["contribution/4"]
    assert values["overfitting/4"] == pytest.approx(excess, rel=1e-4)
    with torch.no_grad():
        replaced = head_of(module.model, layer)(phi[1])
    assert values["loss/7"] == pytest.approx(F.cross_entropy(replaced, y).item(), rel=1e-4)


def head_of(net, layer):
    if layer == "fc1":
        return lambda f: net.fc2(f.relu())
    return lambda f: net.fc2(net.fc1(F.max_pool2d(f.relu(), 2, padding=1).flatten(1)).relu())


def state_after_training(folder, *callbacks):
    pl.seed_everything(3, verbose=False)
    module = Stranger(Net(dropout=0.5))
    trainer = fit(module, *callbacks, folder=folder)
    return [*module.state_dict().values(), *trainer.optimizers[0].state_dict()["state"].values()], torch.rand(3)


def test_training_with_the_monitor_is_bitwise_the_same(tmp_path):
    state, numbers = state_after_training(tmp_path, monitor(every_n_epochs=1, measure_untrained=True))
    alone, expected = state_after_training(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(state, alone, strict=True))
    assert torch.equal(numbers, expected)


class SameBatches(Stranger):
    """Does not train, so that one and two processes have the same network."""

    def training_step(self, batch, batch_idx):
        return 0.0 * super().training_step(batch, batch_idx)


@pytest.mark.parametrize("steps", [3])
def test_two_processes_give_the_numbers_of_one(tmp_path, steps):
    def values(**options):
        torch.manual_seed(1)
        mine = monitor(layer="0.norm", steps=steps, batch_size=8, num_shown=2)
        module = SameBatches(nn.Sequential(Net()))
        module.model[0].norm.momentum = 0.0
        return values_of(fit(module, mine, folder=tmp_path, max_epochs=1, **options))

    alone, both = values(), values(devices=2, strategy="ddp_fork")
    assert set(alone) == set(both) == keys()
    for key, value in alone.items():
        assert both[key] == pytest.approx(value, rel=1e-5, abs=1e-9), key


def test_measured_at_the_end_only_unless_asked_for(tmp_path):
    mine = monitor()
    fit(Stranger(), mine, folder=tmp_path, max_epochs=3)
    assert [row["epoch"] for row in mine.history] == [2]
    mine = monitor(every_n_epochs=2, measure_untrained=True)
    fit(Stranger(), mine, folder=tmp_path, max_epochs=3)
    assert [row["epoch"] for row in mine.history] == [-1, 1, 2]


def test_distillation_continues_where_the_last_one_ended(tmp_path):
    mine = monitor(every_n_epochs=1, steps=10, learning_rate=1e-2)
    fit(Stranger(learning_rate=0.0), mine, folder=tmp_path, max_epochs=4)
    unexplained = [row["unexplained/4"] for row in mine.history]
    assert unexplained == sorted(unexplained, reverse=True)
    assert unexplained[-1] < 0.95 * unexplained[0]
    state = mine.state_dict()
    resumed = monitor()
    resumed.load_state_dict(state)
    assert state["nets"].keys() == mine.distiller.nets.state_dict().keys()
    nets = resumed.distiller.distil([(torch.zeros(2, 1, 8, 8), torch.zeros(2, 4, 6, 6))], 1, 0.0, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(nets.parameters(), mine.distiller.nets.parameters(), strict=True))
    assert resumed.history == mine.history


def test_pictures_and_tables(tmp_path):
    mine = monitor(every_n_epochs=1)
    trainer = fit(Stranger(), mine, folder=tmp_path, logger=CSVLogger(tmp_path))
    folder = tmp_path / "lightning_logs" / "version_0"
    pictures = sorted(path.name for path in (folder / "figures").iterdir())
    assert pictures == ["components_bars.png", "components_curves.png", "components_maps.png"]
    document = json.loads((folder / "tables" / "components.json").read_text())
    values = values_of(trainer)
    assert document["train"]["significance"] == pytest.approx([values[f"significance/{o}"] for o in ORDERS], rel=1e-6)
    assert document["train"]["overfitting"] == pytest.approx([values[f"overfitting/{o}"] for o in ORDERS], rel=1e-4)
    with (folder / "tables" / "components.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["split"], row["order"]) for row in rows] == [
        (split, order) for split in ("train", "test") for order in ("4", "7", "all")
    ]
    assert float(rows[3]["accuracy"]) == pytest.approx(values["test/accuracy/4"])
    assert float(rows[2]["feature_loss"]) == pytest.approx(values["feature_loss"], rel=1e-6)


def test_a_dry_run_is_short_and_leaves_nothing(tmp_path):
    mine = monitor(steps=10_000)
    fit(Stranger(), mine, folder=tmp_path, fast_dev_run=True)
    assert len(mine.history) == 1
    assert not list(tmp_path.iterdir())


def test_measures_the_nets_of_a_disentangler(tmp_path):
    torch.manual_seed(0)
    teacher = Net()
    module = Disentangler(teacher, "norm", ORDERS, 1 / 64, input_shape=(1, 8, 8))
    mine = FeatureComponents(batch_size=8)
    values = values_of(fit(module, mine, folder=tmp_path))
    assert set(values) == keys()
    assert mine.distiller.nets is None
    x, y = images().tensors
    module.eval()
    metric = ComponentMetric(ORDERS)
    with torch.no_grad():
        module.cut.find_head(x)
        metric.update(module.cut.feature(x), module(x), module.cut.head, y)
    found = metric.components()
    assert values["significance/7"] == pytest.approx(found.significance[1], rel=1e-4)
    assert values["contribution/4"] == pytest.approx(found.contribution[0], abs=1e-5)


class WithOrdersOfItsOwn(Stranger):
    """Has nothing to do with disentangler nets, in spite of its attributes."""

    orders, split, cut = 3, "train", None


def test_attributes_of_common_names_make_no_disentangler(tmp_path):
    mine = monitor()
    assert set(values_of(fit(WithOrdersOfItsOwn(), mine, folder=tmp_path, max_epochs=1))) == keys()
    assert mine.distiller.nets is not None


def test_a_disentangler_logs_its_own_beside_it(tmp_path):
    module = Disentangler(Net(), "norm", ORDERS, 1 / 64, input_shape=(1, 8, 8))
    logged = {key: float(value) for key, value in fit(module, monitor(), folder=tmp_path).callback_metrics.items()}
    module_keys = {key for key in logged if not key.startswith("components/")}
    losses = {f"{stage}/loss{suffix}" for stage in ("train", "val") for suffix in ("", "/4", "/7")}
    assert module_keys == losses | {"val/unexplained"} | {f"val/significance/{order}" for order in ORDERS}


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_other_precisions(tmp_path, precision):
    values = values_of(fit(Stranger(), monitor(), folder=tmp_path, max_epochs=1, precision=precision))
    assert 0 < values["unexplained/4"] < 100


def test_two_instances_do_not_collide(tmp_path):
    trainer = fit(Stranger(), monitor(name="one"), monitor(name="two", layer="fc1"), folder=tmp_path, max_epochs=1)
    assert values_of(trainer, "one").keys() == values_of(trainer, "two").keys() == keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_images": 0}, "num_images is 0; expected a number >= 1"),
        ({"steps": 0}, "steps is 0"),
        ({"num_shown": 0}, "num_shown is 0"),
        ({"every_n_epochs": 0}, "every_n_epochs is 0"),
        ({"orders": (4, 6)}, r"order is 6; expected 3m \+ 1"),
        ({"width": 0.3}, "width is 0.3"),
    ],
)
def test_bad_options_are_named_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        monitor(**options)


def test_bad_layers_and_heads_are_named(tmp_path):
    with pytest.raises(ValueError, match="Net has no layer 'nrm', did you mean 'norm'"):
        fit(Stranger(), monitor(layer="nrm"), folder=tmp_path)
    with pytest.raises(ValueError, match=r"head is \['fc2'\]; expected one that makes the logits"):
        fit(Stranger(), monitor(head=["fc2"]), folder=tmp_path)

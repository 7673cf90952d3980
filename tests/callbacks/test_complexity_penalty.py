import copy
import gc
import threading
import warnings
import weakref

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
import torchvision
from pytorch_lightning.callbacks import ModelCheckpoint, StochasticWeightAveraging, WeightAveraging
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from third_party_modules import Net, Stranger, fit, images, loaders
from torch import nn
from torch.utils.data import DataLoader

from netprism.callbacks import ComplexityPenalty, GatingEntropy
from netprism.datamodules import Digits
from netprism.gates.loss import ComplexityLoss
from netprism.lightning_modules import Classifier
from netprism.nets import MLP

pytestmark = [
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),  # a checkpoint of another run
    pytest.mark.usefixtures("short_annealing"),
]

LAYERS = (":relu#0", ":relu#1")  # of strangers.Net, which the stranger keeps in one attribute
KINDS = ("complexity", "energy_gap", "acceptance", "entropy_bound", "entropy_bound_error")
TOTALS = {f"penalty/{key}" for key in ("complexity", "nonfinite_skips", "weighted", "fraction")}
NARROW = (8, 8)  # f of the tests: what they test does not depend on it


def penalty(weight=1e-2, **options):
    return ComplexityPenalty(weight, **({"estimator": "energy", "widths": NARROW, "chains": 8} | options))


def trained(*callbacks, folder, module=None, **options):
    torch.manual_seed(0)
    module = module or Stranger()
    trainer = fit(module, *callbacks, folder=folder, **options)
    return module, trainer


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def logged(trainer):
    return {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("penalty/")}


def test_the_key_set_is_exact(tmp_path):
    _, trainer = trained(penalty(), folder=tmp_path)
    each = {f"penalty/{key}/{layer}" for key in KINDS for layer in LAYERS}
    assert set(logged(trainer)) == {*TOTALS, *each, "penalty/train_test_gap"}
    _, trainer = trained(penalty(layers=-1, estimator="prior", losses=("train", "val")), folder=tmp_path)
    assert set(logged(trainer)) == {*TOTALS, f"penalty/complexity/{LAYERS[1]}"}


def test_lambda_0_is_a_training_without_it_to_the_bit(tmp_path):
    plain, _ = trained(folder=tmp_path)
    state = torch.get_rng_state()
    watched, trainer = trained(penalty(0.0), folder=tmp_path)
    assert equal(plain, watched)
    assert torch.equal(torch.get_rng_state(), state)
    assert logged(trainer)["penalty/energy_gap/:relu#0"] != 0, "the energies have learned"
    pressed, _ = trained(penalty(1e-2), folder=tmp_path)
    assert not equal(plain, pressed)


def test_gating_entropy_beside_it_measures_the_same(tmp_path):
    monitor = {"num_images": 12, "measure_untrained": False}
    _, alone = trained(GatingEntropy(**monitor), folder=tmp_path, max_epochs=1)
    _, beside = trained(penalty(0.0), GatingEntropy(**monitor), folder=tmp_path, max_epochs=1)
    assert alone.callback_metrics["gates/entropy"] == beside.callback_metrics["gates/entropy"]


def test_the_complexity_falls_with_lambda(tmp_path):
    values = {}
    for weight in (0.0, 0.1):
        _, trainer = digits(penalty(weight, estimator="prior"), folder=tmp_path / str(weight), epochs=4)
        values[weight] = logged(trainer)["penalty/complexity"]
    assert values[0.1] < 0.8 * values[0.0]


class Steps(Stranger):
    """One step of gradient descent from the same weights; what `training_step` returns, its own way."""

    form = "tensor"

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return {"tensor": loss, "dict": {"loss": loss, "kept": 7}, "none": None}[self.form]

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.outputs = outputs


@pytest.mark.parametrize("form", ["tensor", "dict", "none"])
def test_adds_to_whatever_training_step_returns(form, tmp_path):
    torch.manual_seed(0)
    module = Steps()
    module.form = form
    loader = DataLoader(images(), 16)
    callback = penalty(0.5)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*returned.*None")
        fit(module, callback, folder=tmp_path, train=loader, max_steps=1, max_epochs=1)
    torch.manual_seed(0)
    expected = Steps()
    if form != "none":
        loss = ComplexityLoss(expected.model, widths=NARROW, chains=8, estimator="energy")
        x, y = next(iter(loader))
        with loss.watch() as gates:
            logits = expected(x)["logits"]
        value = F.cross_entropy(logits, y) + 0.5 * loss(gates)
        value.backward()
        with torch.no_grad():
            for p in expected.parameters():
                p -= 0.05 * p.grad
        assert module.outputs["loss"] == value
        assert form == "tensor" or module.outputs["kept"] == 7
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(module.parameters(), expected.parameters(), strict=True))


def test_every_n_steps_and_warmup(tmp_path):
    def calls(callback):
        count = []
        original = ComplexityLoss.forward
        try:
            ComplexityLoss.forward = lambda self, gates: (count.append(1), original(self, gates))[1]
            module, _ = trained(callback, folder=tmp_path, max_epochs=2)  # 6 steps
        finally:
            ComplexityLoss.forward = original
        return len(count), module

    assert calls(penalty())[0] == 6
    assert calls(penalty(every_n_steps=4))[0] == 2
    plain, _ = trained(folder=tmp_path)
    count, module = calls(penalty(warmup_steps=6))
    assert (count, equal(module, plain)) == (6, True)
    assert not equal(calls(penalty(warmup_steps=5))[1], plain)


def test_accumulated_gradients_are_those_of_the_joint_batch_with_frozen_energies(tmp_path):
    # With f = 0 and rates that a second batch of the same images does not move, halves sum up to the whole.
    x, y = images(8).tensors
    twice = torch.utils.data.TensorDataset(torch.cat([x, x]), torch.cat([y, y]))
    results = []
    for options in ({"train": DataLoader(images(8), 8)}, {"train": DataLoader(twice, 8), "accumulate_grad_batches": 2}):
        torch.manual_seed(0)
        module = Stranger(nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 3), Named()))
        fit(module, penalty(0.1, estimator="prior"), folder=tmp_path, max_epochs=1, **options)
        results.append(module)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*(m.parameters() for m in results), strict=True))


class Named(nn.Module):
    def forward(self, x):
        return {"logits": x}


@pytest.mark.parametrize("options", [{"gradient_clip_val": 0.1}, {"precision": "bf16-mixed"}, {"precision": 64}])
def test_works_with_the_options_of_the_trainer(options, tmp_path):
    _, trainer = trained(penalty(), folder=tmp_path, **options)
    assert 0 < logged(trainer)["penalty/complexity"] < 500
    assert logged(trainer)["penalty/nonfinite_skips"] == 0


@pytest.mark.parametrize("other", [WeightAveraging, lambda: StochasticWeightAveraging(1e-2)])
def test_works_beside_averaged_weights(other, tmp_path):
    _, trainer = trained(penalty(), other(), folder=tmp_path, max_epochs=3)
    assert 0 < logged(trainer)["penalty/complexity"] < 500


def test_a_compiled_module(tmp_path):
    torch.manual_seed(0)
    module = Stranger()
    module.model = torch.compile(module.model, backend="eager")
    fit(module, penalty(), folder=tmp_path)
    plain, trainer = trained(penalty(), folder=tmp_path)
    assert {key for key in logged(trainer) if "gap/" in key} == {f"penalty/energy_gap/{layer}" for layer in LAYERS}
    assert equal(module, plain)


class Scattered(pl.LightningModule):
    """No forward, several networks, a ReLU in the training step itself, which is also the validation step."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU())
        self.neck, self.head = nn.Linear(12, 8), nn.Linear(8, 3)

    def training_step(self, batch):
        return F.cross_entropy(self.head(F.relu(self.neck(self.body(batch[0])))), batch[1])

    def validation_step(self, batch):
        self.log("val_loss", self.training_step(batch))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


def test_gates_in_the_training_step_itself_count_where_they_are_named(tmp_path):
    for layers, expected in ((-4, ["body.2"]), (["body", "training_step"], ["body.2", "training_step:relu#0"])):
        _, trainer = trained(penalty(layers=layers), folder=tmp_path, module=Scattered(), max_epochs=1)
        assert energy_keys(trainer) == expected


def energy_keys(trainer):
    return sorted(key.removeprefix("penalty/complexity/") for key in logged(trainer) if "complexity/" in key)


class Forward(Stranger):
    """A functional ReLU in the LightningModule's own forward, a hinge in the training step, two networks."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 3)
        self.criterion = Hinge()

    def forward(self, x):
        return {"logits": self.head(F.relu(super().forward(x)["logits"]))}

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x.clamp(min=0))["logits"]
        right = logits.gather(1, y[:, None])
        return F.relu(1 - right).mean() + self.criterion(1 + logits - right)


class Hinge(nn.Module):
    def forward(self, x):
        return x.clamp(min=0).mean()


def test_the_gates_of_a_loss_function_do_not_count(tmp_path):
    _, trainer = trained(penalty(layers=None), folder=tmp_path, module=Forward(), max_epochs=1)
    assert energy_keys(trainer) == [":relu#0", ":relu#1", ":relu#2"]


class Distilled(Stranger):
    """A teacher, and now and then a look at the network itself, without gradients and before the real pass."""

    def __init__(self):
        super().__init__()
        self.teacher = Net()

    def training_step(self, batch, batch_idx):
        x, y = batch
        with torch.no_grad():
            soft = self.teacher(x)["logits"]
            if batch_idx % 2:
                self.model(x)
        logits = self.model(x)["logits"]
        return F.cross_entropy(logits, y) + F.mse_loss(logits, soft)


def test_what_runs_without_gradients_does_not_count(tmp_path):
    callback = penalty()
    _, trainer = trained(callback, folder=tmp_path, module=Distilled(), max_epochs=1)
    assert energy_keys(trainer) == [":relu#0", ":relu#1"]
    with pytest.raises(ValueError, match="gating layer 'teacher' runs without gradients"):
        trained(penalty(layers=["teacher"]), folder=tmp_path, module=Distilled())


class Views(Stranger):
    """Consistency of two views of each image."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        first, second = self.model(x)["logits"], self.model(x.flip(3))["logits"]
        return F.cross_entropy(first, y) + F.mse_loss(first, second)


def test_two_passes_in_a_step_are_pooled(tmp_path):
    loader = DataLoader(images(), 16)
    callback = penalty(layers=-1)
    torch.manual_seed(0)
    fit(Views(), callback, folder=tmp_path, train=loader, max_steps=1)
    torch.manual_seed(0)
    module = Views()
    explicit = ComplexityLoss(module.model, layers=-1, widths=NARROW, chains=8, estimator="energy")
    with explicit.watch() as gates:
        module.training_step(next(iter(loader)), 0)
    explicit(gates)
    assert callback.loss.layers == explicit.layers == (":relu#1",)
    assert callback.loss.samples == explicit.samples == 32
    assert callback.loss.metrics == explicit.metrics


class Locked(pl.LightningDataModule):
    """What cannot be copied."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()

    def train_dataloader(self):
        return DataLoader(images(), 16)

    def val_dataloader(self):
        return DataLoader(images(), 16)


def test_a_copy_of_the_module_has_the_plain_step(tmp_path):
    class Copies(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            self.copy = copy.deepcopy(module)

    copies = Copies()
    trainer = pl.Trainer(
        max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu", callbacks=[penalty(), WeightAveraging(), copies], default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Stranger(), datamodule=Locked())
    assert copies.copy.training_step.__func__ is Stranger.training_step
    assert copies.copy.training_step.__self__ is copies.copy


class Validates(Stranger):
    def validation_step(self, batch, batch_idx):
        with torch.enable_grad():
            self.log("val_loss", self.training_step(batch, batch_idx))


def test_a_validation_that_calls_the_training_step_teaches_nothing(tmp_path):
    callback = penalty()
    options = {"max_epochs": 1, "inference_mode": False, "num_sanity_val_steps": 2}
    _, trainer = trained(callback, folder=tmp_path, module=Validates(), **options)
    _, plain = trained(folder=tmp_path, module=Validates(), **options)
    assert [energy.num_updates for energy in callback.loss._models.by_layer.values()] == [3, 3]
    assert set(trainer.callback_metrics) == {
        *plain.callback_metrics,
        *TOTALS,
        "penalty/train_test_gap",
        *(f"penalty/{kind}/{layer}" for kind in KINDS for layer in LAYERS),
    }


class Uneven(Stranger):
    """Nine images: five for the first process, four for the second."""

    def __init__(self):
        super().__init__(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3), Named()))

    def train_dataloader(self):
        own = [range(9)] if self.trainer.world_size == 1 else [range(5), range(5, 9)]
        return DataLoader(torch.utils.data.Subset(images(9), own[self.trainer.global_rank]), 16)


def test_means_are_over_all_samples_of_uneven_processes(tmp_path):
    values = []
    for options in ({}, {"devices": 2, "strategy": "ddp_fork"}):
        torch.manual_seed(0)
        trainer = pl.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path, use_distributed_sampler=False,
            callbacks=[penalty(estimator="prior")], **({"devices": 1} | options),
        )  # fmt: skip
        trainer.fit(Uneven(), val_dataloaders=loaders()[1])
        values.append(logged(trainer)["penalty/complexity"])
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_history_has_only_what_the_epoch_measured(tmp_path):
    callback = penalty(every_n_steps=8)
    digits(callback, folder=tmp_path, epochs=3, check_val_every_n_epoch=2)  # five steps an epoch
    assert ["complexity" in row for row in callback.history] == [True, True, False]
    assert ["train_test_gap" in row for row in callback.history] == [False, True, False]


def test_a_dict_without_loss_is_lightnings_error(tmp_path):
    class NoLoss(Stranger):
        def training_step(self, batch, batch_idx):
            return {"value": super().training_step(batch, batch_idx)}

    with pytest.raises(MisconfigurationException, match="the 'loss' key needs to be present"):
        fit(NoLoss(), penalty(), folder=tmp_path)


class Other(pl.Callback):
    """Somebody else who wraps the step, and puts back what he found."""

    def setup(self, trainer, module, stage):
        self.step = module.training_step
        module.training_step = lambda batch, batch_idx: self.step(batch, batch_idx)

    def teardown(self, trainer, module, stage):
        module.training_step = self.step


def test_another_wrapper_around_it(tmp_path):
    module, trainer = trained(penalty(), Other(), folder=tmp_path, max_epochs=1)
    assert "penalty/complexity" in logged(trainer)
    batch = next(iter(DataLoader(images(), 16)))
    assert module.training_step(batch, 0).isfinite()  # a mere passage now


def test_lets_go_of_the_module(tmp_path):
    callback = penalty()
    module = trained(callback, folder=tmp_path, max_epochs=1)[0]
    alive = weakref.ref(module)
    del module, callback.log, callback.log_dict  # these are Lightning's
    gc.collect()
    assert alive() is None
    assert callback.state_dict()["loss"]["_extra_state"]["energies"]


class ResNet18(Stranger):
    def __init__(self):
        super().__init__(torchvision.models.resnet18(num_classes=3))

    def forward(self, x):
        return {"logits": self.model(F.interpolate(x, size=32).expand(-1, 3, -1, -1))}


def test_torchvisions_resnet18(tmp_path):
    callback = penalty(layers=-4)
    _, trainer = trained(callback, folder=tmp_path, module=ResNet18(), max_steps=2, limit_val_batches=1)
    layers = [key.removeprefix("penalty/energy_gap/") for key in logged(trainer) if "gap/" in key]
    assert layers == ["layer4.0.relu", "layer4.0.relu#1", "layer4.1.relu", "layer4.1.relu#1"]


def test_leaves_the_module_as_it_was(tmp_path):
    module, _ = trained(penalty(), folder=tmp_path)
    assert "training_step" not in vars(module)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())

    class Fails(Stranger):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            raise ZeroDivisionError

    module = Fails()
    with pytest.raises(ZeroDivisionError):
        fit(module, penalty(), folder=tmp_path)
    assert "training_step" not in vars(module)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def test_what_cannot_be_is_said_in_a_line(tmp_path):
    for options, message in (
        ({"weight": -1e-3}, "weight is -0.001; expected a number >= 0"),
        ({"weight": float("nan")}, "weight is nan; expected a number >= 0"),
        ({"every_n_steps": 0}, "every_n_steps is 0; expected a number >= 1"),
        ({"warmup_steps": -1}, "warmup_steps is -1; expected a number >= 0"),
        ({"beta": -1}, "beta is -1; expected a number > 0"),
    ):
        with pytest.raises(ValueError, match=message):
            ComplexityPenalty(**options)
    by_hand = Stranger()
    by_hand.automatic_optimization = False
    with pytest.raises(
        ValueError,
        match="Stranger optimises manually; with self.complexity =",
    ):
        fit(by_hand, penalty(), folder=tmp_path)
    with pytest.raises(ValueError, match="no gating layer 'conv'; there are: :relu#0, :relu#1"):
        fit(Stranger(), penalty(layers=["conv"]), folder=tmp_path)


def digits(*callbacks, folder, epochs, checkpoint=None, **options):
    """A run of `Classifier` on 80 digits of 8 x 8 pixels, five steps an epoch with batches of 16."""
    torch.manual_seed(0)
    module = Classifier(MLP((64, 24, 16, 10)))
    settings = {
        "max_epochs": epochs, "accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "default_root_dir": folder, "num_sanity_val_steps": 0,
    }  # fmt: skip
    trainer = pl.Trainer(callbacks=[*callbacks, ModelCheckpoint(folder, save_last=True)], **(settings | options))
    batch_size = 16 // trainer.world_size
    data = Digits(image_size=8, train_samples=80, batch_size=batch_size)
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    return module, trainer


def test_resumed_it_is_the_uninterrupted_training_to_the_bit(tmp_path):
    whole, resumed = penalty(), penalty()
    expected, _ = digits(whole, folder=tmp_path / "whole", epochs=3)
    digits(penalty(), folder=tmp_path / "first", epochs=1)
    module, _ = digits(resumed, folder=tmp_path / "second", epochs=3, checkpoint=tmp_path / "first" / "last.ckpt")
    assert equal(module.net, expected.net)
    assert [row["epoch"] for row in resumed.history] == [0, 1, 2]
    assert resumed.history == whole.history
    for a, b in zip(whole.loss._models.by_layer.values(), resumed.loss._models.by_layer.values(), strict=True):
        assert torch.equal(a.chains, b.chains)
        assert a.num_updates == b.num_updates == 15
        assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_goes_on_without_it_from_its_checkpoint(tmp_path):
    module, _ = digits(penalty(), folder=tmp_path / "with", epochs=1)
    with pytest.warns(UserWarning, match="ComplexityPenalty"):  # Lightning's, of a state without its callback
        gone_on, _ = digits(folder=tmp_path / "without", epochs=2, checkpoint=tmp_path / "with" / "last.ckpt")
    assert not equal(module.net, gone_on.net)
    loaded = Classifier.load_from_checkpoint(
        tmp_path / "with" / "last.ckpt", net=MLP((64, 24, 16, 10)), weights_only=True
    )
    assert equal(loaded.net, module.net)


def test_the_gap_is_the_test_loss_minus_the_training_loss(tmp_path):
    callback = penalty()
    _, trainer = digits(callback, folder=tmp_path, epochs=2)
    metrics = trainer.callback_metrics
    expected = metrics["val/loss"] - metrics["train/loss"]
    assert metrics["penalty/train_test_gap"] == pytest.approx(float(expected), abs=1e-6)
    assert callback.history[-1]["train_test_gap"] == pytest.approx(float(expected), abs=1e-6)


def test_one_process_and_two_train_the_same_network(tmp_path):
    one, trainer = digits(penalty(), folder=tmp_path / "one", epochs=2)
    two, trainers = digits(penalty(), folder=tmp_path / "two", epochs=2, devices=2, strategy="ddp_fork")
    assert trainers.world_size == 2
    for a, b in zip(one.net.parameters(), two.net.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    for key, value in logged(trainer).items():
        assert logged(trainers)[key] == pytest.approx(value, abs=2e-3), key


@pytest.mark.pictures
def test_draws_the_curves(tmp_path):
    digits(penalty(), folder=tmp_path / "checkpoints", epochs=2, logger=CSVLogger(tmp_path))
    (picture,) = tmp_path.rglob("penalty_curves.png")
    assert picture.stat().st_size > 5000


class TwoOptimisers(Stranger):
    """The explicit form: manual optimisation, the loss in a training step of one's own."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.complexity = ComplexityLoss(self.model, layers=-1, widths=NARROW, chains=8, estimator="energy")

    def training_step(self, batch, batch_idx):
        with self.complexity.watch() as gates:
            task = super().training_step(batch, batch_idx)
        loss = task + 1e-2 * self.complexity(gates)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), 0.05) for part in (self.model.fc1, self.model.fc2)]


def test_the_explicit_form_with_several_optimisers_and_its_checkpoint(tmp_path):
    module, trainer = trained(folder=tmp_path, module=TwoOptimisers())
    assert module.complexity.metrics["energy_gap/:relu#1"] != 0
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = TwoOptimisers.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    ours, theirs = (m.complexity.state_dict()["_extra_state"]["energies"][":relu#1"] for m in (module, loaded))
    assert torch.equal(ours["chains"], theirs["chains"])
    assert ours["_extra_state"] == theirs["_extra_state"] == {"num_updates": 6, "collapsed": False}


class Blocks(pl.LightningModule):
    """A network with blocks, under the name that most people give it."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU()), nn.Linear(4, 3))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("name", ["0", "net.0", "net.0.2"])
def test_layers_may_be_named_in_full_as_well(name, tmp_path):
    _, trainer = trained(penalty(layers=[name]), folder=tmp_path, module=Blocks(), max_epochs=1)
    assert energy_keys(trainer) == ["0.2"]

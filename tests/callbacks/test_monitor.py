"""The laws of a monitor: it measures, and training does not notice."""

import random
import shutil

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torchvision
from small_monitors import MONITORS, Module
from third_party_modules import NaNOnRank1, Net, Stranger, figures_of, fit, images, loaders
from torch import nn
from torch.utils.data import DataLoader

from netprism.callbacks import GatingEntropy
from netprism.callbacks._calling import callable_and_network
from netprism.callbacks._monitor import Monitor
from netprism.callbacks._view import undisturbed


def all_random_numbers():
    return torch.rand(3).tolist() + np.random.rand(3).tolist() + [random.random()]


def state_after_training(folder, *callbacks, net=None):
    pl.seed_everything(3, verbose=False)
    module = Stranger(net() if net else Net(dropout=0.5))
    trainer = fit(module, *callbacks, folder=folder)
    return [*module.state_dict().values(), *trainer.optimizers[0].state_dict()["state"].values()], all_random_numbers()


@pytest.mark.parametrize("kinds", [("relu",), ("relu", "max_pool", "dropout")])
def test_training_with_a_monitor_is_bitwise_the_same(tmp_path, kinds):
    weights, numbers = state_after_training(tmp_path, GatingEntropy(num_images=20, kinds=kinds, batch_size=7))
    weights_alone, numbers_alone = state_after_training(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(weights, weights_alone, strict=True))
    assert numbers == numbers_alone


class Disturbing(Monitor):
    """Does all that a monitor may do to a network, and then raises if asked to."""

    def __init__(self, fail):
        super().__init__("disturbing")
        self.fail = fail

    def measure(self, view, epoch):
        pl_module = view.pl_module
        assert not any(m.training for m in pl_module.modules())
        pl_module.train()
        pl_module(torch.randn(4, 1, 8, 8))
        pl_module.model.norm.running_mean = torch.full((4,), 7.0)
        pl_module.model.conv.weight.requires_grad_(False)
        random.random(), np.random.rand(), torch.rand(1)
        if self.fail:
            raise KeyError("mine")
        return {"one": 1.0}


@pytest.mark.parametrize("fail", [False, True])
def test_flags_buffers_gradients_and_random_state_are_put_back(fail):
    module = Stranger(Net())
    module.train()
    module.model.norm.eval()  # a frozen part stays frozen
    module.model.fc2.weight.requires_grad_(False)
    flags = [m.training for m in module.modules()]
    requires = [p.requires_grad for p in module.parameters()]
    buffers = {name: (buffer, buffer.clone()) for name, buffer in module.named_buffers()}
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = all_random_numbers()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    monitor = Disturbing(fail)
    if fail:
        with pytest.raises(KeyError, match="mine"):
            monitor.look(None, module, 0)
    else:
        assert monitor.look(None, module, 0) == {"disturbing/one": 1.0}
    assert all_random_numbers() == expected
    assert [m.training for m in module.modules()] == flags
    assert [p.requires_grad for p in module.parameters()] == requires
    for name, buffer in module.named_buffers():
        assert buffer is buffers[name][0]
        assert torch.equal(buffer, buffers[name][1])


def test_hooks_are_gone_after_a_monitor_that_raised(tmp_path):
    class Broken(Net):
        def forward(self, x):
            return super().forward(x * float("nan") if not self.training else x)

    module = Stranger(Broken())
    with pytest.raises(ValueError, match="NaN at the input of gating layer ':relu#0'"):
        fit(module, GatingEntropy(num_images=9), folder=tmp_path, num_sanity_val_steps=0)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def test_buffers_that_appear_or_cannot_be_written_are_put_back():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("first", None)
            self.register_buffer("expanded", torch.zeros(1).expand(4))
            self.register_buffer("nan", torch.tensor(float("nan")))

    net = Net()
    with undisturbed(net):
        net.first = torch.ones(2)
        net.register_buffer("new", torch.ones(1))
    assert net.first is None
    assert set(net._buffers) == {"first", "expanded", "nan"}


class Counting(Monitor):
    def __init__(self, **options):
        super().__init__("counting", **options)
        self.epochs = []

    def measure(self, view, epoch):
        self.epochs.append(epoch)
        return {"epochs": float(len(self.epochs))}


@pytest.mark.parametrize(
    ("options", "epochs"),
    [
        ({}, [-1, 0, 1, 2, 3, 4]),
        ({"measure_untrained": False}, [0, 1, 2, 3, 4]),
        ({"every_n_epochs": 2}, [-1, 1, 3, 4]),
        ({"every_n_epochs": 9, "measure_untrained": False}, [4]),
    ],
)
def test_when_it_measures(tmp_path, options, epochs):
    monitor = Counting(**options)
    trainer = fit(Stranger(), monitor, folder=tmp_path, max_epochs=5)
    assert monitor.epochs == epochs
    assert trainer.callback_metrics["counting/epochs"] == len(epochs)


def test_the_last_epoch_is_measured_whatever_ends_the_training(tmp_path):
    monitor = Counting(every_n_epochs=9, measure_untrained=False)
    fit(Stranger(), monitor, folder=tmp_path, max_epochs=-1, max_steps=7)
    assert monitor.epochs == [2]  # three steps an epoch

    class Stopping(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.should_stop = True

    monitor = Counting(every_n_epochs=9, measure_untrained=False)
    fit(Stranger(), Stopping(), monitor, folder=tmp_path, max_epochs=8)
    assert monitor.epochs == [0]


def test_every_n_epochs_must_be_positive():
    with pytest.raises(ValueError, match="every_n_epochs is 0; expected a number >= 1"):
        Counting(every_n_epochs=0)


def test_only_what_trains_and_does_not_normalise_may_sample():
    class Looking(Monitor):
        def measure(self, view, epoch):
            net = view.pl_module.model
            with view.sampling():
                during = [m.training for m in net]
            return {"before": during == [False, True, False, False, True], "after": not any(m.training for m in net)}

    net = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5), nn.SyncBatchNorm(2), nn.Dropout(0.5), nn.ReLU())
    net[3].eval()  # a part that somebody froze
    assert Looking("looking").look(None, Stranger(net), 0) == {"looking/before": True, "looking/after": True}
    assert [m.training for m in net] == [True, True, True, False, True]


@pytest.mark.parametrize(("dropout", "draws"), [(0.5, True), (0.0, False)])
def test_drawing_random_numbers_is_noticed(tmp_path, dropout, draws):
    class Looking(Monitor):
        def measure(self, view, epoch):
            found, why_not = view.draws_random_numbers(self.choose_data(view, "train"))
            return {"draws": found, "untried": bool(why_not)}

    trainer = fit(Stranger(Net(dropout=dropout)), Looking("looking", num_images=4), folder=tmp_path, max_epochs=1)
    assert trainer.callback_metrics["looking/draws"] == draws
    assert not trainer.callback_metrics["looking/untried"]


def test_what_is_called_and_whose_names_are_logged():
    module = Stranger()
    assert callable_and_network(module) == (module, module.model)

    class WithoutForward(pl.LightningModule):
        def __init__(self, **nets):
            super().__init__()
            for name, net in nets.items():
                self.add_module(name, net)
            self.loss = nn.CrossEntropyLoss()

    module = WithoutForward(net=nn.Linear(1, 1))
    assert callable_and_network(module) == (module.net, module.net)
    with pytest.raises(ValueError, match=r"WithoutForward has no forward, and not one network .* \(body, head\)"):
        callable_and_network(WithoutForward(body=nn.Linear(1, 1), head=nn.Linear(1, 1)))


# -- two processes


class BuffersPerRank(pl.Callback):
    """Gives every rank its own running statistics, and writes down what the monitor left of them."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_start(self, trainer, pl_module):
        pl_module.model.norm.running_mean.fill_(0.1 + trainer.global_rank)

    def on_train_epoch_end(self, trainer, pl_module):
        pl_module.model.norm.running_mean.fill_(0.3 + trainer.global_rank)
        pl_module.model.norm.running_var.fill_(1.0 + trainer.global_rank)

    def on_train_end(self, trainer, pl_module):
        values = {key: float(value) for key, value in trainer.callback_metrics.items()}
        torch.save((pl_module.model.norm.running_mean, values), f"{self.folder}/{trainer.global_rank}.pt")


class Frozen(Stranger):
    """Does not learn, so that one process and two end with the same weights."""

    def __init__(self, net):
        super().__init__(net, learning_rate=0.0)


@pytest.mark.parametrize("samples", [45, 3])  # 3: the second rank has no batch
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_two_processes_measure_the_same_network_and_get_the_same_numbers(tmp_path, samples, dropout):
    def run(folder, devices, strategy):
        folder.mkdir()
        pl.seed_everything(5, verbose=False)
        monitor = GatingEntropy(num_images=samples, batch_size=8, kinds=("relu", "dropout"))
        fit(
            Frozen(Net(dropout)), BuffersPerRank(folder), monitor,
            folder=folder, devices=devices, strategy=strategy, max_epochs=1,
        )  # fmt: skip
        return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(devices)]

    [(_, alone)] = run(tmp_path / "one", 1, "auto")
    (mean_0, first), (mean_1, second) = run(tmp_path / "two", 2, "ddp_fork")
    assert first == second  # the ranks agree to the bit, and so do their keys
    gates = [key for key in alone if key.startswith("gates/")]
    assert len(gates) > 20
    assert {key: first[key] for key in gates} == {key: alone[key] for key in gates}  # measured with rank 0's buffers
    assert torch.equal(mean_0, torch.full((4,), 0.3))  # each rank has its own back
    assert torch.equal(mean_1, torch.full((4,), 1.3))
    if dropout:
        assert alone["gates/entropy"] != alone["gates/input_information"]


def test_a_rank_that_fails_takes_the_others_along(tmp_path):
    with pytest.raises(Exception, match="a monitor failed on another rank|NaN at the input of gating layer"):
        fit(
            Stranger(NaNOnRank1()), GatingEntropy(num_images=20, batch_size=8),
            folder=tmp_path, devices=2, strategy="ddp_fork", num_sanity_val_steps=0,
        )  # fmt: skip


# -- other people's modules


def test_torchvision_model_in_a_stranger_s_module(tmp_path):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = torchvision.models.resnet18(weights=None, num_classes=3)

        def forward(self, x):
            return {"logits": self.body(x.expand(-1, 3, -1, -1))}

    trainer = fit(
        Stranger(Wrapped()), GatingEntropy(num_images=12, measure_untrained=False), folder=tmp_path, max_epochs=1
    )
    layers = [key for key in trainer.callback_metrics if key.startswith("gates/entropy/")]
    assert len(layers) == 17
    assert "gates/entropy/body.layer1.0.relu#1" in layers


def test_lightning_inference_mode_during_validation_does_not_matter(tmp_path):
    def history(inference_mode):
        pl.seed_everything(2, verbose=False)
        monitor = GatingEntropy(num_images=12)
        fit(Stranger(), monitor, folder=tmp_path, inference_mode=inference_mode)
        return monitor.history

    assert history(True) == history(False)


def test_nested_loaders_and_a_trainer_without_validation(tmp_path):
    class Nested(Stranger):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch["a"], batch_idx)

    train, _ = loaders()
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[GatingEntropy(num_images=12)], default_root_dir=tmp_path,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="validation_step. but have no .val_dataloader"):
        trainer.fit(Nested(), {"a": train, "b": DataLoader(images(), 4)})
    assert "gates/entropy" in trainer.callback_metrics
    assert not any(key.startswith("gates/test/") for key in trainer.callback_metrics)


# -- figures of a run that was killed after its last checkpoint


@pytest.mark.filterwarnings("ignore:.*has one region, the whole image")
@pytest.mark.parametrize("kind", MONITORS)
def test_a_checkpoint_has_all_that_the_figures_show(kind, tmp_path):
    monitor, again = MONITORS[kind](), MONITORS[kind]()
    trainer = fit(Module(), monitor, folder=tmp_path, max_epochs=1)
    drawn = sorted(path.name for path in figures_of(tmp_path).iterdir())
    assert drawn
    torch.save(monitor.state_dict(), tmp_path / "state.pt")
    shutil.rmtree(figures_of(tmp_path))
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    again.draw(trainer)
    assert sorted(path.name for path in figures_of(tmp_path).iterdir()) == drawn


def test_the_line_about_images_of_a_wrong_size_is_about_the_size(tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 3))
    line = r"^images of a batch are \(1, 8, 8\); expected 32 x 32, .* on which Sequential runs \(mat1 and mat2"
    with pytest.raises(ValueError, match=line):
        fit(Stranger(net), GatingEntropy(), folder=tmp_path, num_sanity_val_steps=0)

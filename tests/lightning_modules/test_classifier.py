from typing import NamedTuple

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.cli import LightningCLI
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from netprism.datamodules import MNIST, Digits
from netprism.lightning_modules import Classifier
from netprism.nets import ResNet

CLASSES = 3
KEYS = {"train/loss", "train/accuracy", "val/loss", "val/accuracy"}


class Constant(nn.Module):
    """Returns the same thing for any batch; its one parameter is used, so that there is something to train."""

    def __init__(self, output):
        super().__init__()
        self.output, self.weight = output, nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return self.output + self.weight if isinstance(self.output, torch.Tensor) else self.output


def trainer(**kwargs):
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    defaults = {"logger": False, "accelerator": "cpu", "log_every_n_steps": 1, "max_epochs": 1}
    return Trainer(**{**quiet, **defaults, **kwargs})


def linear_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES))


def batches(samples=25, classes=CLASSES, batch_size=10):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(samples, 1, 4, 4, generator=generator)
    labels = torch.randint(classes, (samples,), generator=generator)
    return DataLoader(TensorDataset(images, labels), batch_size=batch_size)


def no_step(parameters):
    return torch.optim.SGD(parameters, lr=0.0)


def loss_and_accuracy(net, loader):
    """Over all samples at once: batches of unequal size must weigh by their size."""
    images, labels = loader.dataset.tensors
    with torch.no_grad():
        logits = net(images)
    picked = logits.softmax(dim=1)[torch.arange(len(labels)), labels]
    return -picked.log().mean().item(), (logits.argmax(dim=1) == labels).double().mean().item()


def test_fit_logs_loss_and_accuracy_over_all_images():
    net, run = linear_net(), trainer()
    run.fit(Classifier(net, CLASSES, no_step), batches(25), batches(13))
    assert set(run.logged_metrics) == KEYS
    expected = [*loss_and_accuracy(net, batches(25)), *loss_and_accuracy(net, batches(13))]
    logged = [run.logged_metrics[key].item() for key in ("train/loss", "train/accuracy", "val/loss", "val/accuracy")]
    assert logged == pytest.approx(expected)


def test_each_epoch_starts_counting_afresh():
    class Flip(nn.Module):
        """Right about every image in the first epoch, wrong about every one afterwards."""

        def __init__(self):
            super().__init__()
            self.calls, self.weight = 0, nn.Parameter(torch.zeros(()))

        def forward(self, x):
            self.calls += self.training
            return F.one_hot(torch.full((len(x),), int(self.calls > 1)), CLASSES) + self.weight

    zeros = DataLoader(TensorDataset(torch.zeros(10, 1), torch.zeros(10, dtype=torch.int64)), batch_size=10)
    run = trainer(max_epochs=2)
    run.fit(Classifier(Flip(), CLASSES, no_step), zeros, zeros)
    assert run.logged_metrics["train/accuracy"] == 0


@pytest.mark.parametrize("stage", ["test", "validate"])
def test_evaluation_logs_its_own_keys(stage):
    net = linear_net()
    (logged,) = getattr(trainer(), stage)(Classifier(net, CLASSES), batches(25), verbose=False)
    prefix = "test" if stage == "test" else "val"
    loss, accuracy = loss_and_accuracy(net, batches(25))
    assert logged == pytest.approx({f"{prefix}/loss": loss, f"{prefix}/accuracy": accuracy})


def test_predict_gives_logits():
    net = linear_net()
    predicted = torch.cat(trainer().predict(Classifier(net, CLASSES), batches(25)))
    torch.testing.assert_close(predicted, net(batches(25).dataset.tensors[0]))


def test_two_processes_log_the_numbers_of_one(make_mnist):
    root = make_mnist(train=40, test=21)  # of 21 images, one process gets 11 in three batches, the other 10 in two
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    logged = []
    for processes in ({"devices": 1}, {"devices": 2, "strategy": "ddp_fork"}):
        run = trainer(**processes)
        run.fit(Classifier(net, optimizer=no_step), MNIST(root=str(root), batch_size=5))
        logged.append({key: value.item() for key, value in run.callback_metrics.items()})
    assert set(logged[0]) == KEYS
    assert logged[1] == pytest.approx(logged[0], rel=1e-6)


def test_training_lowers_the_loss():
    losses = []
    for epochs in (1, 20):
        run = trainer(max_epochs=epochs)
        model = Classifier(linear_net(), CLASSES, lambda parameters: torch.optim.Adam(parameters, lr=0.05))
        run.fit(model, batches(25), batches(13))
        losses.append(run.logged_metrics["train/loss"])
    assert losses[1] < 0.7 * losses[0]


def test_optimizer_and_schedule_are_made_from_their_callables():
    model = Classifier(
        linear_net(),
        CLASSES,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5),
    )
    run = trainer(max_epochs=3)
    run.fit(model, batches(25), batches(13))
    assert isinstance(run.optimizers[0], torch.optim.SGD)
    assert run.optimizers[0].param_groups[0]["lr"] == 0.5**3


def test_adam_without_a_schedule_is_the_default():
    model = Classifier(linear_net(), CLASSES)
    run = trainer()
    run.fit(model, batches(25), batches(13))
    assert isinstance(run.optimizers[0], torch.optim.Adam)
    assert run.lr_scheduler_configs == []


def test_plateau_schedule_follows_the_validation_loss():
    model = Classifier(
        linear_net(),
        CLASSES,
        optimizer=no_step,
        scheduler=lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0),
    )
    run = trainer(max_epochs=3)
    run.fit(model, batches(25), batches(13))
    assert run.lr_scheduler_configs[0].scheduler.best == pytest.approx(run.logged_metrics["val/loss"].item())


@pytest.mark.parametrize(("value", "name"), [(float("nan"), "nan"), (float("inf"), "nan")])
def test_a_loss_that_is_not_finite_stops_the_training(value, name):
    class Diverge(nn.Module):
        """Fine for seven calls, two epochs of three steps and one step more."""

        def __init__(self):
            super().__init__()
            self.calls, self.weight = 0, nn.Parameter(torch.zeros(CLASSES))

        def forward(self, x):
            self.calls += self.training
            return self.weight.expand(len(x), -1) + (value if self.calls > 7 else 0)

    remedies = "try a smaller learning rate, trainer.gradient_clip_val or trainer.precision=32"
    with pytest.raises(ValueError, match=f"^train/loss is {name} in epoch 2, step 7: {remedies}$"):
        trainer(max_epochs=5).fit(Classifier(Diverge(), CLASSES), batches(25), batches(13))


@pytest.mark.parametrize(
    ("output", "found"),
    [
        (torch.zeros(10, 5), r"\(10, 5\)"),
        (torch.zeros(10, CLASSES, 2), r"\(10, 3, 2\)"),
        (torch.zeros(7, CLASSES), r"\(7, 3\)"),
        ((torch.zeros(10, CLASSES), None), "a tuple"),
        ({"logits": torch.zeros(10, CLASSES)}, "a dict"),
    ],
)
def test_an_output_that_is_not_logits_of_all_classes(output, found):
    expected = rf"^Constant returned {found}, not \(images, num_classes\) = \(10, 3\) logits$"
    with pytest.raises(ValueError, match=expected):
        trainer().fit(Classifier(Constant(output), CLASSES), batches(10), batches(10))


class Heads(NamedTuple):
    """As torchvision's GoogLeNet returns them in train mode."""

    logits: torch.Tensor
    auxiliary: torch.Tensor


class TwoHeads(nn.Module):
    """Two linear heads on images of 4 x 4 or 32 x 32, the second one in train mode only."""

    def __init__(self, size=4):
        super().__init__()
        self.size = size
        self.main, self.auxiliary = nn.Linear(size**2, CLASSES), nn.Linear(size**2, CLASSES)

    def forward(self, x):
        torch._assert(x.shape[-1] == self.size, "Wrong size!\nThis network is particular.")
        x = x.flatten(1)
        return Heads(self.main(x), self.auxiliary(x)) if self.training else self.main(x)


@pytest.mark.parametrize(("given", "weight"), [(None, 0.3), (0.0, 0.0), (2.0, 2.0)])
def test_auxiliary_heads_are_trained_beside_the_main_one(given, weight):
    loader, run = batches(10), trainer()
    images, labels = loader.dataset.tensors
    net = TwoHeads()
    module = Classifier(net, CLASSES, lambda parameters: torch.optim.SGD(parameters, lr=1.0), auxiliary_weight=given)
    before = [head.weight.detach().clone() for head in (net.main, net.auxiliary)]
    losses = [F.cross_entropy(head(images.flatten(1)), labels) for head in (net.main, net.auxiliary)]
    gradients = torch.autograd.grad(losses, [net.main.weight, net.auxiliary.weight])
    run.fit(module, loader, loader)
    assert run.callback_metrics["train/loss"] == pytest.approx(losses[0].item())
    torch.testing.assert_close(net.main.weight, before[0] - gradients[0])
    torch.testing.assert_close(net.auxiliary.weight, before[1] - weight * gradients[1])


def test_images_of_a_size_that_the_network_does_not_take():
    expected = (
        r"^images of a batch are \(1, 4, 4\); expected 32 x 32, such as by data.image_size=32, on which TwoHeads runs "
        r"\(Wrong size!\)$"
    )
    with pytest.raises(ValueError, match=expected):
        trainer().fit(Classifier(TwoHeads(32), CLASSES), batches(), batches())


@pytest.mark.parametrize(("label", "found"), [(3, "0 to 3"), (-1, "-1 to 2")])
def test_labels_out_of_range(label, found):
    loader = batches(10)
    loader.dataset.tensors[1][4] = label
    expected = f"^labels of a batch are {found}: they must be 0 to 2 with num_classes=3$"
    with pytest.raises(ValueError, match=expected):
        trainer().fit(Classifier(linear_net(), CLASSES), loader, batches(13))


def assert_same_weights(first, second):
    first, second = first.state_dict(), second.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_checkpoint_holds_nothing_but_plain_values(tmp_path):
    model, run = Classifier(linear_net(), CLASSES), trainer()
    run.fit(model, batches(25), batches(13))
    run.save_checkpoint(tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["hyper_parameters"] == {
        "num_classes": CLASSES,
        "auxiliary_weight": None,
    }

    loaded = Classifier.load_from_checkpoint(
        tmp_path / "last.ckpt", net=nn.Sequential(*linear_net()), weights_only=True
    )
    assert loaded.num_classes == CLASSES
    assert_same_weights(loaded, model)


@pytest.fixture
def command_line(monkeypatch):
    """What `netprism` runs, in this process."""
    monkeypatch.setattr("sys.argv", ["netprism"])  # LightningCLI warns of arguments that are in both places

    def run(*options):
        arguments = {"parser_kwargs": {"parser_mode": "omegaconf"}, "save_config_callback": None}
        return LightningCLI(args=[str(option) for option in options], **arguments)

    return run


@pytest.fixture
def config(tmp_path):
    (tmp_path / "config.yaml").write_text(
        f"""
        seed_everything: 0
        model:
          class_path: netprism.lightning_modules.Classifier
          init_args:
            net: {{class_path: netprism.nets.ResNet, init_args: {{depth: 8, in_channels: 1, width: 2}}}}
            optimizer: {{class_path: torch.optim.SGD, init_args: {{lr: 0.25}}}}
            scheduler:
              class_path: torch.optim.lr_scheduler.CosineAnnealingLR
              init_args: {{T_max: "${{trainer.max_epochs}}"}}
        data: {{class_path: netprism.datamodules.Digits, init_args: {{image_size: 8, train_samples: 64}}}}
        trainer:
          max_epochs: 2
          default_root_dir: {tmp_path}
          logger: false
          accelerator: cpu
          log_every_n_steps: 1
          enable_progress_bar: false
          enable_model_summary: false
        """
    )
    return tmp_path / "config.yaml"


def test_class_paths_of_a_config_make_network_optimizer_and_schedule(command_line, config):
    cli = command_line("fit", "--config", config)
    assert isinstance(cli.model.net, ResNet)
    (optimizer,), (schedule,) = cli.trainer.optimizers, cli.trainer.lr_scheduler_configs
    assert (type(optimizer), optimizer.param_groups[0]["initial_lr"]) == (torch.optim.SGD, 0.25)
    assert (schedule.scheduler.T_max, schedule.scheduler.last_epoch) == (2, 2)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_checkpoint_of_the_command_line_loads_and_resumes(command_line, config, tmp_path):
    cli = command_line("fit", "--config", config)
    (checkpoint,) = tmp_path.glob("checkpoints/*.ckpt")
    contents = torch.load(checkpoint, weights_only=True)
    assert contents["hyper_parameters"]["num_classes"] == 10
    assert contents["datamodule_hyper_parameters"]["train_samples"] == 64

    net = ResNet(depth=8, in_channels=1, width=2)
    loaded = Classifier.load_from_checkpoint(checkpoint, net=net, weights_only=True)
    assert_same_weights(loaded, cli.model)

    options = ("--trainer.max_epochs", 3, "--ckpt_path", checkpoint, "--weights_only", "true")
    resumed = command_line("fit", "--config", config, *options)
    assert (resumed.trainer.current_epoch, resumed.trainer.global_step) == (3, 3)
    assert type(resumed.trainer.optimizers[0]) is torch.optim.SGD


def test_resuming_is_bitwise_the_uninterrupted_run(tmp_path):
    def fit(max_epochs, **kwargs):
        torch.manual_seed(0)
        run = trainer(max_epochs=max_epochs)
        run.fit(Classifier(ResNet(depth=8, in_channels=1, width=2)), Digits(image_size=8, train_samples=200), **kwargs)
        return run

    fit(2).save_checkpoint(tmp_path / "last.ckpt")
    resumed = fit(3, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert_same_weights(resumed.lightning_module, fit(3).lightning_module)

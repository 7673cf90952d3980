import copy

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from netprism.components.measures import significance
from netprism.datamodules import ImageDataModule
from netprism.datamodules.base import ImageTensors
from netprism.lightning_modules import Disentangler
from netprism.nets import MLP

pytestmark = [
    pytest.mark.filterwarnings("ignore:Found .* in eval mode"),  # the teacher, on purpose
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),  # the images are in memory
]

NARROW = 1 / 64


class Images(ImageDataModule):
    """Noise on a pattern of the class; both numbers odd, so that two processes get different shares."""

    num_classes = 3
    shape = (1, 8, 8)
    mean, std = (0.0,), (1.0,)

    def read(self, split):
        count, seed = {"train": (35, 0), "test": (21, 1)}[split]
        labels = torch.arange(count) % 3
        patterns = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(9))
        noise = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
        return ImageTensors(patterns[labels] + noise, labels)


def teacher():
    """A residual block after a convolution with BatchNorm, and a head."""
    torch.manual_seed(5)
    return Teacher().eval()


class Teacher(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4)
        self.block = ResidualBlock()
        self.fc = nn.Linear(4, 3)
        self.calls = []

    def forward(self, x):
        self.calls.append(len(x))
        return self.fc(self.block(self.bn(self.conv(x))).mean((2, 3)))


class ResidualBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return torch.relu(x + self.conv(x))


def module(**options):
    torch.manual_seed(6)
    return Disentangler(**({"teacher": teacher(), "layer": "block", "orders": (4, 7), "width": NARROW} | options))


def trainer_in(folder, **options):
    settings = {
        "max_epochs": 2, "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder,
    }  # fmt: skip
    return pl.Trainer(**(settings | options))


def fit(disentangler, folder, ckpt_path=None, **options):
    trainer = trainer_in(folder, **options)
    trainer.fit(disentangler, Images(batch_size=8), ckpt_path=ckpt_path)
    return trainer


def metrics(trainer):
    return {key: float(value) for key, value in trainer.callback_metrics.items()}


def test_the_teacher_does_not_change_by_one_bit(tmp_path):
    mine = teacher().train()  # as careless as that
    before = copy.deepcopy(mine.state_dict())
    disentangler = module(teacher=mine)
    flags = []
    mine.register_forward_hook(lambda *_: flags.append(any(m.training for m in mine.modules())))
    trainer = fit(disentangler, tmp_path)
    assert all(torch.equal(value, before[key]) for key, value in mine.state_dict().items())
    assert len(flags) > 10
    assert not any(flags)
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in mine.parameters())
    optimized = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert optimized == {id(p) for p in disentangler.nets.parameters()}
    assert disentangler.train().training
    assert not mine.training


def test_one_pass_of_the_teacher_a_batch(tmp_path):
    disentangler = module(orders=(4, 7, 10, 13))
    trainer = trainer_in(tmp_path, max_epochs=1, limit_val_batches=0)
    disentangler.teacher.calls.clear()
    trainer.fit(disentangler, Images(batch_size=8))
    assert disentangler.teacher.calls[1:] == [8, 8, 8, 8, 3]  # before them, the shape of the feature


def test_what_is_distilled_is_the_feature_before_the_last_relu(tmp_path):
    disentangler = module(input_shape=(1, 8, 8))
    inner = disentangler.teacher.block
    x = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        before = disentangler.teacher.bn(disentangler.teacher.conv(x))
        feature = before + inner.conv(before)
        expected = sum((phi - feature).square().mean() for phi in disentangler(x)[:1])
        torch.testing.assert_close(disentangler.cut.feature(x), feature)
    disentangler.log_dict = disentangler.log = lambda *args, **kwargs: None
    disentangler._trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    torch.testing.assert_close(disentangler.training_step((x, None)), expected)


def test_the_logged_errors_are_those_of_the_nets(tmp_path):
    disentangler = module()
    trainer = fit(disentangler, tmp_path)
    logged = metrics(trainer)
    losses = {f"{stage}/loss{suffix}" for stage in ("train", "val") for suffix in ("", "/4", "/7")}
    shares = {"val/significance/4", "val/significance/7"}
    assert set(logged) == losses | shares | {"val/unexplained"}
    disentangler.eval()
    data = Images().monitor_dataset("test")
    x = torch.stack([image for image, _ in data])
    with torch.no_grad():
        feature, approximations = disentangler.cut.feature(x), disentangler(x)
    total = (feature - feature.mean(0)).square().mean().item()
    errors = [(feature - phi).square().mean().item() for phi in approximations]
    assert [logged[f"val/loss/{order}"] for order in (4, 7)] == pytest.approx(errors, rel=1e-4)
    assert logged["val/loss"] == pytest.approx(sum(errors), rel=1e-4)
    assert logged["val/unexplained"] == pytest.approx(sum(errors) / 2 / total, rel=1e-4)
    first = approximations[0] - approximations[0].mean(0)
    assert logged["val/significance/4"] == pytest.approx(first.square().mean().item() / total, rel=1e-4)
    tested = trainer.test(disentangler, Images(batch_size=8), verbose=False)[0]
    assert set(tested) == {key.replace("val", "test") for key in logged if key.startswith("val/")}
    assert tested["test/loss/7"] == pytest.approx(logged["val/loss/7"])


@pytest.mark.parametrize("optimizer", [None, lambda groups: torch.optim.SGD(groups, 0.01, momentum=0.9)])
def test_orders_trained_together_are_those_trained_alone(tmp_path, optimizer):
    options = {"input_shape": (1, 8, 8), "warm_start": False, "optimizer": optimizer}
    together = module(**options)
    start = copy.deepcopy(together.nets)
    fit(together, tmp_path)
    for i, order in enumerate((4, 7)):
        alone = module(orders=(order,), **options)
        alone.nets[0].load_state_dict(start[i].state_dict())
        fit(alone, tmp_path)
        for a, b in zip(alone.nets[0].state_dict().values(), together.nets[i].state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


class Watch(pl.Callback):
    """What the module has as a batch begins to be trained on, before the step."""

    def __init__(self):
        self.started, self.alike, self.rates = [], [], []

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        shallow, deep = pl_module.nets[0], pl_module.nets[1]
        self.started.append(pl_module.started)
        self.alike.append(torch.equal(shallow.stages[1][0].layer.weight, deep.stages[1][0].layer.weight))
        self.rates.append([group["lr"] for group in optimizer.param_groups])


def test_the_deeper_order_starts_from_the_shallower_one_when_its_turn_comes(tmp_path):
    disentangler, watch = module(warm_start_fraction=0.5), Watch()
    trainer = fit(disentangler, tmp_path, callbacks=[watch])  # 10 steps
    assert disentangler.starts == [0, 5]
    assert watch.started == [1] * 5 + [2] * 5
    assert watch.alike == [False] * 5 + [True] + [False] * 4
    state = trainer.optimizers[0].state
    steps = [{int(state[p]["step"]) for p in net.parameters()} for net in disentangler.nets.nets]
    assert steps == [{10}, {5}], "Adam starts again"
    first, second = zip(*watch.rates, strict=True)
    assert first == pytest.approx([1e-3 * 0.01 ** (i / 10) for i in range(10)])
    assert second == pytest.approx([1e-3] * 5 + [1e-3 * 0.01 ** (i / 5) for i in range(5)])


def test_an_order_that_waits_counts_as_the_shallower_one(tmp_path):
    disentangler = module(warm_start_fraction=0.75)
    trainer = fit(disentangler, tmp_path, max_epochs=1, limit_train_batches=4)  # the second starts at step 3
    one, two = disentangler(torch.randn(2, 1, 8, 8))
    assert not torch.equal(one, two)
    waiting = module(input_shape=(1, 8, 8))
    one, two = waiting(torch.randn(2, 1, 8, 8))
    assert torch.equal(one, two)
    assert metrics(trainer)["val/loss/7"] != metrics(trainer)["val/loss/4"]


def test_a_resumed_training_is_the_uninterrupted_one(tmp_path):
    whole = module(warm_start_fraction=0.3)
    fit(whole, tmp_path, max_epochs=2)
    half = module(warm_start_fraction=0.3)
    trainer = fit(half, tmp_path, max_epochs=2, callbacks=[Stop()])
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed = module(warm_start_fraction=0.3)
    fit(resumed, tmp_path, max_epochs=2, ckpt_path=tmp_path / "half.ckpt")
    assert resumed.started == 2
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[key], value, rtol=0, atol=0)


class Stop(pl.Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = True


def test_a_checkpoint_needs_the_teacher_alone(tmp_path):
    disentangler = module()
    trainer = fit(disentangler, tmp_path, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "mine.ckpt")
    other = teacher()
    nn.init.zeros_(other.fc.weight)
    loaded = Disentangler.load_from_checkpoint(tmp_path / "mine.ckpt", teacher=other, weights_only=True)
    x = torch.randn(3, 1, 8, 8)
    for a, b in zip(loaded.eval()(x), disentangler.eval()(x), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(loaded.teacher.fc.weight, disentangler.teacher.fc.weight)


def test_two_processes_measure_the_numbers_of_one(tmp_path):
    disentangler = module(input_shape=(1, 8, 8))
    disentangler.started = 2
    alone = trainer_in(tmp_path).validate(disentangler, Images(batch_size=8), verbose=False)[0]
    trainer = trainer_in(tmp_path, devices=2, strategy="ddp_fork")
    both = trainer.validate(disentangler, Images(batch_size=4), verbose=False)[0]
    assert set(both) == set(alone)
    for key, value in alone.items():
        assert both[key] == pytest.approx(value, rel=1e-5), key


def test_trains_in_two_processes_with_orders_that_wait(tmp_path):
    torch.manual_seed(0)
    options = {"orders": (4, 7, 10), "optimizer": lambda groups: torch.optim.Adam(groups, 0.05)}
    disentangler = module(input_shape=(1, 8, 8), **options)
    trainer = fit(disentangler, tmp_path, devices=2, strategy="ddp_fork")
    logged = metrics(trainer)
    assert logged["val/loss/10"] > 0
    disentangler.started = 3  # a forked process keeps what is no weight
    # The ranks' BatchNorm statistics differ; what was measured is rank 0's network on all of them.
    alone = trainer_in(tmp_path).validate(disentangler, Images(batch_size=8), verbose=False)[0]
    for key, value in alone.items():
        assert logged[key] == pytest.approx(value, rel=1e-4), key


def test_a_vector_is_mimicked_by_linear_layers(tmp_path):
    disentangler = module(teacher=MLP((64, 16, 8, 3)), layer="fc2")
    fit(disentangler, tmp_path)
    assert disentangler.nets[0].feature_shape == (8,)
    assert not any(isinstance(m, nn.Conv2d) for m in disentangler.nets.modules())


class ManyImages(Images):
    def read(self, split):
        generator = torch.Generator().manual_seed(int(split == "test"))
        return ImageTensors(torch.randn(600, 1, 8, 8, generator=generator), torch.zeros(600, dtype=torch.long))


def test_learns_what_four_relus_can_make(tmp_path):
    torch.manual_seed(0)
    simple = nn.Sequential(nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(48, 3))
    disentangler = module(
        teacher=simple, layer="0", width=1 / 16, optimizer=lambda groups: torch.optim.Adam(groups, 1e-2)
    )
    trainer = trainer_in(tmp_path, max_epochs=6)
    trainer.fit(disentangler, ManyImages(batch_size=32))
    assert metrics(trainer)["val/unexplained"] < 0.2
    x = torch.stack([image for image, _ in ManyImages().monitor_dataset("test")])
    with torch.no_grad():
        simple_part, complex_part = significance(disentangler.eval()(x), disentangler.cut.feature(x)).tolist()
    assert simple_part > 0.75
    assert complex_part < 0.15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"orders": (4, 8)}, r"order is 8; expected 3m \+ 1"),
        ({"width": 0.3}, "width is 0.3"),
        ({"warm_start_fraction": 1.0}, "warm_start_fraction is 1.0"),
        ({"lr_final_factor": 0.0}, "lr_final_factor is 0.0; expected a number > 0 and <= 1"),
        (
            {"layer": "blok"},
            "Teacher has no layer 'blok', did you mean 'block'. it has conv, bn, block, block.conv, fc",
        ),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        module(input_shape=(1, 8, 8), **options)


def test_a_constant_feature_and_no_shape(tmp_path):
    dead = teacher()
    nn.init.zeros_(dead.conv.weight)
    with pytest.raises(ValueError, match="the feature is the same for all 16 samples; expected a variance above 0"):
        fit(module(teacher=dead, layer="bn"), tmp_path)
    data = torch.utils.data.DataLoader(Images().monitor_dataset("train"), batch_size=8)
    with pytest.raises(
        ValueError, match=r"input_shape is None and the data module has no `shape`; expected input_shape=\(C, H, W\)"
    ):
        trainer_in(tmp_path).fit(module(), data, data)
    with pytest.raises(RuntimeError, match="the nets are made when the training begins"):
        module()(torch.zeros(1, 1, 8, 8))


def test_a_loss_that_is_not_finite_names_the_order(tmp_path):
    disentangler = module(input_shape=(1, 8, 8), warm_start=False)
    nn.init.constant_(disentangler.nets[1].out.bias, float("nan"))
    with pytest.raises(ValueError, match="train/loss/7 is nan in epoch 0, step 0: try a smaller learning rate"):
        fit(disentangler, tmp_path, num_sanity_val_steps=0)


def test_an_order_that_waits_has_no_significance():
    disentangler = module(input_shape=(1, 8, 8)).eval()
    x = torch.randn(9, 1, 8, 8)
    feature = disentangler.disentangled_feature()
    assert significance(feature.approximate(x), feature.cut.feature(x))[1] == 0, "it adds nothing"

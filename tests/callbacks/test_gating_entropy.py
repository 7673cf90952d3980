import math

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from third_party_modules import Net, Stranger, figures_of, fit, images
from torch import nn

from netprism.callbacks import GatingEntropy
from netprism.gates.entropy import transformation_complexity
from netprism.gates.record import record_gates

LAYERS = (":relu#0", ":relu#1")  # of strangers.Net, which the stranger keeps in one attribute


def keys(layers, test=True, labels=True, correlation=True):
    """The documented table, by hand."""
    joint = [
        "entropy",
        "saturation",
        "input_information",
        "marginal_entropy",
        *(["class_information"] if labels else []),
        *(["total_correlation"] if correlation else []),
        *(["conditional_total_correlation"] if correlation and labels else []),
    ]
    each = [
        "entropy",
        "saturation",
        "suffix_entropy",
        "input_information",
        "marginal_entropy",
        *(["class_information", "suffix_class_information"] if labels else []),
        *(["total_correlation"] if correlation else []),
        *(["conditional_total_correlation"] if correlation and labels else []),
    ]
    names = joint + [f"{key}/{layer}" for key in each for layer in layers]
    return {prefix + name for prefix in (["", "test/"] if test else [""]) for name in names}


def gates_of(trainer, name="gates"):
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
    return {key.removeprefix(f"{name}/"): value for key, value in metrics.items() if key.startswith(f"{name}/")}


def test_the_key_set_is_exact(tmp_path):
    trainer = fit(Stranger(), GatingEntropy(num_images=12), folder=tmp_path)
    assert set(gates_of(trainer)) == keys(LAYERS)
    trainer = fit(
        Stranger(), GatingEntropy(num_images=12, layers=[":relu#1"], total_correlation=False), folder=tmp_path
    )
    assert set(gates_of(trainer)) == keys(LAYERS[1:], correlation=False)


def test_the_values_are_those_of_the_trained_network(tmp_path):
    module = Stranger()
    trainer = fit(module, GatingEntropy(num_images=45, batch_size=8), folder=tmp_path)
    x, y = images().tensors
    module.eval()
    with torch.no_grad(), record_gates(module.model) as gates:
        module(x)
    expected = transformation_complexity(gates.packed, y, alpha={":relu#0": 0.04, ":relu#1": 0.01})
    values = gates_of(trainer)
    assert values["entropy"] == values["input_information"] == pytest.approx(expected.joint_entropy, abs=1e-6)
    assert values["class_information"] == pytest.approx(expected.joint_class_information, abs=1e-6)
    assert values["total_correlation"] == pytest.approx(expected.joint_total_correlation, abs=1e-6)
    assert values["saturation"] == pytest.approx(expected.joint_entropy / math.log2(45), abs=1e-6)
    for layer in LAYERS:
        assert values[f"entropy/{layer}"] == pytest.approx(expected.entropy[layer], abs=1e-6)
        assert values[f"suffix_entropy/{layer}"] == pytest.approx(expected.suffix_entropy[layer], abs=1e-6)
    assert values["test/entropy"] != values["entropy"]


def test_function_and_callback_agree_where_a_linear_layer_acts_on_tokens(tmp_path):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(8, 6), nn.Linear(6, 3)

        def forward(self, x):
            return {"logits": self.last(torch.relu(self.first(x.flatten(1, 2))).mean(1))}

    module = Stranger(Tokens())
    trainer = fit(module, GatingEntropy(num_images=45), folder=tmp_path, max_epochs=1)
    x, y = images().tensors
    with torch.no_grad(), record_gates(module.eval().model) as gates:
        module(x)
    expected = transformation_complexity(gates.packed, y)
    assert gates_of(trainer)["entropy"] == pytest.approx(expected.joint_entropy, abs=1e-6)
    assert expected.joint_entropy != transformation_complexity(gates.states, y).joint_entropy  # what the shape says


def test_alpha_follows_what_feeds_the_gates(tmp_path):
    # A convolution's output flattened before its ReLU is still fed by a convolution.
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 2, 3), nn.Linear(72, 3)

        def forward(self, x):
            return {"logits": self.fc(torch.relu(self.conv(x).flatten(1)))}

    module = Stranger(Flat())
    trainer = fit(module, GatingEntropy(num_images=45), folder=tmp_path, max_epochs=1)
    with torch.no_grad(), record_gates(module.model) as gates:
        module.eval()(images().tensors[0])
    assert gates_of(trainer)["entropy"] == pytest.approx(
        transformation_complexity(gates.packed, alpha=0.04).joint_entropy, abs=1e-6
    )
    trainer = fit(module.train(), GatingEntropy(num_images=45, alpha=0.5), folder=tmp_path, max_epochs=1)
    assert gates_of(trainer)["entropy"] < transformation_complexity(gates.packed, alpha=0.04).joint_entropy


def test_dropout_raises_the_entropy_and_not_the_information(tmp_path):
    monitor = GatingEntropy(num_images=45, kinds=("relu", "dropout"), alpha=0.04)
    trainer = fit(Stranger(Net(dropout=0.5)), monitor, folder=tmp_path)
    values = gates_of(trainer)
    assert values["entropy"] > values["input_information"] + 0.1
    deterministic = gates_of(fit(Stranger(Net()), monitor, folder=tmp_path))
    assert deterministic["entropy"] == deterministic["input_information"]


class MovingMean(Net):
    """Train mode moves a buffer that is no BatchNorm's."""

    def __init__(self):
        super().__init__(dropout=0.5)
        self.register_buffer("mean", torch.zeros(1, 8, 8))

    def forward(self, x):
        if self.training:
            self.mean.mul_(0.5).add_(x.mean(0), alpha=0.5)
        return super().forward(x - self.mean)


def test_sampling_does_not_move_what_is_measured_next(tmp_path):
    data = images()
    monitor = GatingEntropy(num_images=45, batch_size=8, train_data=data, test_data=data)
    values = gates_of(fit(Stranger(MovingMean()), monitor, folder=tmp_path))
    assert (
        values["input_information"] == values["test/input_information"]
    )  # the same images, before and after passes in train mode
    assert values["entropy"] == values["test/entropy"]


class Auxiliary(Net):
    """Has one more gate in train mode, and random numbers."""

    def forward(self, x):
        out = super().forward(x)
        return out if not self.training else {**out, "auxiliary": torch.relu(out["logits"])}


def test_entropy_and_information_are_of_the_same_layers(tmp_path):
    trainer = fit(Stranger(Auxiliary(dropout=0.5)), GatingEntropy(num_images=45), folder=tmp_path)
    assert set(gates_of(trainer)) == keys(LAYERS)


class NeedsTargets(Net):
    """Train mode takes more than the images, as detectors do."""

    def forward(self, x, targets=None):
        if self.training and targets is None:
            raise ValueError("targets should not be none when in training mode")
        return super().forward(x)


class Detecting(Stranger):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self.model(x, y)["logits"], y)


def test_a_network_that_cannot_run_in_train_mode_is_measured_without_sampling(tmp_path):
    with pytest.warns(UserWarning, match="gates: H without sampling.*targets should not be none"):
        trainer = fit(Detecting(NeedsTargets(dropout=0.5)), GatingEntropy(num_images=12), folder=tmp_path)
    assert gates_of(trainer)["entropy"] == gates_of(trainer)["input_information"]


def test_sampling_can_be_switched_off(tmp_path):
    monitor = GatingEntropy(num_images=45, kinds=("relu", "dropout"), stochastic=False)
    values = gates_of(fit(Stranger(Net(dropout=0.5)), monitor, folder=tmp_path))
    assert values["entropy"] == values["input_information"]


def test_validation_that_starts_late_is_measured_from_then_on(tmp_path):
    monitor = GatingEntropy(num_images=12)
    options = {"num_sanity_val_steps": 0, "check_val_every_n_epoch": 2, "max_epochs": 4}
    fit(Stranger(), monitor, folder=tmp_path, **options)
    assert [row["epoch"] for row in monitor.history if "test/entropy" in row] == [1, 2, 3]
    assert (figures_of(tmp_path) / "gates_layers.png").exists()


def test_without_labels_there_is_no_class_information(tmp_path):
    class Unlabelled(Stranger):
        def training_step(self, batch, batch_idx):
            return self(batch[0])["logits"].square().mean()

    data = torch.utils.data.TensorDataset(images().tensors[0])
    loader = torch.utils.data.DataLoader(data, 16)
    trainer = fit(
        Unlabelled(), GatingEntropy(num_images=12), folder=tmp_path, train=loader, validation=None, limit_val_batches=0
    )
    assert {key for key in gates_of(trainer) if not key.startswith("test_")} == keys(LAYERS, test=False, labels=False)


def test_two_named_instances_do_not_collide(tmp_path):
    first, second = GatingEntropy(num_images=12), GatingEntropy(num_images=12, layers=-1, name="last")
    trainer = fit(Stranger(), first, second, folder=tmp_path)
    assert set(gates_of(trainer)) == keys(LAYERS)
    assert set(gates_of(trainer, "last")) == keys(LAYERS[1:])
    assert first.state_key != second.state_key
    names = {path.name for path in figures_of(tmp_path).iterdir()}
    assert {"gates_curves.png", "last_curves.png"} <= names


def test_the_untrained_network_is_logged_as_epoch_minus_1(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="run")
    fit(Stranger(), GatingEntropy(num_images=12), folder=tmp_path, logger=logger, max_epochs=2)
    header, *rows = (line.split(",") for line in (tmp_path / "run" / "metrics.csv").read_text().splitlines())
    table = [dict(zip(header, row, strict=True)) for row in rows]
    measured = [(int(row["epoch"]), int(row["step"])) for row in table if row["gates/entropy"]]
    assert measured == [(-1, 0), (0, 2), (1, 5)]


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_resumed_run_continues_the_curve(tmp_path):
    def run(name, max_epochs, resume=None):
        pl.seed_everything(1, verbose=False)
        logger = CSVLogger(tmp_path, name="logs", version=name)
        checkpoint = pl.callbacks.ModelCheckpoint(tmp_path / name, save_last=True, save_on_train_epoch_end=True)
        entropy = GatingEntropy(num_images=12)
        trainer = pl.Trainer(
            max_epochs=max_epochs, accelerator="cpu", devices=1, logger=logger, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[entropy, checkpoint],
        )  # fmt: skip
        module, loader = Stranger(), torch.utils.data.DataLoader(images(), 16)
        trainer.fit(module, loader, loader, ckpt_path=resume, weights_only=True)
        return entropy

    run("stopped", 2)
    resumed = run("resumed", 4, tmp_path / "stopped" / "last.ckpt")
    assert [row["epoch"] for row in resumed.history] == [-1, 0, 1, 2, 3]
    straight = run("straight", 4)
    assert resumed.history == straight.history
    assert resumed.rates == straight.rates


def test_a_second_training_starts_afresh(tmp_path):
    monitor = GatingEntropy(num_images=12)
    fit(Stranger(), monitor, folder=tmp_path, max_epochs=3)
    fit(Stranger(), monitor, folder=tmp_path, max_epochs=1, train=torch.utils.data.DataLoader(images(9, seed=4), 4))
    assert [row["epoch"] for row in monitor.history] == [-1, 0]
    assert len(monitor._data["train"]) == 9


def test_validation_alone_keeps_the_measurements(tmp_path):
    monitor = GatingEntropy(num_images=12)
    trainer = fit(Stranger(), monitor, folder=tmp_path)
    loader = torch.utils.data.DataLoader(images(), 16)
    trainer.validate(Stranger(), loader, verbose=False)
    other = pl.Trainer(callbacks=[monitor], accelerator="cpu", logger=False, enable_progress_bar=False)
    other.validate(Stranger(), loader, verbose=False)
    assert [row["epoch"] for row in monitor.history] == [-1, 0, 1]


def test_a_training_stopped_by_hand_has_its_figures(tmp_path):
    class Stopping(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        fit(Stranger(), GatingEntropy(num_images=12), Stopping(), folder=tmp_path)
    assert (figures_of(tmp_path) / "gates_curves.png").exists()


def test_figures_that_cannot_be_written_do_not_stop_a_training(tmp_path):
    (tmp_path / "netprism").write_text("in the way")
    with pytest.warns(UserWarning, match="no figures .*(File exists|Not a directory)"):
        fit(Stranger(), GatingEntropy(num_images=12), folder=tmp_path, max_epochs=1)


def test_figures_and_kept_rates(tmp_path):
    monitor = GatingEntropy(num_images=12)
    fit(Stranger(), monitor, folder=tmp_path, max_epochs=3)
    names = sorted(path.name for path in figures_of(tmp_path).iterdir())
    assert names == ["gates_activation_rates.png", "gates_curves.png", "gates_layers.png"]
    assert all((figures_of(tmp_path) / name).read_bytes().startswith(b"\x89PNG") for name in names)
    entropies = {row["epoch"]: row["entropy"] for row in monitor.history}
    assert [monitor.rates[which]["epoch"] for which in ("first", "last")] == [-1, 2]
    assert entropies[monitor.rates["lowest"]["epoch"]] == min(entropies.values())
    assert sum(monitor.rates["last"]["layers"][":relu#1"]) == 16


def test_a_dry_run_is_short_and_draws_nothing(tmp_path):
    monitor = GatingEntropy()
    fit(Stranger(), monitor, folder=tmp_path, fast_dev_run=True)
    assert len(monitor._data["train"]) == 32
    assert not list(tmp_path.rglob("figures"))


def test_fewer_samples_than_asked_for_are_said(tmp_path, caplog):
    with caplog.at_level("INFO"):
        fit(Stranger(), GatingEntropy(num_images=1000), folder=tmp_path, max_epochs=1)
    assert "gates: 45 train samples; num_images is 1000, there are no more" in caplog.text
    assert "gates: 20 test samples; num_images is 1000, there are no more" in caplog.text


def test_half_precision_training(tmp_path):
    trainer = fit(Stranger(), GatingEntropy(num_images=12), folder=tmp_path, precision="bf16-mixed", max_epochs=1)
    assert math.isfinite(gates_of(trainer)["entropy"])
    trainer = fit(Stranger(), GatingEntropy(num_images=12), folder=tmp_path, precision="64-true", max_epochs=1)
    assert math.isfinite(gates_of(trainer)["entropy"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_images": 0}, "num_images is 0; expected a number >= 1"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"every_n_epochs": 0}, "every_n_epochs is 0"),
        ({"kinds": ("relu", "sigmoid")}, "unknown kind of gate 'sigmoid'; allowed: relu, max_pool, dropout"),
        ({"bandwidth": "wide"}, "bandwidth is 'wide'; expected dim or variance"),
        ({"max_gates": 0}, "max_gates is 0; expected a number >= 1, or None for all gates"),
        ({"alpha": -1.0}, "alpha of 'every layer' is -1.0; expected a number > 0"),
    ],
)
def test_bad_options_are_named_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        GatingEntropy(**options)


def test_an_unknown_layer_lists_the_layers(tmp_path):
    with pytest.raises(ValueError, match="no gating layer 'layer9'; there are: :relu#0, :relu#1"):
        fit(Stranger(), GatingEntropy(layers=["layer9"]), folder=tmp_path)


def test_one_sample_and_one_class(tmp_path):
    values = gates_of(fit(Stranger(), GatingEntropy(num_images=1), folder=tmp_path, max_epochs=1))
    assert (values["entropy"], values["saturation"], values["class_information"]) == (0.0, 0.0, 0.0)

"""Every monitor on modules of every shape of trouble, in both Lightning packages; training stays bitwise the same."""

import importlib.util
import sys
from pathlib import Path

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from pytorch_lightning.demos.boring_classes import BoringModel, RandomDataset
from torch.utils.data import DataLoader, TensorDataset

from netprism.callbacks import FeatureComponents, GatingEntropy, InformationDiscarding, KnowledgePoints

spec = importlib.util.spec_from_file_location("strangers_modules", Path(__file__).with_name("modules.py"))
strangers = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = strangers  # jsonargparse imports the module of every LightningModule that there is
spec.loader.exec_module(strangers)

PACKAGES = {"pytorch_lightning": pytorch_lightning, "lightning": lightning.pytorch}
NAMES = list(strangers.modules(pytorch_lightning))
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*augmented at random"),  # codes of a generator are drawn
    pytest.mark.filterwarnings("ignore:.*Your `IterableDataset` has `__len__`"),
]


def train(package, name, *callbacks, folder, devices=1):
    pl = PACKAGES[package]
    found = strangers.modules(pl)[name]
    pl.seed_everything(1, verbose=False)
    module = found.make()
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", devices=devices, strategy="ddp_fork" if devices > 1 else "auto", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks),
        default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, found.data)
    return module, trainer


def monitors(name, only=("gates", "discarding")):
    options = dict(strangers.modules(pytorch_lightning)[name].options)
    input_layer = options.pop("input_layer", None)
    shared = {"measure_untrained": False, **options}
    made = {
        "gates": lambda: GatingEntropy(num_images=10, batch_size=4, **shared),
        "discarding": lambda: InformationDiscarding(
            num_images=4, num_scale_images=4, batch_size=3, num_vjps=1, num_shown=0, input_layer=input_layer, **shared
        ),
        "knowledge": lambda: KnowledgePoints(
            images_per_class=4, classes=3, steps=2, num_compared=4, batch_size=6, every_n_epochs=1, **shared
        ),
        "components": lambda: FeatureComponents(
            orders=(4, 7), width=1 / 64, steps=2, num_images=8, batch_size=4, every_n_epochs=1, **shared
        ),
    }
    return [made[kind]() for kind in only]


CASES = [(name, "pytorch_lightning") for name in NAMES] + [(name, "lightning") for name in NAMES[:4]]


# An input that is not looked at, a label, an embedding of words: layers that the image does not reach.
@pytest.mark.filterwarnings("ignore:.*the input does not reach")
@pytest.mark.parametrize(("name", "package"), CASES)
def test_gates_and_discarding_need_one_line_and_leave_the_training_as_it_is(name, package, tmp_path):
    module, trainer = train(package, name, *monitors(name), folder=tmp_path)
    alone, _ = train(package, name, folder=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), alone.parameters(), strict=True))
    logged = {key: float(value) for key, value in trainer.callback_metrics.items()}
    assert 0 <= logged["gates/entropy"] <= 3.33  # log2 of 10 samples
    sid = [value for key, value in logged.items() if key.startswith("discarding/SID/")]
    assert sid
    assert all(-12 < value < 2 for value in sid)


@pytest.mark.parametrize("name", ["classifier", "dicts", "call"])
def test_knowledge_points_read_labels_out_of_items(name, tmp_path, recwarn):
    _, trainer = train("lightning", name, *monitors(name, ["knowledge"]), folder=tmp_path)
    assert any(key.startswith("knowledge/points/") for key in trainer.callback_metrics)


def test_components_take_the_last_block(tmp_path):
    _, trainer = train("lightning", "classifier", *monitors("classifier", ["components"]), folder=tmp_path)
    assert "components/significance/4" in trainer.callback_metrics


@pytest.mark.parametrize(("name", "kind"), [("regression", "knowledge"), ("views_unlabelled", "knowledge")])
def test_classes_are_asked_for_in_one_line(name, kind, tmp_path):
    with pytest.raises(ValueError, match="knowledge: the training data have no integer label per sample") as caught:
        train("lightning", name, *monitors(name, [kind]), folder=tmp_path)
    assert "\n" not in str(caught.value)


def test_what_does_not_run_says_the_line_to_write(tmp_path):
    monitor = GatingEntropy(num_images=4)
    with pytest.raises(
        ValueError, match=r"gates: GAN does not run .* tried GAN\(batch\[0\]\).* write unpack=lambda"
    ) as caught:
        train("lightning", "generator", monitor, folder=tmp_path)
    assert "\n" not in str(caught.value)
    assert "network='discriminator'" in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_head_that_is_added_renames_no_key(tmp_path):
    keys = [
        set(train("lightning", name, *monitors(name), folder=tmp_path)[1].callback_metrics)
        for name in ("classifier", "auxiliary_head")
    ]
    assert keys[0] == keys[1]


def test_full_and_short_names_are_one_layer(tmp_path):
    keys = []
    for layers in (["backbone.1"], ["1"]):
        both = [
            GatingEntropy(num_images=8, layers=layers, measure_untrained=False),
            InformationDiscarding(layers, num_images=2, num_scale_images=2, num_vjps=1, num_shown=0),
        ]
        keys.append(set(train("lightning", "classifier", *both, folder=tmp_path)[1].callback_metrics))
    assert keys[0] == keys[1]
    assert {"gates/entropy/1.1", "discarding/SID/1"} <= keys[0]
    with pytest.raises(ValueError, match="Sequential has no layer 'backbone.7'"):
        train("lightning", "classifier", InformationDiscarding(["backbone.7"]), folder=tmp_path)


@pytest.mark.parametrize("name", ["keywords", "stream"])
def test_two_processes_log_what_one_does(name, tmp_path):
    values = []
    for devices in (1, 2):
        monitor = GatingEntropy(num_images=8, batch_size=4)
        _, trainer = train("pytorch_lightning", name, monitor, folder=tmp_path, devices=devices)
        values.append({key for key in trainer.callback_metrics if key.startswith("gates/")})
    assert values[0] == values[1]


def test_totals_only(tmp_path):
    monitor = GatingEntropy(num_images=8, per_layer=False)
    _, trainer = train("lightning", "classifier", monitor, folder=tmp_path)
    assert "gates/entropy" in trainer.callback_metrics
    assert not [key for key in trainer.callback_metrics if key.count("/") > 1]
    assert "entropy/0.1" in monitor.history[-1]


class Words(pytorch_lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Flatten(), torch.nn.Linear(12, 2))

    def forward(self, words):
        return self.net(words)

    def training_step(self, batch):
        return self(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize(
    ("module", "data", "line"),
    [
        (
            Words,
            TensorDataset(torch.arange(24).view(8, 3) % 9),
            r"inputs are .*; expected a floating tensor, or input_layer=",
        ),
        (BoringModel, RandomDataset(32, 8), "layers is None; expected layers: Linear has none in it"),
    ],
)
def test_one_line_says_what_to_write(tmp_path, module, data, line):
    looking = InformationDiscarding(num_images=4, num_scale_images=4, num_vjps=1)
    trainer = pytorch_lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[looking], default_root_dir=tmp_path, limit_val_batches=0,
    )  # fmt: skip
    with pytest.raises(ValueError, match=f"^discarding: {line}"):
        trainer.fit(module(), DataLoader(data, 4))

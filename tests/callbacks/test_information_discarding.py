import math

import pytest
import pytorch_lightning as pl
import torch
import torchvision
from pytorch_lightning.loggers import CSVLogger
from reference import discarding as reference
from third_party_modules import NaNOnRank1, Net, Stranger, figures_of, fit, images
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from netprism.callbacks import InformationDiscarding
from netprism.callbacks._entropy_maps import masks_of
from netprism.discarding.layer_view import LayerView
from netprism.discarding.sensitivity import feature_scale
from netprism.discarding.sid import strict_information_discarding
from netprism.lightning_modules import InputDecoder

LAYERS = ["conv", "fc1", "fc2"]  # of third_party_modules.Net, which the stranger keeps in one attribute


def monitor(**options):
    if "data" in options:
        options |= dict.fromkeys(("train_data", "test_data"), options.pop("data"))
    defaults = {
        "layers": LAYERS,
        "num_images": 6,
        "num_vjps": 4,
        "num_scale_images": 8,
        "batch_size": 4,
        "num_shown": 0,
    }
    return InformationDiscarding(**(defaults | options))


def logged(trainer, name="discarding"):
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
    return {key.removeprefix(f"{name}/"): value for key, value in metrics.items() if key.startswith(f"{name}/")}


def sids(trainer):
    """The keys of SID."""
    return {key for key in logged(trainer) if key.startswith("SID/")}


class WithMasks(Dataset):
    """Strangers' images; the object is their left upper quarter, told in different ways."""

    def __init__(self, kind):
        self.kind, self.targets = kind, images().tensors[1]

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        x, y = images()[index]
        segment = torch.zeros(8, 8, dtype=torch.bool)
        segment[:4, :4] = True
        if self.kind == "segment":
            return x, y, segment
        if self.kind == "large segment":
            return {"image": x, "label": y, "mask": segment.repeat_interleave(3, 0).repeat_interleave(3, 1)}
        if self.kind == "box":
            return x, y, torch.tensor([0.0, 0.0, 4.0, 4.0])
        return {
            "image": x, "label": y, "box": torch.tensor([0, 0, 50, 100]), "original_size": torch.tensor([200, 100]),
        }  # fmt: skip


def test_the_key_set_is_exact(tmp_path):
    trainer = fit(Stranger(), monitor(), folder=tmp_path)
    assert set(logged(trainer)) == {f"{key}/{layer}" for layer in LAYERS for key in ("SID", "unseen")}
    trainer = fit(Stranger(), monitor(data=WithMasks("segment"), name="mine"), folder=tmp_path)
    assert set(logged(trainer, "mine")) == {
        f"{q}/{layer}" for layer in LAYERS for q in ("SID", "unseen", "concentration")
    }


def test_the_values_are_those_of_the_trained_network(tmp_path):
    module, data = Stranger(), WithMasks("segment")
    found = logged(fit(module, monitor(num_images=12, num_vjps=300, data=data, batch_size=12), folder=tmp_path))
    x = images().tensors[0]
    module.eval()
    for layer in LAYERS:
        scale = feature_scale(LayerView(module.model, layer), [x], num_vjps=50)[layer]
        sid = strict_information_discarding(module.model, layer, x, num_vjps=100, scale=scale)
        assert found[f"SID/{layer}"] == pytest.approx(sid.mean.mean().item(), abs=0.35)  # 12 of 45 images
        quarter = torch.zeros(8, 8)
        quarter[:4, :4] = 1
        each = [reference.concentration(h, quarter) for h in sid.entropy_map]
        assert found[f"concentration/{layer}"] == pytest.approx(sum(each) / len(each), abs=0.35)


def test_all_images_give_the_numbers_of_the_function(tmp_path):
    module, x = Stranger(), images().tensors[0]
    data = TensorDataset(x[:4], torch.zeros(4, dtype=torch.long))
    options = {"num_images": 4, "num_scale_images": 4, "num_vjps": 6, "data": data, "batch_size": 4}
    found = logged(fit(module, monitor(**options), folder=tmp_path))
    chosen = torch.randperm(4, generator=torch.Generator().manual_seed(0))
    scale = feature_scale(LayerView(module.model, LAYERS), [x[chosen]])
    expected = strict_information_discarding(module.model, LAYERS, x[chosen], num_vjps=6, scale=scale)
    for layer in LAYERS:
        assert found[f"SID/{layer}"] == pytest.approx(expected[layer].mean.mean().item(), abs=1e-5)


@pytest.mark.parametrize("kind", ["large segment", "box", "box of a large image"])
def test_objects_may_be_told_in_several_ways(tmp_path, kind):
    def concentrations(kind):
        pl.seed_everything(0, verbose=False)
        return logged(fit(Stranger(), monitor(data=WithMasks(kind)), folder=tmp_path, max_epochs=1))

    assert concentrations(kind) == concentrations("segment")


def test_a_third_item_that_is_no_mask_is_none():
    x, y = torch.zeros(5, 1, 8, 8), torch.zeros(5)
    for other in (torch.arange(5), "text", torch.zeros(5, 3), torch.zeros(5, 3, 8, 8)):
        assert masks_of((x, y, other), (8, 8)) is None
    assert masks_of((x, y), (8, 8)) is None
    assert masks_of({"image": x}, (8, 8)) is None
    assert masks_of(x, (8, 8)) is None


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_masks_that_are_all_or_nothing_do_not_end_the_training(tmp_path):
    options = {"masks": lambda batch, size: torch.ones(len(batch[0]), 1, *size), "num_images": 3}
    found = logged(fit(Stranger(), monitor(**options), folder=tmp_path, max_epochs=1))
    assert all(math.isnan(found[f"concentration/{layer}"]) for layer in LAYERS)
    assert all(math.isfinite(found[f"SID/{layer}"]) for layer in LAYERS)


# -- the laws


@pytest.mark.parametrize("method", ["linear", "optimized"])
def test_training_with_the_monitor_is_bitwise_the_same(tmp_path, method):
    def train(*callbacks):
        pl.seed_everything(3, verbose=False)
        module = Stranger(Net(dropout=0.5))
        trainer = fit(module, *callbacks, folder=tmp_path)
        state = [*module.state_dict().values(), *trainer.optimizers[0].state_dict()["state"].values()]
        return [*state, torch.rand(3)], [p.grad for p in module.parameters()]

    measured, alone = train(monitor(method=method)), train()
    assert all(torch.equal(with_monitor, without) for with_monitor, without in zip(measured[0], alone[0], strict=True))
    assert [None if g is None else g.tolist() for g in measured[1]] == [
        None if g is None else g.tolist() for g in alone[1]
    ]


def test_lightning_inference_mode_does_not_matter(tmp_path):
    def history(inference_mode):
        pl.seed_everything(2, verbose=False)
        callback = monitor()
        fit(Stranger(), callback, folder=tmp_path, inference_mode=inference_mode)
        return callback.history

    assert history(True) == history(False)


class WriteDown(pl.Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_train_start(self, trainer, pl_module):
        pl_module.model.norm.running_mean.fill_(0.1 + trainer.global_rank)

    def on_train_epoch_end(self, trainer, pl_module):  # before the monitor: what one process has, rank 0 has as well
        pl_module.model.norm.running_mean.fill_(0.3 + trainer.global_rank)
        pl_module.model.norm.running_var.fill_(1.0 + trainer.global_rank)

    def on_train_end(self, trainer, pl_module):
        values = {key: float(value) for key, value in trainer.callback_metrics.items()}
        torch.save(values, f"{self.folder}/{trainer.global_rank}.pt")


@pytest.mark.parametrize(
    "options", [{"num_images": 13, "num_scale_images": 21}, {"num_images": 3, "method": "optimized"}]
)
def test_two_processes_give_the_numbers_of_one(tmp_path, options):
    def run(folder, devices, strategy):
        folder.mkdir()
        pl.seed_everything(5, verbose=False)
        callback = monitor(data=WithMasks("segment"), **options)
        fit(
            Stranger(Net(), learning_rate=0.0), WriteDown(folder), callback,
            folder=folder, devices=devices, strategy=strategy, max_epochs=1,
        )  # fmt: skip
        return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(devices)]

    def ours(values):
        return {key: value for key, value in values.items() if key.startswith("discarding/")}

    [alone] = run(tmp_path / "one", 1, "auto")
    first, second = run(tmp_path / "two", 2, "ddp_fork")
    assert first == second
    assert len(ours(alone)) == 9
    for key, value in ours(alone).items():
        assert first[key] == value


def test_a_rank_that_fails_takes_the_other_along(tmp_path):
    with pytest.raises(Exception, match="a monitor failed on another rank|not finite"):
        fit(
            Stranger(NaNOnRank1()), monitor(),
            folder=tmp_path, devices=2, strategy="ddp_fork", num_sanity_val_steps=0,
        )  # fmt: skip


# -- other networks, data and precisions


def test_torchvision_model_in_a_strangers_module(tmp_path):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = torchvision.models.resnet18(weights=None, num_classes=3)

        def forward(self, x):
            return {"logits": self.body(x.expand(-1, 3, -1, -1))}

    callback = monitor(layers=["body.layer1", "body.layer1.0.relu#1"], num_images=2, measure_untrained=False)
    trainer = fit(Stranger(Wrapped()), callback, folder=tmp_path, max_epochs=1)
    assert sids(trainer) == {"SID/body.layer1", "SID/body.layer1.0.relu#1"}


def test_layers_nobody_named_are_the_tap_points_or_the_outermost_blocks(tmp_path):
    class Tapped(Net):
        tap_points = ("fc1",)

    trainer = fit(Stranger(Tapped()), monitor(layers=None), folder=tmp_path, max_epochs=1)
    assert sids(trainer) == {"SID/fc1"}
    trainer = fit(Stranger(), monitor(layers=None), folder=tmp_path, max_epochs=1)
    assert sids(trainer) == {"SID/conv", "SID/norm"}  # those with maps
    with pytest.raises(ValueError, match="no layer 'conv9', did you mean 'conv'"):
        fit(Stranger(), monitor(layers=["conv9"]), folder=tmp_path)


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_other_precisions(tmp_path, precision):
    trainer = fit(Stranger(), monitor(), folder=tmp_path, precision=precision, max_epochs=1)
    assert all(-10 < value < 2 for value in logged(trainer).values())


def test_integer_images_are_refused(tmp_path):
    class Bytes(Stranger):
        def forward(self, x):
            return super().forward(x.float())

    x, y = images().tensors
    loader = DataLoader(TensorDataset((x * 10).to(torch.uint8), y), 16)
    with pytest.raises(TypeError, match="images are torch.uint8; expected float images"):
        fit(Bytes(), monitor(), folder=tmp_path, train=loader, validation=loader)


def test_dead_layers_are_at_the_cap_and_named_once(tmp_path):
    class Dead(Net):
        def forward(self, x):
            return super().forward(x * 0)

    looking = monitor(max_sigma=2.0, measure_untrained=False)
    with pytest.warns(UserWarning, match="does not reach") as caught:
        found = logged(fit(Stranger(Dead()), looking, folder=tmp_path, max_epochs=2))
    lines = [str(warning.message) for warning in caught if "does not reach" in str(warning.message)]
    assert lines == ["discarding: the input does not reach conv, fc1, fc2 in epoch 0; SID is its cap"]
    assert found["SID/fc2"] == pytest.approx(float(reference.entropy(2.0)))
    assert found["unseen/fc2"] == 1


def test_vectors_have_no_maps_and_no_masks(tmp_path):
    class Flat(Stranger):
        def __init__(self):
            super().__init__(nn.Sequential(nn.Linear(64, 3)))

        def forward(self, x):
            return {"logits": self.model(x)}

    x, y = images().tensors
    loader = DataLoader(TensorDataset(x.flatten(1), y), 16)
    trainer = fit(Flat(), monitor(layers=["0"], num_shown=8), folder=tmp_path, train=loader, validation=loader)
    assert set(logged(trainer)) == {"SID/0", "unseen/0"}
    assert not (tmp_path / "maps").exists()


# -- reconstruction uncertainty


def test_reconstruction_uncertainty_where_there_are_decoders(tmp_path):
    decoder = nn.Sequential(nn.Linear(16, 64), nn.Unflatten(1, (1, 8, 8)))
    trainer = fit(Stranger(), monitor(decoders={"fc1": decoder}), folder=tmp_path, max_epochs=1)
    assert set(logged(trainer)) == {*(f"{key}/{layer}" for layer in LAYERS for key in ("SID", "unseen")), "RU/fc1"}
    assert math.isfinite(logged(trainer)["RU/fc1"])
    with pytest.raises(ValueError, match="decoders has layer 'fc9'; expected some of conv, fc1, fc2"):
        fit(Stranger(), monitor(decoders={"fc9": decoder}), folder=tmp_path)


@pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode")
def test_the_decoders_in_training_are_looked_at_as_they_are(tmp_path):
    torch.manual_seed(0)
    decoders = InputDecoder(Net(), ["conv", "fc1"], input_shape=(1, 8, 8), width=2, blocks=2)
    own = monitor(decoders="own", network="teacher")
    fit(decoders, own, folder=tmp_path, max_epochs=2)
    first, last = own.history[0], own.history[-1]
    assert first["SID/conv"] == last["SID/conv"], "the network is frozen"
    assert first["RU/conv"] != last["RU/conv"], "its decoder is not"
    assert "RU/fc2" not in last
    with pytest.raises(ValueError, match="decoders is 'own', but Stranger has none; expected an InputDecoder"):
        fit(Stranger(), monitor(decoders="own"), folder=tmp_path)


@pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode")
def test_decoders_from_the_checkpoint_of_their_training(tmp_path):
    network = Net()
    decoders = InputDecoder(network, ["conv", "fc1"], input_shape=(1, 8, 8), width=2, blocks=2)
    trainer = fit(decoders, folder=tmp_path, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "decoders.ckpt")
    module = Stranger(network.requires_grad_(True), learning_rate=0.0)
    options = {"num_images": 4, "num_scale_images": 4, "decoders": str(tmp_path / "decoders.ckpt")}
    found = logged(fit(module, monitor(**options), folder=tmp_path, max_epochs=1))
    given = {layer: decoders.decoder(layer) for layer in ("conv", "fc1")}
    expected = logged(fit(module, monitor(**options | {"decoders": given}), folder=tmp_path, max_epochs=1))
    assert {key for key in found if key.startswith("RU/")} == {"RU/conv", "RU/fc1"}
    assert found == pytest.approx(expected, abs=0.2)  # BatchNorm's running statistics move on between the two


# -- files


def test_maps_of_every_measurement_and_curves_at_the_end(tmp_path):
    fit(Stranger(), monitor(num_shown=2), monitor(name="second", num_shown=9), folder=tmp_path)
    folder = figures_of(tmp_path).parent
    names = sorted(str(path.relative_to(folder)) for path in tmp_path.rglob("*.png"))
    assert names == sorted(
        [
            f"maps/{epoch}/{name}_SID.png"
            for name in ("discarding", "second")
            for epoch in ("start", "epoch_000", "epoch_001")
        ]
        + [f"figures/{name}_curves.png" for name in ("discarding", "second")]
    )
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.rglob("*.png"))


def test_a_dry_run_draws_nothing(tmp_path):
    fit(Stranger(), monitor(num_images=1000, num_scale_images=2000, num_shown=8), folder=tmp_path, fast_dev_run=True)
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_resumed_run_continues_the_curve(tmp_path):
    def run(name, max_epochs, resume=None):
        pl.seed_everything(1, verbose=False)
        checkpoint = pl.callbacks.ModelCheckpoint(tmp_path / name, save_last=True, save_on_train_epoch_end=True)
        callback = monitor()
        trainer = pl.Trainer(
            max_epochs=max_epochs, accelerator="cpu", devices=1, logger=CSVLogger(tmp_path, name="logs", version=name),
            enable_progress_bar=False, enable_model_summary=False, callbacks=[callback, checkpoint],
        )  # fmt: skip
        loader = DataLoader(images(), 16)
        trainer.fit(Stranger(), loader, loader, ckpt_path=resume, weights_only=True)
        return callback.history

    run("stopped", 1)
    assert run("resumed", 3, tmp_path / "stopped" / "last.ckpt") == run("straight", 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_images": 0}, "num_images is 0; expected a number >= 1"),
        ({"num_vjps": 0}, "num_vjps is 0"),
        ({"batch_size": -2}, "batch_size is -2"),
        ({"method": "exact"}, "method is 'exact'; expected linear or optimized"),
        ({"every_n_epochs": 0}, "every_n_epochs is 0"),
    ],
)
def test_bad_options_are_named_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        monitor(**options)

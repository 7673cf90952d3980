import pytest
import pytorch_lightning as pl
import torch
from third_party_modules import figures_of
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from netprism.callbacks import KnowledgePoints
from netprism.knowledge.sample_projection import lbfgs
from netprism.lightning_modules import RegionProjection, SampleProjection

pytestmark = pytest.mark.filterwarnings("ignore:Found .* in eval mode")  # the teacher, on purpose
SHORT = {"input_shape": (1, 8, 8), "steps": 3, "num_compared": 10}


class Teacher(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 6, 2, stride=2), nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 8, 2, stride=2)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = F.relu(self.second(F.relu(self.norm(self.first(x)))))
        return self.fc(x.mean(dim=(2, 3)))


def teacher():
    torch.manual_seed(0)
    net = Teacher()
    nn.init.normal_(net.fc.weight, std=20)  # sure of some images, as a trained one is
    return net


def data(count=24, seed=1):
    draws = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(count, 1, 8, 8, generator=draws), torch.arange(count) % 4)


def fit(module, folder, max_epochs=1, seed=0, train=None, **options):
    settings = {
        "max_epochs": max_epochs, "accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "enable_checkpointing": False, "default_root_dir": folder,
    }  # fmt: skip
    pl.seed_everything(seed, verbose=False)
    trainer = pl.Trainer(**(settings | options))
    trainer.fit(module, train or DataLoader(data(), 24), DataLoader(data(9, seed=2), 4))
    return trainer


@pytest.fixture(autouse=True)
def short(request, monkeypatch):
    """Without pictures and most steps of the sample projection, where most of the time would go."""
    monkeypatch.setattr("netprism.knowledge.sample_projection.lbfgs", lambda parameters, _: lbfgs(parameters, steps=15))
    if request.node.name != "test_pictures":
        monkeypatch.setattr("netprism.figures.knowledge.draw_projected", lambda *_: [])
        monkeypatch.setattr("netprism.figures.knowledge.draw", lambda *_: [])


def test_the_key_set_is_exact(tmp_path):
    trainer = fit(RegionProjection(teacher(), layers=["first", "second"], **SHORT), tmp_path)
    counts = [f"{infix}{key}" for infix in ("", "test/") for key in ("points", "reliable", "ratio")]
    what = ("similarity", "align", "importance_corr", *counts)
    expected = {f"knowledge/{key}/{layer}" for key in what for layer in ("first", "second")}
    assert set(trainer.callback_metrics) == expected


def test_the_teacher_stays_as_it_is_and_in_eval_mode(tmp_path):
    net = teacher()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    module = RegionProjection(net, layers=["first"], **SHORT)
    fit(module, tmp_path)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not any(m.training for m in net.modules())
    assert not any(p.requires_grad for p in net.parameters())


def test_steps_reduce_the_loss_and_move_every_layer(tmp_path):
    layers = ["first", "second"]
    few, many = (RegionProjection(teacher(), layers, **(SHORT | {"steps": steps})) for steps in (1, 60))
    before = [many.projection.projector(layer).matrix.detach().clone() for layer in layers]
    losses = [fit(module, tmp_path).callback_metrics for module in (few, many)]
    for layer, old in zip(layers, before, strict=True):
        first, mean = (float(values[f"knowledge/similarity/{layer}"]) for values in losses)
        assert mean < first
        assert (many.projection.projector(layer).matrix - old).abs().max() > 0.01


def test_it_counts_what_the_callback_counts(tmp_path):
    images = data()
    options = {"reference_layer": "first", "tau": 0.5, "steps": 40, "num_compared": 10, "seed": 3}
    monitor = KnowledgePoints(["first", "second"], images_per_class=6, classes=4, measure_untrained=False, **options)

    class Frozen(pl.LightningModule):
        """Learns nothing, so that the callback sees the teacher."""

        def __init__(self):
            super().__init__()
            self.net = teacher()

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch):
            return 0 * self(batch[0]).sum()

        def validation_step(self, batch):
            pass

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

        def on_train_epoch_start(self):
            self.net.eval()  # BatchNorm's statistics stay

    fit(Frozen(), tmp_path, callbacks=[monitor])
    chosen = [index for batch in monitor.chosen[0].batches for index in batch]
    module = RegionProjection(teacher(), ["first", "second"], (1, 8, 8), **options)
    same = DataLoader(TensorDataset(*images[chosen]), len(chosen))
    values = fit(module, tmp_path, train=same).callback_metrics
    [row] = monitor.history
    assert 0 < row["reliable/first"] < row["points/first"] < 16
    for key in (f"{what}/{layer}" for what in ("points", "reliable", "ratio") for layer in ("first", "second")):
        assert float(values[f"knowledge/{key}"]) == pytest.approx(row[key], rel=1e-6), key
    for layer in ("first", "second"):
        ours, theirs = (frames[0]["layers"][layer]["points"] for frames in (module.frames, monitor.frames))
        assert torch.equal(ours, theirs)


def test_layers_have_the_mean_strength_of_the_reference(tmp_path):
    module = RegionProjection(teacher(), layers=["first", "second"], reference_layer="first", **SHORT)
    fit(module, tmp_path)
    with torch.no_grad():
        projected = module(data().tensors[0])
    strengths = {layer: h.norm(dim=2).mean().item() for layer, h in projected.items()}
    assert projected["first"].shape == (24, 16, 3)
    assert projected["second"].shape == (24, 4, 3)
    assert strengths["second"] == pytest.approx(strengths["first"], rel=1e-5)


def test_two_processes_end_with_the_same_projections(tmp_path):
    module = RegionProjection(teacher(), layers=["first"], **SHORT)
    start = module.projection.projector("first").matrix.detach().clone()

    class Same(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            own = pl_module.projection.projector("first").matrix.detach()
            everyone = [torch.zeros_like(own) for _ in range(2)]
            torch.distributed.all_gather(everyone, own)
            assert torch.equal(*everyone)
            assert not torch.equal(own, start)

    fit(module, tmp_path, devices=2, strategy="ddp_fork", callbacks=[Same()])


def test_checkpoints_hold_the_projections(tmp_path):
    module = RegionProjection(teacher(), layers=["first"], **SHORT)
    fit(module, tmp_path).save_checkpoint(tmp_path / "last.ckpt")
    loaded = RegionProjection.load_from_checkpoint(tmp_path / "last.ckpt", teacher=teacher(), weights_only=True)
    x = data().tensors[0]
    assert torch.equal(loaded(x)["first"], module(x)["first"])


class SomeDigits(pl.LightningDataModule):
    shape = (1, 8, 8)

    def train_dataloader(self):
        return DataLoader(data(), 24)

    def val_dataloader(self):
        return DataLoader(data(9, seed=2), 4)


def test_the_shape_of_the_images_is_that_of_the_data_module(tmp_path):
    module = RegionProjection(teacher(), ["first"], steps=3)
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(max_epochs=1, enable_checkpointing=False, default_root_dir=tmp_path, **options)
    trainer.fit(module, SomeDigits())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = RegionProjection.load_from_checkpoint(tmp_path / "last.ckpt", teacher=teacher(), weights_only=True)
    assert loaded.input_shape == (1, 8, 8)
    assert torch.equal(loaded(data().tensors[0])["first"], module(data().tensors[0])["first"])


@pytest.mark.parametrize(
    "make",
    [lambda net: RegionProjection(net, ["first"], **SHORT), lambda net: SampleProjection(net, input_shape=(1, 8, 8))],
)
def test_compiled_networks_are_projected_as_plain_ones(tmp_path, make):
    compiled, plain = make(torch.compile(teacher(), backend="eager")), make(teacher())
    for module in (compiled, plain):
        fit(module, tmp_path)
    for key, value in plain(data().tensors[0]).items():
        assert torch.equal(compiled(data().tensors[0])[key], value)


def test_pictures(tmp_path):
    fit(RegionProjection(teacher(), layers=["first"], **SHORT), tmp_path)
    names = {path.name for path in figures_of(tmp_path).iterdir()}
    expected = {"knowledge_ellipsoids.png", "knowledge_film_first.gif", "knowledge_film_first.html", "plotly.min.js"}
    assert names == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": []}, "layers is empty; expected"),
        (
            {"layers": ["first"], "reference_layer": "second"},
            "reference_layer is 'second'; expected None or one of first",
        ),
        ({"layers": ["third"]}, "Teacher has no layer 'third'; it has first, norm, second, fc"),
        ({"layers": ["first"], "num_compared": 1}, "num_compared is 1; expected at least"),
        ({"layers": ["first"], "tau": 7.0}, "tau is 7.0; expected > 0 and < 1"),
        ({"layers": ["first"], "tau": 0.2}, "tau is 0.2; expected >= 1 / C = 0.25 and < 1"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        RegionProjection(teacher(), **(SHORT | options))


def test_a_network_without_a_linear_layer_is_told():
    with pytest.raises(ValueError, match="Sequential has no fully connected layer"):
        RegionProjection(nn.Sequential(nn.Conv2d(1, 4, 2)), ["0"], (1, 8, 8))

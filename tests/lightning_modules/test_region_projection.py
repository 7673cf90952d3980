from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from netprism.knowledge.sample_projection import fit_projection
from netprism.lightning_modules import RegionProjection

pytestmark = pytest.mark.filterwarnings("ignore:Found .* in eval mode")  # the teacher, on purpose
SHORT = {"input_shape": (1, 8, 8), "updates": 3, "compared": 10}


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


def fit(module, folder, max_epochs=1, seed=0, **options):
    settings = {
        "max_epochs": max_epochs, "accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "enable_checkpointing": False, "default_root_dir": folder,
    }  # fmt: skip
    pl.seed_everything(seed, verbose=False)
    trainer = pl.Trainer(**(settings | options))
    trainer.fit(module, DataLoader(data(), 24), DataLoader(data(9, seed=2), 4))
    return trainer


@pytest.fixture(autouse=True)
def short(request, monkeypatch):
    """Without pictures and most steps of the sample projection, where most of the time would go."""
    steps = partial(fit_projection, steps=15)
    monkeypatch.setattr("netprism.lightning_modules.region_projection.fit_projection", steps)
    if request.node.name != "test_pictures":
        monkeypatch.setattr("netprism.figures.knowledge.draw_projected", lambda *_: [])


def test_the_key_set_is_exact(tmp_path):
    trainer = fit(RegionProjection(teacher(), layers=["first", "second"], **SHORT), tmp_path)
    what = ("similarity", "align", "importance_corr", "test_points", "test_reliable", "test_ratio")
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
    module = RegionProjection(teacher(), layers=["first", "second"], **(SHORT | {"updates": 20, "compared": 24}))
    before = [m.matrix.detach().clone() for m in module.maps]
    losses = []

    class Watch(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            metrics = trainer.callback_metrics
            losses.append([float(metrics[f"knowledge/similarity/{layer}"]) for layer in ("first", "second")])

    fit(module, tmp_path, max_epochs=3, callbacks=[Watch()])
    assert all(last < first for first, last in zip(losses[0], losses[-1], strict=True))
    assert all((m.matrix - old).abs().max() > 0.01 for m, old in zip(module.maps, before, strict=True))


def test_layers_have_the_mean_strength_of_the_reference(tmp_path):
    module = RegionProjection(teacher(), layers=["first", "second"], reference="first", **SHORT)
    fit(module, tmp_path)
    with torch.no_grad():
        projected = module(data().tensors[0])
    strengths = {layer: h.norm(dim=2).mean().item() for layer, h in projected.items()}
    assert projected["first"].shape == (24, 16, 3)
    assert projected["second"].shape == (24, 4, 3)
    assert strengths["second"] == pytest.approx(strengths["first"], rel=1e-5)


def test_two_processes_end_with_the_same_projections(tmp_path):
    module = RegionProjection(teacher(), layers=["first"], **SHORT)
    start = module.maps[0].matrix.detach().clone()

    class Same(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            own = pl_module.maps[0].matrix.detach()
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


def test_pictures(tmp_path):
    fit(RegionProjection(teacher(), layers=["first"], **SHORT), tmp_path)
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    expected = {"knowledge_ellipsoids.png", "knowledge_film_first.gif", "knowledge_film_first.html", "plotly.min.js"}
    assert names == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": []}, r"layers \[\], reference None"),
        ({"layers": ["first"], "reference": "second"}, "reference 'second'"),
        ({"layers": ["third"]}, "Teacher has no layer 'third'; it has first, norm, second, fc"),
        ({"layers": ["first"], "compared": 2}, "compared 2: expected"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        RegionProjection(teacher(), **(SHORT | options))


def test_a_network_without_a_linear_layer_is_told():
    with pytest.raises(ValueError, match="Sequential has no fully connected layer"):
        RegionProjection(nn.Sequential(nn.Conv2d(1, 4, 2)), (1, 8, 8), ["0"])

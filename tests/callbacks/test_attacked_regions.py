import pytest
import pytorch_lightning as pl
import torch
from small_monitors import Module
from third_party_modules import figures_of, fit

from netprism.callbacks import AttackedRegions
from netprism.interventions import Pixels
from netprism.interventions.regions import KINDS
from netprism.knowledge.sample_projection import lbfgs

SHORT = {
    "layers": ["conv"], "images_per_class": 4, "classes": 3, "steps": 2, "batch_size": 5, "every_n_epochs": 1,
    "pixels": Pixels(mean=(0.5,), std=(0.08,)), "eps": 0.3,
}  # fmt: skip


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr("netprism.knowledge.sample_projection.lbfgs", lambda parameters, _: lbfgs(parameters, steps=5))


def run(folder, *callbacks, **options):
    pl.seed_everything(3, verbose=False)
    module = Module()
    trainer = fit(module, *callbacks, folder=folder, max_epochs=1, **options)
    return trainer, [*module.state_dict().values(), torch.rand(3)]


def test_keys_figures_and_that_the_training_does_not_notice(tmp_path):
    trainer, state = run(tmp_path / "with", AttackedRegions(**SHORT))
    of_layer = {f"{key}/conv" for key in ("cosine", "strength", *KINDS, "utility", "new")}
    found = {k.removeprefix("attack/"): float(v) for k, v in trainer.callback_metrics.items() if "attack/" in k}
    assert set(found) == {"accuracy", "clean_accuracy", *of_layer}
    assert 0 <= found["accuracy"] <= found["clean_accuracy"] <= 1
    assert -1 <= found["cosine/conv"] < 1
    names = sorted(file.name for file in figures_of(tmp_path / "with").iterdir())
    assert names == ["attack_regions.png", "attack_steps.png", "attack_utilities.png"]
    _, without = run(tmp_path / "without")
    assert all(torch.equal(a, b) for a, b in zip(state, without, strict=True))


def test_two_processes_measure_the_numbers_of_one(tmp_path, monkeypatch):
    monkeypatch.setattr("netprism.figures.attack.draw", lambda *_: [])

    class Keep(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            torch.save(monitor.history, tmp_path / f"{trainer.world_size}{trainer.global_rank}.pt")

    for more in ({}, {"devices": 2, "strategy": "ddp_fork"}):
        monitor = AttackedRegions(**SHORT, measure_untrained=True)
        run(tmp_path, monitor, Keep(), limit_train_batches=1, limit_val_batches=0, **more)
    alone, first, second = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("10", "20", "21"))
    assert str(first) == str(second)  # NaN is not itself
    assert first[0] == pytest.approx(alone[0], rel=1e-4)  # before training; afterwards the networks differ


def test_bad_input_ends_in_one_line():
    with pytest.raises(ValueError, match="eps is 0; expected a number > 0"):
        AttackedRegions(eps=0)
    with pytest.raises(ValueError, match="steps is 0; expected"):
        AttackedRegions(steps=0)

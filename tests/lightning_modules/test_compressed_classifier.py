import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from netprism.interventions import layer_sizes
from netprism.lightning_modules import CompressedClassifier
from netprism.runs.teachers import load_weights


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 32), nn.ReLU(), nn.Linear(32, 3)
    )


def loader(seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(60) % 3
    patterns = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(9))
    return DataLoader(TensorDataset(patterns[labels] + torch.randn(60, 1, 8, 8, generator=generator), labels), 20)


def module(**options):
    settings = {"num_classes": 3, "rounds": 2, "epochs_per_round": 2, "bits": (4, 4)} | options
    return CompressedClassifier(make_net(), **settings)


def trainer(folder, epochs=4, **options):
    return pl.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, **options,
    )  # fmt: skip


def test_rounds_prune_and_the_last_validation_is_of_shared_weights(tmp_path):
    compressed, kept, seen = module(), [], []

    class Watch(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append(trainer.callback_metrics.get("val/accuracy"))

        def on_validation_epoch_end(self, trainer, pl_module):
            kept.append([(size.kept, size.values) for size in layer_sizes(pl_module.net)])

    run = trainer(tmp_path, callbacks=[Watch()], num_sanity_val_steps=0)
    run.fit(compressed, loader(), loader(1))
    counts = [[layer[0] for layer in epoch] for epoch in kept]
    assert counts[0] == counts[1]
    assert all(b <= a for a, b in zip(counts[1], counts[2], strict=True))
    assert counts[2] == counts[3]
    assert sum(counts[2]) < sum(counts[1]) < 0.5 * (72 + 288 * 32 + 96)
    assert all(values == 16 for _, values in kept[3]), "shared when the last validation looked"
    assert any(values > 16 for _, values in kept[2])
    assert float(run.callback_metrics["compression/kept"]) == pytest.approx(sum(counts[3]) / (72 + 288 * 32 + 96))
    assert 0 < run.callback_metrics["compression/bytes"] < 4000
    assert "compression/kept/0" in run.callback_metrics


def test_a_checkpoint_is_that_of_the_plain_network(tmp_path):
    compressed = module()
    run = trainer(tmp_path)
    run.fit(compressed, loader(), loader(1))
    run.save_checkpoint(tmp_path / "last.ckpt")
    plain = make_net()
    load_weights(plain, tmp_path / "last.ckpt")
    x = torch.randn(4, 1, 8, 8)
    assert torch.equal(plain(x), compressed.net(x))
    assert all(size.values == 16 for size in layer_sizes(plain))
    again = CompressedClassifier.load_from_checkpoint(tmp_path / "last.ckpt", net=make_net(), weights_only=True)
    assert torch.equal(again.net(x), compressed.net(x))


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # the other run has a folder of its own
def test_a_resumed_run_ends_bitwise_as_one_that_was_not_stopped(tmp_path):
    whole = module()
    trainer(tmp_path / "whole").fit(whole, loader(), loader(1))
    first = module()

    keep = ModelCheckpoint(tmp_path / "kept", filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    trainer(tmp_path / "first", callbacks=[keep]).fit(first, loader(), loader(1))
    resumed = module()
    trainer(tmp_path / "resumed").fit(
        resumed, loader(), loader(1), ckpt_path=tmp_path / "kept" / "epoch=2.ckpt", weights_only=True
    )
    for key, value in whole.state_dict().items():
        if key.startswith("net"):
            masked = value * whole.state_dict().get(key.replace("_orig", "_mask"), 1) if "_orig" in key else value
            other = resumed.state_dict()
            found = other[key] * other[key.replace("_orig", "_mask")] if "_orig" in key else other[key]
            assert torch.equal(masked, found), key


def test_bad_input_ends_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="rounds is 0"):
        module(rounds=0)
    with pytest.raises(ValueError, match="max_epochs is 3; expected at least 4, 2 rounds of 2 epochs"):
        trainer(tmp_path, epochs=3).fit(module(), loader(), loader(1))
    with pytest.raises(ValueError, match="leaves no weight of layer"):
        trainer(tmp_path).fit(module(s=50.0), loader(), loader(1))
    with pytest.raises(ValueError, match="bits is 16 and linear_bits is 16; expected fewer"):
        trainer(tmp_path).fit(module(bits=(16, 16)), loader(), loader(1))

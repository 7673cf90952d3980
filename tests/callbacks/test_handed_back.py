import pytest
import pytorch_lightning as pl
import torch
from deadline import deadline
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from netprism.callbacks import _handed_back
from netprism.callbacks._monitor import Monitor
from netprism.lightning_modules import Classifier

DATA = TensorDataset(torch.randn(8, 1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2)


class Numbers(Monitor):
    """Logs as many numbers as it is told."""

    def __init__(self, count):
        super().__init__("numbers", num_images=8)
        self.count = count

    def measure(self, view, epoch):
        return {f"quantity_with_a_long_name_{i:04}": float(i) for i in range(self.count)} | {"all": -1.0}


@pytest.mark.filterwarnings("ignore")  # a loader without workers, no validation
@pytest.mark.parametrize(("count", "kept"), [(300, 300), (700, None)])
def test_forked_ranks_end_however_many_numbers_are_logged(count, kept, tmp_path, monkeypatch):
    warned = tmp_path / "warned.txt"
    monkeypatch.setattr(_handed_back, "rank_zero_warn", warned.write_text)
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp_fork", max_epochs=1, callbacks=[Numbers(count)], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with deadline():
        trainer.fit(Classifier(net), DataLoader(DATA, 4))
    found = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("numbers/")}
    assert found.pop("numbers/all") == -1
    assert all(name.endswith(f"_{value:04.0f}") for name, value in found.items())
    assert trainer.callback_metrics["train/loss"].dtype == torch.float32
    if kept is None:
        assert 200 < len(found) < count
        assert f"{701 - len(found) - 1} of 701 numbers are not in trainer.callback_metrics" in warned.read_text()
    else:
        assert len(found) == kept
        assert not warned.exists()

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from netprism.callbacks import BestCheckpoint
from netprism.callbacks.training.best_checkpoint import best_mode

LOADER = DataLoader(TensorDataset(torch.zeros(2, 1)), batch_size=2)


class Curves(pl.LightningModule):
    """Logs given curves; its one weight is the number of epochs it has seen."""

    def __init__(self, **curves):
        super().__init__()
        self.curves, self.epochs = curves, nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        return 0 * self.epochs

    def on_train_epoch_start(self):
        self.epochs.data += 1

    def validation_step(self, batch, batch_idx):
        for name, curve in self.curves.items():
            self.log(name, curve[self.current_epoch])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(folder, module, epochs=3, ckpt=None, val_every=1, **options):
    callbacks = [
        BestCheckpoint(
            dirpath=folder, filename="best", enable_version_counter=False, save_on_train_epoch_end=True, **options
        ),
        ModelCheckpoint(dirpath=folder, filename="last", enable_version_counter=False, save_on_train_epoch_end=True),
    ]
    trainer = pl.Trainer(
        max_epochs=epochs, callbacks=callbacks, logger=False, accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, check_val_every_n_epoch=val_every,
    )  # fmt: skip
    trainer.fit(module, LOADER, LOADER, ckpt_path=ckpt, weights_only=True)
    return callbacks[0]


def best(folder):
    return int(torch.load(folder / "best.ckpt", weights_only=True)["state_dict"]["epochs"])


@pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:Checkpoint directory", "ignore:.*tensorboard"
)
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
class TestFit:
    @pytest.mark.parametrize(
        ("curves", "epoch"),
        [
            ({"val/accuracy": (0.2, 0.9, 0.5), "val/loss": (1.0, 2.0, 0.1)}, 2),
            ({"val_acc": (0.9, 0.1, 0.5), "f1": (0.0, 0.0, 1.0)}, 1),
            ({"valid_loss": (3.0, 1.0, 2.0)}, 2),
            ({"something": (3.0, 1.0, 2.0)}, 3),
            ({}, 3),
        ],
    )
    def test_the_best_epoch_is_by_what_the_module_logs(self, tmp_path, curves, epoch):
        fit(tmp_path, Curves(**curves))
        assert best(tmp_path) == epoch

    def test_a_named_key_goes_first_and_its_mode_follows_from_its_name(self, tmp_path):
        fit(tmp_path, Curves(**{"val/accuracy": (0.9, 0.1, 0.1), "val/mse": (3.0, 1.0, 2.0)}), monitor="val/mse")
        assert best(tmp_path) == 2

    def test_a_key_that_is_not_logged_is_named_with_those_that_are(self, tmp_path):
        with pytest.raises(ValueError, match="best_checkpoint.monitor is 'val/f1'; expected one of val/loss"):
            fit(tmp_path, Curves(**{"val/loss": (1.0, 1.0, 1.0)}), monitor="val/f1")

    def test_a_validation_that_comes_later_is_waited_for(self, tmp_path):
        fit(tmp_path, Curves(**{"val/accuracy": (0.0, 0.9, 0.0, 0.1)}), epochs=4, val_every=2)
        assert best(tmp_path) == 2

    def test_a_resumed_run_in_a_folder_that_was_moved_keeps_the_best_epoch(self, tmp_path):
        curves = {"val/accuracy": (0.2, 0.9, 0.5)}
        fit(tmp_path / "a", Curves(**curves), epochs=2)
        (tmp_path / "a").rename(tmp_path / "b")
        checkpoint = fit(tmp_path / "b", Curves(**curves), ckpt=tmp_path / "b" / "last.ckpt")
        assert best(tmp_path / "b") == 2
        assert checkpoint.best_model_path == str(tmp_path / "b" / "best.ckpt")
        assert checkpoint.best_model_score.item() == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("key", "mode"),
    [
        ("val/loss", "min"),
        ("val_mse", "min"),
        ("test/error", "min"),
        ("val/accuracy", "max"),
        ("lossless", "max"),
        ("", "min"),
    ],
)
def test_the_mode_of_a_key(key, mode):
    assert best_mode(key) == mode

"""LightningModules and data as somebody writes them who has never heard of netprism."""

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

IMAGES = 45  # odd, so that two ranks get different shares


class Net(nn.Module):
    """A convolution with BatchNorm, functional ReLUs, one of them in place, optional dropout."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc1 = nn.Linear(64, 16)
        self.fc2 = nn.Linear(16, 3)
        self.dropout = dropout

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.conv(x)), inplace=True), 2, padding=1)
        x = F.dropout(torch.relu(self.fc1(x.flatten(1))), self.dropout, self.training)
        return {"logits": self.fc2(x)}


class NaNOnRank1(Net):
    """A network that fails on one rank, where a monitor looks at it."""

    def forward(self, x):
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        return super().forward(x * float("nan") if rank == 1 and not self.training else x)


class Stranger(pl.LightningModule):
    def __init__(self, net=None, learning_rate=0.05):
        super().__init__()
        self.model = net or Net()
        self.learning_rate = learning_rate

    def forward(self, x):
        return self.model(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x)["logits"], y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x)["logits"], y), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.learning_rate)


def images(count=IMAGES, seed=0):
    """Noise on a pattern of the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    patterns = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(99))
    return TensorDataset(patterns[labels] + torch.randn(count, 1, 8, 8, generator=generator), labels)


def loaders(batch_size=16):
    return DataLoader(images(), batch_size, shuffle=True), DataLoader(images(20, seed=1), batch_size)


def fit(module, *callbacks, folder, train=None, validation=None, **options):
    """Trains two epochs on one CPU process, unless told otherwise; returns the trainer."""
    settings = {
        "max_epochs": 2, "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder,
    }  # fmt: skip
    trainer = pl.Trainer(callbacks=list(callbacks), **(settings | options))
    default_train, default_validation = loaders()
    trainer.fit(module, train or default_train, validation or default_validation)
    return trainer


def figures_of(folder, kind="figures"):
    """The folder of figures of the one trainer without a logger that ran in `folder`."""
    (found,) = folder.glob(f"netprism/*/{kind}")
    return found

"""Monitors on real modules of other packages, in one line each; skipped where a package is not installed.

pip install timm transformers lightly torchgeo
make test-strangers
"""

import importlib

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from netprism import GatingEntropy, InformationDiscarding, analyze

pytestmark = [pytest.mark.strangers, pytest.mark.filterwarnings("ignore")]  # those of other packages
IMAGES, LABELS = torch.rand(8, 3, 64, 64), torch.arange(8) % 2


def trainer_of(module):
    """The Trainer of the package that the module is written for: there are two of the same content."""
    is_unified = any(kind.__module__.startswith("lightning.") for kind in type(module).__mro__)
    return importlib.import_module("lightning.pytorch" if is_unified else "pytorch_lightning").Trainer


def train(module, loader, tmp_path, validation=None, **options):
    """Trains one epoch with monitors, and without; returns what was logged."""
    state = {name: value.clone() for name, value in module.state_dict().items()}
    found = []
    for monitored in (True, False):
        module.load_state_dict(state)
        pl.seed_everything(0, verbose=False)
        look = dict(num_images=4, batch_size=2, **options)
        monitors = [GatingEntropy(**look), InformationDiscarding(num_vjps=1, num_scale_images=4, num_shown=0, **look)]
        trainer = trainer_of(module)(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path, callbacks=monitors if monitored else [],
        )  # fmt: skip
        trainer.fit(module, loader, validation)
        found.append((dict(trainer.callback_metrics), [p.detach().clone() for p in module.parameters()]))
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True)), "the training has changed"
    logged = {key: float(value) for key, value in found[0][0].items()}
    assert 0 <= logged["gates/entropy"] <= 2.01  # log2 of 4 samples
    assert any(key.startswith("discarding/SID/") for key in logged) or options.get("unpack") is not None
    return logged


class Classify(pl.LightningModule):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_timm(name, tmp_path):
    timm = pytest.importorskip("timm")
    options = {"img_size": 64} if name.startswith("vit") else {}
    net = timm.create_model(name, num_classes=2, **options)
    train(Classify(net), DataLoader(TensorDataset(IMAGES, LABELS), 4), tmp_path)
    assert analyze(net, (IMAGES, LABELS), ["gates"]).table()


class Items(Dataset):
    def __init__(self, **tensors):
        self.tensors = tensors

    def __len__(self):
        return 8

    def __getitem__(self, i):
        return {key: value[i] for key, value in self.tensors.items()}


class HuggingFace(pl.LightningModule):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, **batch):
        return self.net(**batch)

    def training_step(self, batch, _):
        return self(**batch).loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3)


def test_transformers_vit_and_bert(tmp_path):
    transformers = pytest.importorskip("transformers")
    small = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    vit = transformers.ViTForImageClassification(transformers.ViTConfig(image_size=64, num_labels=2, **small))
    loader = DataLoader(Items(pixel_values=IMAGES, labels=LABELS), 4)
    assert "gates/class_information" in train(HuggingFace(vit), loader, tmp_path)
    bert = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=50, num_labels=2, **small))
    tokens = Items(
        input_ids=torch.randint(0, 50, (8, 12)), attention_mask=torch.ones(8, 12, dtype=torch.long), labels=LABELS
    )
    module = HuggingFace(bert)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        callbacks=[GatingEntropy(num_images=4, batch_size=2), InformationDiscarding(
            ["net.bert.encoder.layer.1"], num_images=2, num_scale_images=2, num_vjps=1, num_shown=0, batch_size=2,
            input_layer="net.bert.embeddings",
        )], default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, DataLoader(tokens, 4))
    assert any(key.startswith("discarding/SID/") for key in trainer.callback_metrics)


def test_lightly_simclr(tmp_path):
    heads = pytest.importorskip("lightly.models.modules")
    losses = pytest.importorskip("lightly.loss")

    class SimCLR(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.projection_head = heads.SimCLRProjectionHead(8, 8, 4)
            self.criterion = losses.NTXentLoss()

        def forward(self, x):
            return self.projection_head(self.backbone(x))

        def training_step(self, batch, _):
            (first, second), _ = batch
            return self.criterion(self(first), self(second))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 1e-3)

    class Views(Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, i):
            return [IMAGES[i], IMAGES[i].flip(-1)], int(LABELS[i])

    train(SimCLR(), DataLoader(Views(), 4), tmp_path)


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_torchgeo(task, tmp_path):
    trainers = pytest.importorskip("torchgeo.trainers")
    if task == "classification":
        module = trainers.ClassificationTask(model="resnet18", num_classes=2, task="multiclass")
        loader = DataLoader(Items(image=IMAGES, label=LABELS), 4)
    else:
        module = trainers.SemanticSegmentationTask(model="unet", backbone="resnet18", num_classes=2, task="multiclass")
        loader = DataLoader(Items(image=IMAGES, mask=torch.randint(0, 2, (8, 64, 64))), 4)
    train(module, loader, tmp_path, validation=loader)  # its schedule follows val_loss

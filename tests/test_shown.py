"""What W&B, TensorBoard and CSV loggers get of a training: numbers, and pictures with their epoch."""

import json
import subprocess
import sys
from collections import defaultdict

import lightning.pytorch
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from netprism import InformationDiscarding
from netprism.cli.main import main
from netprism.loggers import publish
from netprism.loggers.pictures import _for_wandb

pytestmark = [pytest.mark.filterwarnings("ignore:.*does not have many workers")]


def module(package):
    class Small(package.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3))

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    return Small()


def train(package, loggers, folder):
    images = TensorDataset(torch.randn(12, 1, 8, 8), torch.arange(12) % 3)
    monitor = InformationDiscarding(["1"], num_images=2, num_scale_images=2, num_vjps=1, batch_size=2)
    trainer = package.Trainer(
        max_epochs=2, accelerator="cpu", logger=loggers, callbacks=[monitor], default_root_dir=folder,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module(package), DataLoader(images, 6))
    return monitor.history


PACKAGES = {"pytorch_lightning": pl, "lightning": lightning.pytorch}


@pytest.mark.parametrize("package", PACKAGES)
def test_lightning_s_csv_and_tensorboard_loggers_get_numbers_and_pictures(package, tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    kinds = PACKAGES[package].loggers
    loggers = [kinds.CSVLogger(tmp_path, "csv"), kinds.TensorBoardLogger(tmp_path, "board")]
    history = train(PACKAGES[package], loggers, tmp_path)
    table = (tmp_path / "csv" / "version_0" / "metrics.csv").read_text()
    assert "discarding/SID/1" in table.partition("\n")[0]
    assert all(
        (tmp_path / "csv" / "version_0" / "maps" / e / "discarding_SID.png").is_file() for e in ("start", "epoch_001")
    )
    events = event_accumulator.EventAccumulator(str(tmp_path / "board" / "version_0"))
    events.Reload()
    values = [event.value for event in events.Scalars("discarding/SID/1")]
    assert values == pytest.approx([row["SID/1"] for row in history], abs=1e-6)
    assert [event.step for event in events.Images("maps/discarding_SID")] == [0, 2, 4]


def test_wandb_has_the_config_names_epochs_and_captions(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("NETPRISM_RUN", "NETPRISM_RUNS"):
        monkeypatch.delenv(name, raising=False)
    small = ["--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1", "--trainer.max_epochs=2"]
    looks = [
        "--trainer.callbacks.num_images=2",
        "--trainer.callbacks.num_scale_images=2",
        "--trainer.callbacks.num_vjps=1",
    ]
    main(["fit", "--config=discarding/digits_resnet8", *small, *looks, "--seed_everything=3"])
    said = capsys.readouterr()
    assert "epoch 2 of 2: " in said.out  # a log file gets a line for each epoch, and no bar
    assert "it/s" not in said.out + said.err
    (file,) = tmp_path.glob("runs/discarding/digits_resnet8/*/wandb/offline-run-*/*.wandb")
    found = defaultdict(list)
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", file]
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        record = json.loads(line)
        found[record["type"]].append(record[record["type"]])
    run = found["run"][0]
    assert run["display_name"].startswith("discarding/digits_resnet8 ")
    assert "seed=3" in run["display_name"]
    assert (run["run_group"], run["job_type"]) == ("discarding/digits_resnet8", "discarding")
    assert {"discarding", "Digits"} <= set(run["tags"])
    text = json.dumps(found)
    for setting in ("model.net.depth", "data.batch_size", "model.optimizer.lr", "seed_everything"):
        assert setting in text
    pictures = [row["item"] for row in found["history"] if any(k.startswith("maps/") for k in row["item"])]
    assert [row["epoch"] for row in pictures] == [-1, 0, 1]
    assert "before training" in json.dumps(pictures[0])
    assert "epoch 1" in json.dumps(pictures[2])
    assert (file.parent / "files" / "config.yaml").exists()


def test_films_pages_and_tables_are_media(tmp_path):
    (tmp_path / "a.html").write_text('<script src="plotly.min.js"></script>')
    (tmp_path / "t.csv").write_text("layer,value\nfc,1\n")
    page = _for_wandb(tmp_path / "a.html", "")
    assert "https://cdn.plot.ly/plotly-" in page.html
    table = _for_wandb(tmp_path / "t.csv", "")
    assert (table.columns, table.data) == (["layer", "value"], [["fc", "1"]])
    assert _for_wandb(tmp_path / "x.json", "") is None


class MLFlowLogger(CSVLogger):
    """As far as pictures know it."""

    run_id = "id"

    @property
    def experiment(self):
        return self

    def log_artifact(self, run_id, file, folder):
        self.files.append((run_id, file.rpartition("/")[2], folder))


def test_mlflow_gets_files_as_artifacts(tmp_path):
    logger = MLFlowLogger(tmp_path)
    logger.files = []
    trainer = pl.Trainer(accelerator="cpu", logger=logger, enable_progress_bar=False, enable_checkpointing=False)

    def draw(folder):
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(b"")
        return [folder / "a.png"]

    publish(trainer, draw, "maps", 3)
    assert logger.files == [("id", "a.png", "maps/epoch_003")]

import pytest
from pytorch_lightning import LightningModule, Trainer

from netprism.callbacks import RunSummary
from netprism.callbacks.training.run_summary import epochs, is_summary, table
from netprism.loggers import ResumableCSVLogger


def log(folder, *calls):
    logger = ResumableCSVLogger(folder)
    for epoch, metrics in calls:
        logger.log_metrics({"epoch": epoch, **metrics}, step=10 * epoch)
    return logger


def test_the_table_sets_the_first_epoch_against_the_last(tmp_path):
    logger = log(
        tmp_path,
        (-1, {"gates/entropy": 9.5}),
        (0, {"gates/entropy": 8.0, "gates/entropy/layer1": 1.0, "train/loss": 2.30258, "train/loss_step": 2.0}),
        (1, {"gates/entropy": 7.0, "train/loss": 1.0}),
        (2, {"gates/entropy": float("nan"), "train/loss": 0.5}),
    )
    assert table(epochs(logger)) == [
        "                       untrained     epoch 0     epoch 2",
        "gates/entropy                9.5           8         nan",
        "train/loss                     -       2.303         0.5",
        "gates/entropy/layer1           -           1           -",
    ]


def test_one_epoch_is_one_column(tmp_path):
    assert table(epochs(log(tmp_path, (0, {"loss": 1.0})))) == ["         epoch 0", "loss           1"]


def test_few_keys_of_layers_are_shown_and_of_many_none_unless_there_are_no_others(tmp_path):
    few = {"knowledge/KL/fc": 1.0, "loss": 3.0, "loss_step": 2.0}
    assert table(epochs(log(tmp_path / "a", (0, few))))[1:] == [
        "loss                      3",
        "knowledge/KL/fc           1",
    ]
    many = {f"gates/entropy/layer{i}": 1.0 for i in range(30)}
    layers = {f"lr/a/layer{i}": 1.0 for i in range(30)}
    assert table(epochs(log(tmp_path / "b", (0, layers | {"loss": 3.0}))))[1:] == ["loss           3"]
    assert len(table(epochs(log(tmp_path / "c", (0, layers))))) == 31
    ends = ["gates/entropy/layer0            1", "gates/entropy/layer29           1"]
    assert table(epochs(log(tmp_path / "d", (0, many))))[1:] == ends, "those of the first and the last layer"


def test_nothing_logged_is_an_empty_table(tmp_path):
    assert table(epochs(log(tmp_path))) == [""]


def test_rows_of_a_resumed_run_count(tmp_path):
    log(tmp_path, (0, {"loss": 3.0}), (1, {"loss": 2.0})).finalize("success")
    assert epochs(log(tmp_path, (1, {"loss": 1.5}))) == {0: {"loss": 3.0}, 1: {"loss": 1.5}}


@pytest.mark.parametrize("key", ["gates/entropy", "gates/test/saturation", "val/accuracy", "lr-Adam"])
def test_of_a_whole_epoch(key):
    assert is_summary(key)


@pytest.mark.parametrize("key", ["gates/entropy/layer1.0.relu", "train/loss_step"])
def test_of_a_layer_or_a_step(key):
    assert not is_summary(key)


def test_says_where_everything_is(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logger = log(tmp_path / "runs" / "a", (0, {"loss": 1.0}))
    for name in ("checkpoints/last.ckpt", "checkpoints/best.ckpt", "figures/curves.png"):
        file = tmp_path / "runs" / "a" / name
        file.parent.mkdir(exist_ok=True, parents=True)
        file.touch()
    trainer = Trainer(logger=logger, enable_checkpointing=False, default_root_dir=tmp_path, accelerator="cpu")
    RunSummary().on_fit_end(trainer, LightningModule())
    said = capsys.readouterr().out
    assert "curves       runs/a/metrics.csv\n" in said
    assert "checkpoints  runs/a/checkpoints: best.ckpt, last.ckpt\n" in said
    assert "figures      runs/a/figures: curves.png\n" in said
    assert "report       runs/a/report.html\n" in said
    assert "Finished" in (tmp_path / "runs" / "a" / "report.html").read_text()
    assert (tmp_path / "runs" / "a" / "metrics.csv").exists(), "what it points at is there"


def test_a_trainer_without_the_table_is_left_alone(tmp_path, capsys):
    trainer = Trainer(logger=False, enable_checkpointing=False, default_root_dir=tmp_path, accelerator="cpu")
    RunSummary().on_fit_end(trainer, LightningModule())
    assert capsys.readouterr().out == ""

"""A measurement that fails ends the training, or costs its numbers alone: on all ranks, and without a trace."""

import csv
import hashlib
import io
import logging
from functools import partial
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from deadline import deadline
from pytorch_lightning.callbacks import ModelCheckpoint
from small_monitors import MONITORS, Module, shorten
from third_party_modules import Net, fit
from torch.multiprocessing import ProcessRaisedException

from netprism.callbacks._monitor import Monitor, log
from netprism.distributed import all_gather_object, run_on_all_ranks
from netprism.loggers import ResumableCSVLogger

EPOCHS = 3
pytestmark = pytest.mark.filterwarnings("ignore:.*layer 'fc1' has one region")


class Failing(Monitor):
    """Raises on some ranks in some epochs, between the collectives of a monitor."""

    def __init__(self, where, error=None, ranks=(0,), epochs=(1,), **options):
        super().__init__("failing", **options)
        self.where, self.error, self.ranks = where, error or RuntimeError("boom"), ranks
        self.failing_epochs, self.seen = epochs, []

    def state_dict(self):
        return super().state_dict() | {"seen": self.seen}

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self.seen = state_dict["seen"]

    def measure(self, view, epoch):
        trainer, pl_module = view.trainer, view.pl_module

        def perhaps(where):
            if where == self.where and epoch in self.failing_epochs and trainer.global_rank in self.ranks:
                raise self.error

        self.seen.append(epoch)
        pl_module.train()
        pl_module(torch.randn(4, 1, 8, 8))
        perhaps("before")
        run_on_all_ranks(partial(perhaps, "together"))
        all_gather_object("a")
        perhaps("between")
        all_gather_object("b")
        run_on_all_ranks(lambda: all_gather_object(perhaps("in a gather in a together")))
        perhaps("after")
        return {"one": 1.0}


PLACES = ["before", "together", "between", "in a gather in a together", "after"]


class Report(pl.Callback):
    """Writes down what a rank has at the end, and what its monitors had after each epoch."""

    def __init__(self, folder):
        self.folder, self.states = Path(folder), []

    def on_train_start(self, trainer, pl_module):
        monitors = [callback for callback in trainer.callbacks if isinstance(callback, Monitor)]
        content = io.BytesIO()
        torch.save([monitor.state_dict() for monitor in monitors], content)
        self.states.append(hashlib.md5(content.getvalue()).hexdigest())

    def on_train_epoch_end(self, trainer, pl_module):
        self.on_train_start(trainer, pl_module)

    def on_train_end(self, trainer, pl_module):
        monitors = [callback for callback in trainer.callbacks if isinstance(callback, Monitor)]
        torch.save(
            {
                "weights": pl_module.state_dict(),
                "history": [row for monitor in monitors for row in monitor.history],
                "seen": [getattr(monitor, "seen", None) for monitor in monitors],
                "keys": sorted(trainer.callback_metrics),
                "states": self.states,
            },
            self.folder / f"rank{trainer.global_rank}.pt",
        )


def train(folder, *monitors, **options):
    """Three epochs; what each rank has at the end, and the rows of metrics.csv."""
    folder.mkdir(exist_ok=True)
    pl.seed_everything(3, verbose=False)
    handler = logging.FileHandler(folder / "log")
    log.addHandler(handler)  # the ranks are forked with it
    try:
        return _train(folder, *monitors, **options)
    finally:
        log.removeHandler(handler)
        handler.close()


def _train(folder, *monitors, devices=1, module=Module, **options):
    fit(
        module(), *monitors, Report(folder), folder=folder, max_epochs=EPOCHS, logger=ResumableCSVLogger(folder),
        devices=devices,
        strategy="ddp_fork" if devices > 1 else "auto", limit_val_batches=0, **options,
    )  # fmt: skip
    return results(folder, devices)


def results(folder, devices):
    ranks = [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(devices)]
    path = folder / "metrics.csv"
    rows = csv.DictReader(path.read_text().splitlines()) if path.exists() else []
    return ranks, {int(row["epoch"]): row for row in rows}


def warnings_of(folder):
    """What the monitors' logger said, on any rank."""
    return (folder / "log").read_text().splitlines()


def train_deadline(folder, *monitors, devices=2, **options):
    """The same, given up after a minute."""
    with deadline(60):
        return train(folder, *monitors, devices=devices, **options)


def same_weights(ranks, others):
    return all(
        torch.equal(rank["weights"][key], other["weights"][key])
        for rank, other in zip(ranks, others, strict=True)
        for key in rank["weights"]
    )


@pytest.fixture(scope="module")
def unmonitored(tmp_path_factory):
    """What each rank has after a training without a monitor, by the number of ranks."""
    folder = tmp_path_factory.mktemp("unmonitored")
    return {devices: train_deadline(folder / str(devices), devices=devices)[0] for devices in (1, 2)}


# -- one process


@pytest.mark.parametrize("error", [RuntimeError("boom"), MemoryError("boom"), torch.cuda.OutOfMemoryError("boom")])
def test_with_warn_an_error_costs_one_row_and_one_line(tmp_path, unmonitored, error):
    monitor = Failing("after", error, on_error="warn")
    ranks, rows = train(tmp_path, monitor)
    (line,) = warnings_of(tmp_path)
    kind = type(error).__name__
    assert line == f"failing: no values in epoch 1, the training continues ({kind}: boom)"
    assert [row["epoch"] for row in monitor.history] == [-1, 0, 2]
    assert monitor.seen == [-1, 0, 2]  # what the failed measurement did to the monitor itself is undone
    assert {epoch: row["failing/one"] for epoch, row in rows.items()} == {-1: "1.0", 0: "1.0", 2: "1.0"}
    assert same_weights(ranks, unmonitored[1])


class Greedy(Monitor):
    """Asks for more memory than there is, for real, in epoch 1."""

    def measure(self, view, epoch):
        return {"one": float(torch.empty(2**50 if epoch == 1 else 1).numel() > 0)}


def test_a_monitor_that_runs_out_of_memory_costs_its_numbers(tmp_path, unmonitored):
    monitor = Greedy("greedy", on_error="warn")
    ranks, _ = train(tmp_path, monitor)
    (line,) = warnings_of(tmp_path)
    assert line.startswith("greedy: no values in epoch 1, the training continues (RuntimeError: ")
    assert "allocate memory" in line
    assert [row["epoch"] for row in monitor.history] == [-1, 0, 2]
    assert same_weights(ranks, unmonitored[1])


def test_an_error_before_the_training_or_in_a_dry_run_costs_a_line_too(tmp_path):
    _, rows = train(tmp_path, Failing("before", epochs=(-1,), on_error="warn"))
    assert sorted(rows) == [0, 1, 2]  # and no row of epoch -1 without a value
    train(tmp_path, Failing("before", epochs=(-1, 0), on_error="warn"), fast_dev_run=True)
    assert [line.split(",")[0] for line in warnings_of(tmp_path)] == [
        "failing: no values in epoch -1", "failing: no values in epoch -1", "failing: no values in epoch 0"
    ]  # fmt: skip


def test_by_default_an_error_ends_the_training(tmp_path):
    with pytest.raises(MemoryError, match="^boom$"):
        train(tmp_path, Failing("after", MemoryError("boom")))


@pytest.mark.parametrize("devices", [1, 2])
def test_an_error_in_the_last_epoch_costs_neither_its_checkpoint_nor_the_figures_of_others(tmp_path, devices):
    failing = Failing("between", ranks=(devices - 1,), epochs=(EPOCHS - 1,))
    saving = ModelCheckpoint(tmp_path / "saved", "last", enable_version_counter=False, save_on_train_epoch_end=True)
    with pytest.raises(RuntimeError if devices == 1 else ProcessRaisedException, match="boom"):
        train_deadline(tmp_path, MONITORS["gates"](), failing, saving, devices=devices, enable_checkpointing=True)
    assert torch.load(tmp_path / "saved" / "last.ckpt", weights_only=True)["epoch"] == EPOCHS - 1
    # Lightning tells the callbacks of forked ranks nothing of an error, those of launched ones it does.
    assert devices == 2 or list((tmp_path / "figures").glob("gates*.png"))


def test_who_stops_a_training_by_hand_stops_it(tmp_path):
    with pytest.raises(SystemExit):  # Lightning's, for a KeyboardInterrupt
        train(tmp_path, Failing("after", KeyboardInterrupt(), on_error="warn"))


@pytest.mark.parametrize("name", MONITORS)
def test_every_monitor_refuses_other_words_than_raise_and_warn(name):
    with pytest.raises(ValueError, match=r"^on_error is 'ignore'; expected raise or warn$"):
        MONITORS[name](on_error="ignore")
    assert MONITORS[name]().on_error == "raise"


class Poison(pl.Callback):
    """Before the monitors: makes one weight NaN while they measure epoch 1."""

    def on_train_epoch_end(self, trainer, pl_module):
        weight = pl_module.model.conv.weight.data
        if trainer.current_epoch == 1:
            self.healthy = weight.clone()
            weight[0, 0, 0, 0] = torch.nan

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 2:
            pl_module.model.conv.weight.data.copy_(self.healthy)


LAYERS = {"gates": ":relu#0", "discarding": "conv", "knowledge": "conv", "components": "conv"}


@pytest.fixture
def short(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shorten(monkeypatch)


@pytest.mark.parametrize("name", MONITORS)
def test_activations_that_are_nan_are_an_error_that_names_the_layer(tmp_path, name, short):
    """And once the network is well again, so are the numbers."""
    monitor = MONITORS[name](on_error="warn")
    train(tmp_path, Poison(), monitor)
    (line,) = warnings_of(tmp_path)
    assert line.startswith(f"{name}: no values in epoch 1, the training continues (ValueError: ")
    assert repr(LAYERS[name]) in line
    assert [row["epoch"] for row in monitor.history] == [-1, 0, 2]
    assert sum(value == value for value in monitor.history[-1].values()) > 1


@pytest.mark.parametrize("on_error", ["raise", "warn"])
def test_a_figure_that_cannot_be_drawn_costs_the_figure(tmp_path, monkeypatch, on_error):
    def draw(*args):
        raise IndexError("no axis")

    monkeypatch.setattr("netprism.figures.gating_entropy.draw", draw)
    monitor = MONITORS["gates"](on_error=on_error)
    if on_error == "raise":
        with pytest.raises(IndexError, match="no axis"):
            train(tmp_path, monitor)
    else:
        _, rows = train(tmp_path, monitor)
        assert warnings_of(tmp_path) == ["gates: no figures (IndexError: no axis)"]
        assert sorted(rows) == [-1, 0, 1, 2]


# -- two processes


@pytest.mark.parametrize("where", PLACES)
def test_with_warn_an_error_on_one_rank_costs_all_ranks_the_row(tmp_path, unmonitored, where):
    ranks, rows = train_deadline(tmp_path, Failing(where, ranks=(1,), on_error="warn"))
    (line,) = warnings_of(tmp_path)
    assert line == "failing: no values in epoch 1, the training continues (process 1: RuntimeError: boom)"
    for rank in ranks:
        assert [row["epoch"] for row in rank["history"]] == [-1, 0, 2]
        assert rank["seen"] == [[-1, 0, 2]]
    assert sorted(rows) == [-1, 0, 2]
    assert same_weights(ranks, unmonitored[2])


def test_an_error_on_both_ranks_is_said_once(tmp_path):
    train_deadline(tmp_path, Failing("between", ranks=(0, 1), on_error="warn"))
    assert warnings_of(tmp_path) == ["failing: no values in epoch 1, the training continues (RuntimeError: boom)"]


class Telling(Failing):
    """Writes down the error with which a rank leaves."""

    def on_train_epoch_end(self, trainer, pl_module):
        try:
            super().on_train_epoch_end(trainer, pl_module)
        except Exception as error:
            Path(trainer.default_root_dir, str(trainer.global_rank)).write_text(f"{type(error).__name__}: {error}")
            raise


@pytest.mark.parametrize("where", PLACES)
def test_by_default_an_error_on_one_rank_ends_both_and_is_named_by_both(tmp_path, where):
    with pytest.raises(ProcessRaisedException, match="RuntimeError: boom"):
        train_deadline(tmp_path, Telling(where, ranks=(1,)))
    assert (tmp_path / "0").read_text() == "RemoteRankError: process 1: RuntimeError: boom"
    assert (tmp_path / "1").read_text() == "RuntimeError: boom"


class Unpack:
    """Fails on the last rank, in its n-th call."""

    def __init__(self, number):
        self.number, self.calls = number, 0

    def __call__(self, batch):
        self.calls += 1
        if self.calls == self.number and torch.distributed.get_rank() == 1:
            raise OSError("the disk is gone")
        return batch[0], batch[1]


@pytest.mark.parametrize("name", MONITORS)
@pytest.mark.parametrize("number", [1, 4])
def test_a_real_monitor_that_fails_on_one_rank_goes_on_with_both(tmp_path, unmonitored, short, name, number):
    ranks, rows = train_deadline(tmp_path, MONITORS[name](unpack=Unpack(number), on_error="warn"))
    (line,) = warnings_of(tmp_path)
    assert "the training continues (process 1: " in line
    assert "OSError: the disk is gone" in line
    assert ranks[0]["keys"] == ranks[1]["keys"]
    assert str(ranks[0]["history"]) == str(ranks[1]["history"])
    assert len(ranks[0]["history"]) == EPOCHS
    assert sorted(epoch for epoch in rows) == [row["epoch"] for row in ranks[0]["history"]]
    assert same_weights(ranks, unmonitored[2])


def test_what_a_rank_has_distilled_alone_is_undone(tmp_path, short):
    """The other one fails after its steps, in the second measurement."""
    ranks, _ = train_deadline(tmp_path, MONITORS["components"](unpack=Unpack(9), on_error="warn"))
    assert [row["epoch"] for row in ranks[0]["history"]] == [-1, 1, 2]
    for rank in ranks:
        start, failed, *others = rank["states"]
        assert start == failed
        assert len({failed, *others}) == 3
    assert ranks[0]["states"] == ranks[1]["states"]


@pytest.mark.filterwarnings("ignore:gates. H without sampling")
def test_a_network_that_does_not_run_in_train_mode_on_one_rank_is_measured_without_on_both(tmp_path, short):
    class Fussy(Net):
        def forward(self, x):
            if self.training and torch.distributed.get_rank() == 1 and len(x) == 1:
                raise KeyError("targets")
            return super().forward(x)["logits"]

    class FussyModule(Module):
        def __init__(self):
            super().__init__()
            self.model = Fussy(dropout=0.5)

    ranks, _ = train_deadline(tmp_path, MONITORS["gates"](), module=FussyModule)
    assert str(ranks[0]["history"]) == str(ranks[1]["history"])
    assert len(ranks[0]["history"]) == EPOCHS + 1

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from netprism.cli.errors import users_error
from netprism.cli.lightning_cli import SafeCheckpointIO
from netprism.cli.main import experiment_of, experiments, find_config, main, run
from netprism.datamodules import Digits
from netprism.runs.folder import RUN, RUNS, choose_folder

pytestmark = [
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),  # Lightning's calls
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),  # the images are in memory
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval"),  # one batch an epoch
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* not empty"),  # of the run that goes on
]
SMALL = ["--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1"]
MONITORED, UNMONITORED = "--trainer.callbacks.num_images=20", "--trainer.callbacks=null"


@pytest.fixture(autouse=True)
def nothing_set(tmp_path, monkeypatch):
    """An empty current folder, no scheduler and no W&B."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for name in (RUN, RUNS, "SLURM_JOB_ID", "TORCHELASTIC_RUN_ID", "NETPRISM_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)


def train(*args, epochs=2, monitor=UNMONITORED):
    """A training of the smallest experiment; returns its run folder."""
    return Path(
        run(
            "fit", ["--config=gates/digits_mlp", f"--trainer.max_epochs={epochs}", *SMALL, monitor, *args]
        ).trainer.log_dir
    )


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return {int(row["epoch"]): row for row in csv.DictReader(file)}


def said(capsys, *args, code):
    """The one line that a wrong command ends in."""
    with pytest.raises(SystemExit) as caught:
        main(list(args))
    assert caught.value.code == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("netprism: ")]
    assert len(lines) == 1
    assert lines[0].startswith("netprism: error: ")
    return lines[0]


@pytest.mark.parametrize("args", [(), ("--help",), ("experiments",)])
def test_help_answers_at_once_and_lists_the_experiments(args):
    begin = time.monotonic()
    code = f"import sys; from netprism.cli.main import main; main({list(args)}); assert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert time.monotonic() - begin < 3
    for name, file in experiments().items():
        assert f"  {name} " in result.stdout
        assert file.read_text().partition("\n")[0].strip("# ") in result.stdout


def test_long_waits_are_announced_before_they_begin():
    """The line is there before the imports: with torch not to be found, they fail after it."""
    start = "main(['fit', '--config', 'quickstart'])"
    code = f"import sys; sys.modules['torch'] = None; from netprism.cli.main import main; {start}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stderr.startswith("netprism fit: loading torch and Lightning")
    assert "ModuleNotFoundError" in result.stderr


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (
            ["fitt"],
            [
                "'fitt'",
                "fit, validate, test, predict, analyze, layers, study, slurm, compress, report, compare, experiments",
            ],
        ),
        (["fit", "--config", "quickstrat"], ["'quickstrat'", "close: quickstart;", "gates/mnist_lenet"]),
        (["fit", "--config", "resnet20"], ["close: all/cifar10_resnet20, classify/cifar10_resnet20,"]),
        (["fit", "--config", "quickstart", "--trainer.max_epoch=3"], ["--trainer.max_epoch=3", "--trainer.max_epochs"]),
        (["fit", "--config", "quickstart", "--trainer.max_epochs=abc"], ["trainer.max_epochs", "abc"]),
        (["fit", "--config", "quickstart", "--data.init_args.bach_size=3"], ["bach_size"]),
        (["fit", "--config", "quickstart", "--data=Cifar"], ["Cifar"]),
        (["fit"], ["required: fit.data, fit.model"]),
    ],
)
def test_a_wrong_argument_is_named_in_one_line(args, parts, capsys, tmp_path):
    line = said(capsys, *args, code=2)
    assert all(part in line for part in parts), line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "part"),
    [
        ("--data.batch_size=0", "batch_size is 0"),
        ("--trainer.callbacks.kinds=[rleu]", "'rleu'"),
        ("--trainer.strategy=dpd", "dpd"),
        ("--ckpt_path=nowhere.ckpt", "'nowhere.ckpt'"),
        ("--ckpt_path=best", "'best' of experiment 'quickstart'"),
    ],
)
def test_an_error_of_the_users_is_one_line_and_status_1(option, part, capsys, tmp_path):
    assert part in said(capsys, "fit", "--config=quickstart", option, code=1)
    assert not list(tmp_path.iterdir())


def test_where_it_came_from_is_told_on_request(monkeypatch):
    monkeypatch.setenv("NETPRISM_TRACEBACK", "1")
    with pytest.raises(ValueError, match="batch_size is 0"):
        main(["fit", "--config=quickstart", "--data.batch_size=0"])


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(Digits, "read", lambda self, split: [].index("a bug in a file that is not netprism's"))
    with pytest.raises(ValueError, match="not in list"):
        main(["fit", "--config=quickstart", "--trainer.fast_dev_run=1"])


def test_only_errors_that_netprism_raises_are_the_users():
    def caught(function, *args):
        with pytest.raises(Exception) as info:  # noqa: PT011
            function(*args)
        return info.value

    own = caught(choose_folder, "quickstart", "nowhere.ckpt")
    assert users_error(own) is own
    wrapped = RuntimeError("a library met an error")
    wrapped.__cause__ = own
    assert users_error(wrapped) is own
    assert users_error(caught(int, "a")) is None
    assert users_error(caught({}.__getitem__, "a")) is None


def test_configs_are_named_after_the_experiment(tmp_path):
    assert experiment_of(find_config("gates/digits_mlp")) == "gates/digits_mlp"
    assert experiment_of(Path("mine/wide.yaml")) == "wide"
    again = tmp_path / "runs" / "gates" / "digits_mlp" / "20260101-000000-abcdef" / "config.yaml"
    assert experiment_of(again) == "gates/digits_mlp"


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_print_config_is_for_any_run_and_makes_none(command, capsys, tmp_path):
    with pytest.raises(SystemExit) as caught:
        main([command, "-c", "quickstart", "--trainer.limit_train_batches=1", "--print_config"])
    assert caught.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["trainer"]["default_root_dir"] == f"${{oc.env:{RUN}}}"
    assert config["trainer"]["limit_train_batches"] == 1
    assert type(config["trainer"]["limit_train_batches"]) is int, "1 is a batch, 1.0 would be all of them"
    assert config["model"]["init_args"]["net"]["init_args"]["depth"] == 8
    assert not list(tmp_path.iterdir())


def test_a_run_leaves_what_it_takes_to_understand_and_repeat_it(tmp_path, capsys):
    folder = train(monitor=MONITORED)
    assert folder.relative_to(tmp_path / "runs" / "gates" / "digits_mlp")
    names = {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.suffix != ".png"
    }
    checkpoints = {"checkpoints/last.ckpt", "checkpoints/best.ckpt"}
    assert names == {"config.yaml", "git.txt", "metrics.csv", "finished.txt", "report.html", ".lock", *checkpoints}
    assert "torch 2" in (folder / "git.txt").read_text()
    assert list(rows(folder)) == [-1, 0, 1]
    assert "gates/entropy" in capsys.readouterr().out

    again = Path(run("fit", ["--config", str(folder / "config.yaml")]).trainer.log_dir)
    assert again != folder
    assert again.parent == folder.parent
    assert (again / "config.yaml").read_text() == (folder / "config.yaml").read_text()
    assert rows(again) == rows(folder)


def test_last_goes_on_where_the_run_stopped(tmp_path):
    folder = train()
    before = rows(folder)
    assert train("--ckpt_path", "last", epochs=4) == folder
    after = rows(folder)
    assert list(after) == [0, 1, 2, 3]
    assert all(after[epoch] == before[epoch] for epoch in before)
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 3
    assert not list(folder.rglob("*.part"))


def test_best_is_the_best_epoch_and_can_be_tested_without_a_trace(tmp_path, capsys):
    folder = train(epochs=3)
    curve = {epoch: float(row["val/accuracy"]) for epoch, row in rows(folder).items() if row["val/accuracy"]}
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["epoch"] == max(curve, key=curve.get)
    before = sorted(tmp_path.rglob("*"))
    tested = run("test", ["--config=gates/digits_mlp", "--ckpt_path=best", "--trainer.limit_test_batches=1"])
    assert tested.trainer.callback_metrics["test/accuracy"] == pytest.approx(curve[best["epoch"]])
    assert sorted(tmp_path.rglob("*")) == before


def test_an_older_run_is_not_written_over(capsys, monkeypatch):
    folder = train(epochs=1)
    before = (folder / "metrics.csv").read_text()
    monkeypatch.setenv(RUN, str(folder))
    assert f"{folder.relative_to(Path.cwd())} has a run" in said(capsys, "fit", "--config=gates/digits_mlp", code=1)
    assert (folder / "metrics.csv").read_text() == before


def test_a_place_that_cannot_be_written_is_found_before_the_training(capsys, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv(RUNS, "file")
    assert "run folder file/quickstart/" in said(capsys, "fit", "--config=quickstart", code=1)


def test_a_checkpoint_is_never_half_written(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    SafeCheckpointIO().save_checkpoint({"epoch": 1}, path)

    def interrupted(file):
        os.ftruncate(file, 4)
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        SafeCheckpointIO().save_checkpoint({"epoch": 2}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 1}


def test_classes_have_short_names():
    names = ["--model=Classifier", "--model.net=LeNet5", "--model.net.image_size=32", "--data=Digits"]
    assert run("fit", [*names, "--trainer.fast_dev_run=1"]).trainer.global_step == 1


def test_a_run_that_was_stopped_before_its_first_checkpoint_starts_afresh(tmp_path, monkeypatch):
    folder = tmp_path / "runs" / "gates" / "digits_mlp" / "mine"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("epoch,step,gates/entropy\n-1,0,1.0\n")
    monkeypatch.setenv(RUN, str(folder))
    assert "--ckpt_path last" in said_in_run()
    train("--ckpt_path=last", epochs=1, monitor=MONITORED)
    assert list(rows(folder)) == [-1, 0]
    assert float(rows(folder)[-1]["gates/entropy"]) != 1.0


def said_in_run():
    """The error of a training into a folder that has one, without `--ckpt_path`."""
    with pytest.raises(FileExistsError) as caught:
        train(epochs=1)
    return str(caught.value)


def test_two_processes_write_one_run_with_the_numbers_of_one_process(tmp_path):
    options = [
        "--config=quickstart",
        "--trainer.max_epochs=1",
        *SMALL,
        "--trainer.callbacks.num_images=101",
        "--data.image_size=8",
    ]
    ddp = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp"]
    command = [sys.executable, "-m", "netprism", "fit", *options, *ddp]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    (folder,) = (tmp_path / "runs" / "quickstart").iterdir()
    assert result.stdout.count("best.ckpt, last.ckpt") == 1, "one summary"
    together = rows(folder)
    assert list(together) == [-1, 0]
    alone = rows(Path(run("fit", options).trainer.log_dir))
    monitored = [key for key in alone[-1] if key.startswith("gates/") and alone[-1][key]]
    assert len(monitored) > 70
    for key in monitored:
        assert float(together[-1][key]) == pytest.approx(float(alone[-1][key]), abs=1e-6), key

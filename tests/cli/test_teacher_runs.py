import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from jsonargparse import Namespace

from netprism.cli.keys import network_key
from netprism.cli.lightning_cli import ConfigReader
from netprism.cli.main import run
from netprism.cli.teacher_runs import resolve_teachers
from netprism.nets import ResNet
from netprism.runs.folder import FINISHED, RUN, RUNS
from netprism.runs.teachers import UNTRAINED

pytestmark = [
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),  # Lightning's calls
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval"),  # one batch an epoch
]
EXPERIMENT = "classify/digits_resnet8"


@pytest.fixture(autouse=True)
def no_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for name in (RUN, RUNS, "WORLD_SIZE", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)


def finished_run(number=1, width=16, **config):
    folder = Path("runs", EXPERIMENT, str(number))
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"state_dict": ResNet(depth=8, in_channels=1).state_dict()}, folder / "checkpoints" / "best.ckpt")
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": {"width": width}, **config}))
    (folder / FINISHED).touch()
    return str(folder / "checkpoints" / "best.ckpt")


def key_of(experiment, seed):
    assert experiment == EXPERIMENT
    return network_key({"model": {"width": 16}} | ({} if seed is None else {"seed_everything": seed}))


@pytest.fixture
def trainings(monkeypatch):
    """The commands that would have trained; each leaves a finished run."""
    commands = []

    def train(command, env):
        assert RUN not in env, "the teacher would be trained into the folder of the run that looks into it"
        commands.append(command)
        seeds = [int(arg.split("=")[1]) for arg in command if arg.startswith("--seed_everything=")]
        finished_run(len(commands), **({"seed_everything": seeds[0]} if seeds else {}))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", train)
    return commands


def config(*teachers, dry=False, root=None):
    def node(options):
        init_args = {"experiment": None, "checkpoint": None, "net": None, "weights": None} | options
        return Namespace(class_path="netprism.runs.teachers.trained", init_args=Namespace(init_args))

    nodes = [node(options) for options in teachers]
    return Namespace(
        model=Namespace(class_path="X", init_args=Namespace(teachers=nodes, teacher=None, layer="layer1")),
        data=Namespace(class_path="Y", init_args=Namespace(root=root)),
        trainer=Namespace(fast_dev_run=dry, callbacks=[{"class_path": "Z", "init_args": {"layers": ["a"]}}]),
    )


def checkpoints(named):
    return [node.init_args.checkpoint for node in named.model.init_args.teachers]


def test_the_newest_run_is_written_into_the_config(trainings):
    finished_run(1)
    newest = finished_run(2)
    named = config(
        {"experiment": EXPERIMENT}, {"experiment": EXPERIMENT, "checkpoint": "own.ckpt"}, {"net": "resnet18"}
    )
    resolve_teachers(named, may_train=True, key_of=key_of)
    assert checkpoints(named) == [newest, "own.ckpt", None]
    assert trainings == []


def test_a_run_with_other_options_is_not_taken(trainings):
    finished_run(1)
    named = config({"experiment": EXPERIMENT})
    finished_run(2, width=3)
    resolve_teachers(named, may_train=True, key_of=key_of)
    assert checkpoints(named) == [f"runs/{EXPERIMENT}/1/checkpoints/best.ckpt"]


def test_a_run_with_other_options_is_named_where_there_is_no_other(trainings):
    finished_run(2, width=3)
    with pytest.raises(FileNotFoundError, match=rf"runs/{EXPERIMENT}/2 had other options: .*make train EXP="):
        resolve_teachers(config({"experiment": EXPERIMENT}), may_train=False, key_of=key_of)


def test_a_missing_one_is_trained_once_with_the_same_data(trainings, monkeypatch):
    monkeypatch.setenv(RUN, "runs/components/1")
    named = config({"experiment": EXPERIMENT}, {"experiment": EXPERIMENT}, root="/data")
    resolve_teachers(named, may_train=True, key_of=key_of)
    assert trainings == [[sys.executable, "-m", "netprism", "fit", "--config", EXPERIMENT, "--data.root=/data"]]
    assert checkpoints(named) == [f"runs/{EXPERIMENT}/1/checkpoints/best.ckpt"] * 2


def test_two_networks_of_one_experiment_differ_in_their_seed(trainings):
    named = config(*({"experiment": EXPERIMENT, "seed": seed} for seed in (None, 1, 2, 1)))
    resolve_teachers(named, may_train=True, key_of=key_of)
    assert [command[-1] for command in trainings] == [EXPERIMENT, "--seed_everything=1", "--seed_everything=2"]
    assert checkpoints(named) == [f"runs/{EXPERIMENT}/{number}/checkpoints/best.ckpt" for number in (1, 2, 3, 2)]
    with pytest.raises(FileNotFoundError, match=r"with seed 3 as .* ARGS=\"--seed_everything 3\" makes one"):
        resolve_teachers(config({"experiment": EXPERIMENT, "seed": 3}), may_train=False, key_of=key_of)


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "SLURM_NTASKS"])
def test_one_of_several_processes_does_not_train(trainings, monkeypatch, variable):
    monkeypatch.setenv(variable, "2")
    with pytest.raises(FileNotFoundError, match=f"make train EXP={EXPERIMENT}"):
        resolve_teachers(config({"experiment": EXPERIMENT}), may_train=True, key_of=key_of)
    assert trainings == []


def test_other_commands_do_not_train(trainings):
    with pytest.raises(FileNotFoundError, match=f"make train EXP={EXPERIMENT}"):
        resolve_teachers(config({"experiment": EXPERIMENT}), may_train=False, key_of=key_of)


def test_a_training_that_fails_is_said(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: SimpleNamespace(returncode=3))
    with pytest.raises(ValueError, match=f"training {EXPERIMENT} failed with status 3"):
        resolve_teachers(config({"experiment": EXPERIMENT}), may_train=True, key_of=key_of)


def test_a_dry_run_looks_into_an_untrained_one(trainings):
    named = config({"experiment": EXPERIMENT}, dry=True)
    resolve_teachers(named, may_train=True, key_of=key_of)
    assert checkpoints(named) == [UNTRAINED]
    assert trainings == []


def test_a_training_through_the_command_line_is_finished_and_can_be_looked_into():
    small = ["--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1", "--trainer.max_epochs=1"]
    folder = Path(run("fit", [f"--config={EXPERIMENT}", *small]).trainer.log_dir)
    assert (folder / FINISHED).exists()
    content = yaml.safe_load((folder / "config.yaml").read_text())
    assert content["model"]["init_args"]["net"]["class_path"] == "netprism.nets.ResNet"
    reader = ConfigReader()
    with pytest.raises(FileNotFoundError, match="had other options"):
        resolve_teachers(config({"experiment": EXPERIMENT}), may_train=False, key_of=reader.network_key)
    content["trainer"] |= {"limit_train_batches": None, "max_epochs": 10, "devices": 4}
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    named = config({"experiment": EXPERIMENT})
    resolve_teachers(named, may_train=False, key_of=reader.network_key)
    assert checkpoints(named)[0].startswith(f"runs/{EXPERIMENT}/")

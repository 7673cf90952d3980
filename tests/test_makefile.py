"""The commands of the Makefile, in a copy of what they need, with a stand-in for the slow parts."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


@pytest.fixture
def checkout(tmp_path):
    """A checkout without .venv, whose `python3 -m venv` makes a python that writes down what it is asked for."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("configs", "netprism"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "pyproject.toml").touch()
    recorder = tmp_path / "recorder"
    recorder.write_text(
        "#!/bin/sh\n"
        'echo "$@" >> "$RECORD"\n'
        'echo "$NETPRISM_RUN $OMP_NUM_THREADS" > "$RECORD.environment"\n'
        'case "$*" in *"$FAIL"*) exit 3;; esac\n'
    )
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\n"
        'if [ "$2" = venv ]; then mkdir -p .venv/bin && cp recorder .venv/bin/python\n'
        f'else exec {sys.executable} "$@"; fi\n'
    )
    for script in (recorder, python):
        script.chmod(0o755)
    return tmp_path


def make(checkout, *args, fail="nothing fails"):
    variables = {"RECORD": str(checkout / "record"), "FAIL": fail, "PYTHONPATH": ""}
    environment = {**os.environ, **variables}
    for name in ("EXP", "ARGS", "RUN", "MAKEFLAGS", "MAKELEVEL", "NETPRISM_RUN", "OMP_NUM_THREADS"):
        environment.pop(name, None)
    command = ["make", f"PYTHON={checkout}/python", *args]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=60)


def asked(checkout):
    record = checkout / "record"
    return record.read_text().splitlines() if record.exists() else []


def test_make_alone_explains_every_command(checkout):
    said = make(checkout).stdout
    for target in ("setup", "experiments", "train", "slurm", "resume", "test", "test-slurm", "check", "bench", "clean"):
        assert f"make {target}" in said
    assert not asked(checkout)


@pytest.mark.parametrize("args", [["experiments"], ["train"], ["slurm"]])
def test_experiments_are_listed_without_a_setup(checkout, args):
    result = make(checkout, *args)
    assert result.returncode == 0
    assert "gates/cifar10_resnet20" in result.stdout
    assert not (checkout / ".venv").exists()


def test_an_unknown_experiment_is_refused_before_the_setup(checkout):
    result = make(checkout, "train", "EXP=gates/nope")
    assert result.returncode != 0
    assert result.stderr.startswith("netprism: error: no file and no experiment 'gates/nope'; ")
    assert "gates/cifar10_resnet20" in result.stderr
    assert not (checkout / ".venv").exists()


def test_train_sets_up_once_and_trains(checkout):
    first = make(checkout, "train", "EXP=quickstart", "ARGS=--trainer.max_epochs 3")
    assert first.returncode == 0
    assert first.stdout.count("setting up .venv") == 1
    assert make(checkout, "train", "EXP=quickstart").stdout == ""
    install, train, again = asked(checkout)
    assert install.startswith("-m pip install --quiet")
    assert train == "-m netprism fit --config quickstart --trainer.max_epochs 3"
    assert again == "-m netprism fit --config quickstart"


def test_slurm_hands_its_options_on(checkout):
    options = ["NODES=2", "GPUS=8", "TIME=1-12:00:00", "PARTITION=gpu", "ARGS=--trainer.max_epochs 3"]
    make(checkout, "slurm", "EXP=quickstart", *options)
    make(checkout, "slurm", "EXP=quickstart", "DRY=1", "GPUS=0", "TASKS=2", "CPUS=4", "SIGNAL=600")
    submitted, shown = asked(checkout)[1:]
    wanted = "--nodes=2 --gpus=8 --time=1-12:00:00 --partition=gpu --trainer.max_epochs 3"
    assert submitted == f"-m netprism slurm --config quickstart {wanted}"
    assert shown == "-m netprism slurm --config quickstart --gpus=0 --tasks=2 --cpus=4 --signal=600 --dry-run"


def test_a_failed_install_is_tried_again(checkout):
    assert make(checkout, "setup", fail="pip install").returncode != 0
    assert make(checkout, "setup").returncode == 0
    assert "setting up" not in make(checkout, "setup").stdout
    assert len(asked(checkout)) == 2


def test_failing_tests_fail_the_command(checkout):
    assert make(checkout, "test", fail="-m pytest").returncode != 0
    assert make(checkout, "test", "ARGS=-k gates").returncode == 0
    assert asked(checkout)[-1] == "-m pytest -n 2 --dist loadfile -k gates"


def test_check_stops_at_the_first_complaint(checkout):
    assert make(checkout, "check", fail="mypy").returncode != 0
    assert [line.split()[1] for line in asked(checkout)[1:]] == ["ruff", "ruff", "mypy"]


def test_resume_names_the_run_and_its_last_checkpoint(checkout):
    (checkout / "runs" / "quickstart" / "1").mkdir(parents=True)
    (checkout / "runs" / "quickstart" / "1" / "config.yaml").touch()
    make(checkout, "resume", "RUN=runs/quickstart/1", "ARGS=--trainer.max_epochs 20")
    wanted = "-m netprism fit --config runs/quickstart/1/config.yaml --ckpt_path last --trainer.max_epochs 20"
    assert asked(checkout)[-1] == wanted
    assert (checkout / "record.environment").read_text().split()[0] == "runs/quickstart/1"


@pytest.mark.parametrize("args", [[], ["RUN=runs/nope"]])
def test_resume_of_no_run_lists_the_runs(checkout, args):
    (checkout / "runs" / "gates" / "digits_mlp" / "1").mkdir(parents=True)
    (checkout / "runs" / "gates" / "digits_mlp" / "1" / "config.yaml").touch()
    result = make(checkout, "resume", *args)
    assert result.returncode == 2
    assert (
        f"no run '{args[0].removeprefix('RUN=') if args else ''}'; there are\n  runs/gates/digits_mlp/1\n"
        in result.stderr
    )
    assert not asked(checkout)


@pytest.mark.parametrize(("target", "option"), [("train", "EXP"), ("slurm", "EXP"), ("resume", "RUN")])
def test_a_name_is_not_run_by_the_shell(checkout, target, option):
    done = make(checkout, target, f"{option}=a b; touch harm; $(touch harm)")
    assert done.returncode == 2
    assert "a b; touch harm" in done.stderr
    assert not (checkout / "harm").exists()


def test_a_run_may_be_in_a_folder_with_a_blank(checkout):
    (checkout / "a b").mkdir()
    (checkout / "a b" / "config.yaml").touch()
    assert make(checkout, "resume", "RUN=a b").returncode == 0
    assert "fit --config a b/config.yaml --ckpt_path last" in (checkout / "record").read_text()


def test_tests_run_on_one_thread_each(checkout):
    make(checkout, "test")
    assert (checkout / "record.environment").read_text().split() == ["1"]


def test_clean_keeps_what_cost_time(checkout):
    for name in ("runs/a/metrics.csv", "data/digits", "build/x", "dist/x", "netprism/__pycache__/x"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).touch()
    make(checkout, "clean")
    left = {path.name for path in checkout.iterdir()}
    assert {"runs", "data", "netprism"} <= left
    assert not {"build", "dist"} & left
    assert not list(checkout.rglob("__pycache__"))

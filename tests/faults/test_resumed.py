"""What a resumed run knows, keeps and finishes: its best checkpoint, its mark, its figures."""

import functools
import os
import signal
from pathlib import Path

import pytest
import torch
from small_runs import EXPERIMENT, MONITORED, SMALL, environment_of_a_desk, in_child, said, train

from netprism.cli.main import main
from netprism.lightning_modules import Classifier
from netprism.runs.folder import FINISHED, RUN, RUNS

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* not empty"),  # of the run that is resumed
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval"),  # one batch per epoch
]


@pytest.fixture(autouse=True)
def at_a_desk(tmp_path, monkeypatch):
    environment_of_a_desk(monkeypatch, tmp_path)


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_epoch_2(step, module, batch):
    """Replaces `Classifier.training_step`."""
    return die() if module.current_epoch in (2, 3) else step(module, batch)


def die_before(rename, name, part, target):
    """Replaces `Path.replace`: the process dies before a file of this name takes its place."""
    return die() if Path(target).name == name else rename(part, target)


KILLS = {
    "in the epoch after": lambda: setattr(
        Classifier,
        "training_step",
        functools.partialmethod(functools.partial(die_in_epoch_2, Classifier.training_step)),
    ),
    "between best.ckpt and last.ckpt": lambda: setattr(
        Path, "replace", functools.partialmethod(functools.partial(die_before, Path.replace, "last.ckpt"))
    ),
}


def epoch_of_best(folder):
    return torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["epoch"]


# The training loss falls: its largest value is that of epoch 0.
@pytest.mark.parametrize(("kill", "mode"), [*((kill, "max") for kill in KILLS), (list(KILLS)[-1], "min")])
def test_the_best_checkpoint_is_that_of_an_uninterrupted_training(kill, mode):
    best = ["--best_checkpoint.monitor=train/loss", f"--best_checkpoint.mode={mode}"]
    expected = epoch_of_best(train(*best, epochs=3))
    folder = train(*best, epochs=1)

    def resume_and_be_killed():
        KILLS[kill]()
        train("--ckpt_path=last", *best, epochs=3)

    assert in_child(resume_and_be_killed) == -signal.SIGKILL
    assert train("--ckpt_path=last", *best, epochs=3) == folder
    assert epoch_of_best(folder) == expected == {"min": 2, "max": 0}[mode]


def test_a_resume_that_fails_leaves_the_run_finished_and_one_that_trains_does_not(capsys):
    folder = train(epochs=3)
    said(capsys, "fit", f"--config={EXPERIMENT}", *SMALL, "--ckpt_path=last", "--trainer.max_epochs=1")
    assert (folder / FINISHED).is_file()

    def be_killed():
        KILLS["in the epoch after"]()
        train("--ckpt_path=last", epochs=4)

    assert in_child(be_killed) == -signal.SIGKILL
    assert not (folder / FINISHED).exists()


def test_a_run_without_its_last_checkpoint_is_not_trained_over(capsys, monkeypatch):
    folder = train(epochs=2)
    (folder / "checkpoints" / "last.ckpt").unlink()
    best, curves = (folder / "checkpoints" / "best.ckpt").read_bytes(), (folder / "metrics.csv").read_bytes()
    monkeypatch.setenv(RUN, str(folder))
    line = said(capsys, "fit", f"--config={EXPERIMENT}", *SMALL, "--trainer.callbacks=null", "--ckpt_path=last")
    assert "no checkpoint 'last'" in line
    assert "best.ckpt" in line
    assert (folder / "checkpoints" / "best.ckpt").read_bytes() == best
    assert (folder / "metrics.csv").read_bytes() == curves


def test_a_run_killed_after_its_last_checkpoint_gets_its_figures_on_resume(capsys):
    folder = train(epochs=1, monitor=MONITORED)
    figures = sorted(path.name for path in (folder / "figures").iterdir())
    assert "gates_curves.png" in figures
    for path in (folder / "figures").iterdir():
        path.unlink()
    (folder / FINISHED).unlink()
    capsys.readouterr()
    assert train("--ckpt_path=last", epochs=1, monitor=MONITORED) == folder
    assert sorted(path.name for path in (folder / "figures").iterdir()) == figures
    assert (folder / FINISHED).is_file()
    assert "gates/entropy" in capsys.readouterr().out  # the table, too


def test_a_folder_of_any_name_has_all_files_of_its_run(tmp_path, monkeypatch):
    name = "exp: one x{y} 50%"
    monkeypatch.setenv(RUNS, str(tmp_path / name))
    main(["fit", f"--config={EXPERIMENT}", "--trainer.max_epochs=1", *SMALL, MONITORED])
    (curves,) = tmp_path.rglob("metrics.csv")
    folder = curves.parent
    assert folder.parents[2] == tmp_path / name
    assert (folder / "figures" / "gates_curves.png").is_file()
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("ckpt", [(), ("--ckpt_path=last",)])
def test_predict(ckpt):
    train(epochs=1)
    main(["predict", f"--config={EXPERIMENT}", *SMALL, "--trainer.limit_predict_batches=2", *ckpt])

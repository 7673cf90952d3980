"""Studies from the command line: what is trained, shared, tried again, and what remains when everything is killed."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from studies_files import EPOCHS, fake_fit, fake_points

from netprism.cli.main import experiments, main
from netprism.cli.study import Pool, collect, overview, plan
from netprism.studies.points import read_point
from netprism.studies.study import Study

pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
VALUES = [1.0, 0.1, 1 / 3, 7.0, 2.5, 1e-3]
FAKE = Study("fake", "Fake", experiment="fake", grid={"value": VALUES}, read={"total": "val/sum"})


def study_in(folder):
    """The whole study, two runs at a time, in a forked process of its own."""

    def work():
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        points = fake_points(Path("."), VALUES)
        Pool(FAKE, points, fake_fit, jobs=2).run()
        collect(FAKE, points)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def finish(process):
    process.join(60)
    assert process.exitcode == 0, process.kill()


@pytest.fixture
def desk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("WANDB_RUN_GROUP", "")  # the pool sets it
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def epochs_trained(desk):
    return sum(len(file.read_text().split()) for file in desk.glob("runs/fake/*/epochs.txt"))


def test_killed_at_random_moments_the_table_is_the_same_to_the_bit(desk):
    (desk / "undisturbed").mkdir()
    finish(study_in(desk / "undisturbed"))
    chance, kills = random.Random(0), 0
    while kills < 4:
        process = study_in(desk)
        while not list(desk.glob("runs/fake/*/epochs.txt")) and process.is_alive():
            time.sleep(0.01)
        time.sleep(chance.uniform(0.05, 0.3))
        process.kill()
        process.join()
        kills += 1
        trained = epochs_trained(desk)
        time.sleep(0.2)
        assert epochs_trained(desk) <= trained + 2, "a run outlives its study"
    finish(study_in(desk))
    for name in ("table.csv", "runs.csv", "study.md"):
        one, other = (folder / "studies" / "fake" / name for folder in (desk, desk / "undisturbed"))
        assert one.read_bytes() == other.read_bytes()
    assert epochs_trained(desk) <= len(VALUES) * EPOCHS + 2 * kills, "a kill loses at most the epochs at work"


def test_a_failed_run_stops_no_other_and_is_tried_again_when_asked(desk, capsys):
    points = fake_points(desk, VALUES, fails=[7.0])
    Pool(FAKE, points, fake_fit, 2).run()
    assert [point.state() for point in points] == ["done", "done", "done", "failed", "done", "done"]
    assert points[3].reason() == "value is 7.0; expected another"
    collect(FAKE, points)
    page = (desk / "studies" / "fake" / "study.md").read_text()
    assert "value=7 seed=0: value is 7.0; expected another" in page
    assert "5 of 6 runs" in page
    Pool(FAKE, points, fake_fit, 1).run()
    assert epochs_trained(desk) == 5 * EPOCHS, "neither the failed one nor the others again"
    healed = fake_points(desk, VALUES)
    healed[3].forget()
    Pool(FAKE, healed, fake_fit, 1).run()
    assert all(point.done for point in healed)
    assert "[1/1] value=7 seed=0: done" in capsys.readouterr().out


def test_what_needs_a_failed_run_says_so_and_is_not_tried(desk):
    network = fake_points(desk, [7.0], fails=[7.0])[0]
    (first,) = fake_points(desk, [1.0])
    from dataclasses import replace

    needy = replace(first, key="needy", folder=desk / "runs" / "fake" / "needy", needs=(network.folder,))
    Pool(FAKE, [network, needy], fake_fit, 2).run()
    assert needy.state() == "failed"
    assert needy.reason() == "its network failed: value is 7.0; expected another"


def threads_of_a_run(command, args):
    """In place of a training: notes how many threads torch has, in a row of its own."""
    Path(os.environ["NETPRISM_RUN"], "threads.txt").write_text(str(torch.get_num_threads()))
    fake_fit(command, args)


def test_torch_in_a_run_has_the_threads_of_the_environment_though_it_was_loaded_before(desk, monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    Pool(FAKE, fake_points(desk, [1.0]), threads_of_a_run, 1).run()
    assert [file.read_text() for file in desk.glob("runs/fake/*/threads.txt")] == ["3"]
    assert torch.get_num_threads() == before


def test_a_killed_run_is_named_by_its_signal(desk):
    def dies(command, args):
        os.kill(os.getpid(), signal.SIGKILL)

    (point,) = fake_points(desk, [1.0])
    Pool(FAKE, [point], dies, 1).run()
    assert point.reason() == "killed by SIGKILL, out of memory?"


def test_two_studies_at_once_train_a_run_once(desk):
    both = [study_in(desk) for _ in range(2)]
    for process in both:
        finish(process)
    assert epochs_trained(desk) == len(VALUES) * EPOCHS


def test_a_point_is_read_as_it_was_written(desk):
    (point,) = fake_points(desk, [1.0])
    again = read_point(point.write(desk / "studies"))
    assert (again.key, again.folder, again.setting) == (point.key, point.folder, point.setting)
    assert "1 missing" in overview([again])[0]


REAL = """\
# What is left of an image in a layer
experiment: discarding/decoder_digits
overrides:
  data.train_samples: 48
  trainer.max_epochs: 1
  trainer.callbacks: null
  teacher.data.train_samples: 48
  teacher.trainer.max_epochs: 1
grid: {model.layers: [[layer3], [nothing]]}
read: {mse: "val/mse/*"}
per: [layer]
figure: [{x: layer, y: mse}]
"""


def test_a_study_of_ones_own_trains_networks_first_shares_them_and_names_what_failed(desk, capsys):
    (desk / "mine.yaml").write_text(REAL)
    (desk / "yours.yaml").write_text(REAL.replace("[[layer3], [nothing]]", "[[layer3]]"))
    main(["study", "mine.yaml", "--dry-run"])
    assert "3 runs: 0 done, 0 failed, 0 stopped, 3 missing" in capsys.readouterr().out
    assert not (desk / "runs").exists()
    with pytest.raises(SystemExit):
        main(["study", "mine.yaml"])
    assert "1 of 3 runs failed, RETRY=1 tries them again" in capsys.readouterr().err
    folder = desk / "studies" / "mine"
    assert {"table.csv", "table.md", "runs.csv", "figure.png", "figure.pdf", "study.md"} <= set(os.listdir(folder))
    assert "ResNet has no layer 'nothing'" in (folder / "study.md").read_text()
    main(["study", "yours.yaml"])
    said = capsys.readouterr().out
    assert "2 runs: 2 done" in said
    assert (desk / "studies" / "yours" / "table.csv").read_text().count("\n") == 2


def test_a_wrong_option_is_refused_before_anything_trains(desk, capsys):
    (desk / "mine.yaml").write_text(REAL.replace("max_epochs: 1\n  trainer.c", "max_epoch: 1\n  trainer.c"))
    with pytest.raises(SystemExit) as error:
        main(["study", "mine.yaml"])
    assert error.value.code == 2
    assert "max_epoch" in capsys.readouterr().err
    assert not (desk / "runs").exists()


def test_networks_that_a_run_looks_into_have_options_in_common_and_of_their_own(desk):
    sizes = "teacher.0.data.train_samples"
    study = Study(
        "sizes",
        "Sizes",
        experiment="reliability/digits_resnet8",
        overrides={"teacher.trainer.max_epochs": 2, "teacher.1.seed_everything": 101, "teacher.2.seed_everything": 102},
        grid={sizes: [50, 100]},
        read={"rho": "reliability/test/reliability"},
    )
    *networks, one, other = plan(study, experiments(), [])
    found = [(network.setting["seed"], network.setting.get("data.train_samples")) for network in networks]
    assert found == [(0, 50), (101, None), (102, None), (0, 100)], "what two runs look into is trained once"
    assert {network.setting["trainer.max_epochs"] for network in networks} == {2}
    assert one.needs == tuple(network.folder for network in networks[:3])
    assert other.needs[1:] == one.needs[1:]
    assert one.folder != other.folder


def test_networks_that_such_a_network_is_trained_from_have_options_of_their_own(desk):
    samples, first = "data.train_samples", "classify/digits8_mlp"
    study = Study(
        "prunings",
        "Prunings",
        experiment="components/digits_resnet8",
        overrides={
            "model.teacher.init_args.experiment": "interventions/compressed_digits",
            "model.layer": "fc4",
            "teacher.0.model.net.init_args.experiment": first,
            "teacher.data.image_size": 8,
            "teacher.0.model.rounds": 2,
            f"teacher.0.{samples}": 60,
            f"teacher.0.teacher.{samples}": 50,
        },
        seeds=[3],
        read={"rho": "components/significance/4"},
    )
    original, pruned, run = plan(study, experiments(), [])
    assert (original.experiment, pruned.needs, run.needs) == (first, (original.folder,), (pruned.folder,))
    assert (original.setting[samples], pruned.setting[samples], pruned.setting["model.rounds"]) == (50, 60, 2)
    assert "model.rounds" not in original.setting
    assert original.setting["seed"] == pruned.setting["seed"] == 3


def test_further_tables_stand_on_the_page_and_beside_it(desk):
    from dataclasses import replace

    points = fake_points(desk, VALUES[:2])
    Pool(FAKE, points, fake_fit, 2).run()
    collect(
        replace(FAKE, grid={"value": VALUES[:2]}, tabulate="studies_files.extremes", labels={"extremes": "lowest"}),
        points,
    )
    folder = desk / "studies" / "fake"
    totals = [float(line.split(",")[-1]) for line in (folder / "runs.csv").read_text().splitlines()[1:]]
    assert (folder / "extremes.csv").read_text().splitlines() == ["total,total sd", f"{min(totals)},0.1"]
    assert f"## Lowest\n\n| total |\n| --- |\n| {min(totals):.2f} ± 0.10 |" in (folder / "study.md").read_text()

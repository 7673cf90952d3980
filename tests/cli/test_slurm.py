"""What `netprism slurm` asks Slurm for; tests/slurm/ asks a real one."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from studies_files import fake_points

from netprism.cli.main import EXPERIMENTS, main
from netprism.cli.slurm import Job, missing_teachers
from netprism.cli.study_slurm import arrays
from netprism.studies.points import Point, read_point

SBATCH = """\
#!/bin/sh
echo "$@" >> asked
cat > "script-$(wc -l < asked)"
[ -n "$REFUSE" ] && { echo "sbatch: error: $REFUSE" >&2; exit 1; }
echo "1$(wc -l < asked);cluster"
"""


@pytest.fixture(autouse=True)
def login_node(tmp_path, monkeypatch):
    """An empty current folder, and an sbatch that writes down what it is asked for: jobs 11, 12, ..."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sbatch").write_text(SBATCH)
    (tmp_path / "bin" / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.delenv("NETPRISM_RUNS", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def directives(script):
    options = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")]
    return dict(option.split("=", 1) if "=" in option else (option, "") for option in options)


def finished(experiment):
    experiment_folder = os.path.join("runs", experiment, "1")
    os.makedirs(experiment_folder)
    open(os.path.join(experiment_folder, "finished.txt"), "w").close()


def test_a_job_of_two_nodes_with_eight_gpus():
    script = Job("quickstart", nodes=2, gpus=8, time="12:00:00", partition="long", cpus=6).script()
    assert directives(script) == {
        "job-name": "quickstart", "nodes": "2", "ntasks-per-node": "8", "gpus-per-node": "8", "cpus-per-task": "6",
        "time": "12:00:00", "partition": "long", "output": "runs/slurm/%j.out", "signal": "SIGUSR1@90", "requeue": "",
        "open-mode": "append",
    }  # fmt: skip
    command = script.rstrip().splitlines()[-1]  # with nothing after it that would hide a failure
    assert command.endswith("--trainer.num_nodes=2 --trainer.devices=8 --trainer.strategy=ddp")
    assert "--config quickstart --ckpt_path=last" in command
    assert "export SRUN_CPUS_PER_TASK=6" in script


def test_what_is_not_asked_for_is_the_clusters():
    script = Job("quickstart", gpus=0).script()
    assert set(directives(script)).isdisjoint({"gpus-per-node", "cpus-per-task", "time", "partition"})
    assert script.rstrip().endswith("--trainer.num_nodes=1 --trainer.devices=1")


def test_arguments_reach_the_training_whole():
    script = Job("quickstart", args=("--data.root", "my $HOME; touch evil")).script()
    assert script.rstrip().endswith("--data.root 'my $HOME; touch evil'")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_submits_and_says_where_things_will_be(login_node, capsys):
    main(["slurm", "--config", "quickstart", "--nodes", "2", "--gpus=1", "--trainer.max_epochs", "3"])
    assert capsys.readouterr().out == ("job 11  quickstart\n  log  runs/slurm/11.out\n  run  runs/quickstart/11\n")
    assert (login_node / "asked").read_text() == "--parsable\n"
    assert "--trainer.max_epochs 3" in (login_node / "script-1").read_text()
    assert (login_node / "runs" / "slurm").is_dir()


def test_networks_that_are_missing_are_trained_first(login_node, capsys):
    finished("classify/digits16_resnet14")
    main(
        ["slurm", "--config", "reliability/digits_resnet8", "--nodes=2", "--gpus=4", "--time=1:00", "--data.root", "d"]
    )
    names = [line.split()[2] for line in capsys.readouterr().out.splitlines() if line.startswith("job")]
    assert names == ["classify/digits16_resnet8", "classify/digits16_resnet20", "reliability/digits_resnet8"]
    asked = (login_node / "asked").read_text().splitlines()
    assert asked == ["--parsable"] * 2 + ["--parsable --dependency=afterok:11:12 --kill-on-invalid-dep=yes"]
    teacher = (login_node / "script-1").read_text()
    wanted = {"nodes": "1", "ntasks-per-node": "1", "gpus-per-node": "1", "time": "1:00"}
    assert wanted.items() <= directives(teacher).items()
    assert teacher.rstrip().endswith("--trainer.devices=1 --data.root=d")


def test_a_network_that_looks_into_another_one_comes_after_it(login_node):
    base, first, second = (login_node / f"{name}.yaml" for name in ("base", "first", "second"))
    trained = "{{class_path: netprism.runs.teachers.trained, init_args: {{experiment: {}}}}}"
    base.write_text("model: 1\n")
    first.write_text(f"model: {{teacher: {trained.format('base')}}}\n")
    (login_node / "part.yaml").write_text(f"class_path: A\ninit_args: {{nets: [{trained.format('first')}]}}\n")
    second.write_text(f"model: part.yaml\nother: {trained.format('base')}\n")
    assert missing_teachers(second, {"base": base, "first": first}) == [("base", None), ("first", None)]


def test_a_dry_run_shows_and_submits_nothing(login_node, capsys):
    main(["slurm", "--config", "components/digits_resnet8", "--dry-run"])
    shown = capsys.readouterr().out
    assert shown.count("#!/bin/bash") == 2
    assert "'--dependency=afterok:<classify/digits_resnet8>'" in shown
    assert not (login_node / "asked").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--config", "quickst"], ["no file and no experiment 'quickst'", "close: quickstart"]),
        (["--config", "quickstart", "--nodes", "two"], ["--nodes", "'two'"]),
        (["--config", "quickstart", "--nodes", "0"], ["nodes is 0", ">= 1"]),
        ([], ["--config"]),
    ],
)
def test_a_wrong_option_is_one_line(args, words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["slurm", *args])
    said = capsys.readouterr().err
    assert ended.value.code in (1, 2)
    assert said.count("\n") == 1
    assert all(word in said for word in words)


def test_what_slurm_says_and_that_it_is_absent_is_one_line(monkeypatch, capsys):
    monkeypatch.setenv("REFUSE", "invalid partition\nspecified: nowhere")
    with pytest.raises(SystemExit):
        main(["slurm", "--config", "quickstart"])
    assert capsys.readouterr().err == (
        "netprism: error: sbatch refused quickstart: sbatch: error: invalid partition specified: nowhere\n"
    )
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SystemExit):
        main(["slurm", "--config", "quickstart"])
    assert "there is no sbatch here" in capsys.readouterr().err


def test_every_experiment_that_looks_into_a_network_finds_it():
    named = {name for file in EXPERIMENTS.rglob("*.yaml") for name, _ in missing_teachers(file, all_experiments())}
    assert named
    assert named <= set(all_experiments())


def all_experiments():
    return {file.relative_to(EXPERIMENTS).with_suffix("").as_posix(): file for file in EXPERIMENTS.rglob("*.yaml")}


def test_a_study_is_an_array_after_that_of_its_networks_and_before_its_table(login_node, monkeypatch, capsys):
    (login_node / "mine.yaml").write_text("# Mine\nexperiment: quickstart\ngrid: {a: [1, 2]}\nread: {a: b}\n")
    network, *runs = fake_points(Path("."), [0.5, 1.0, 2.0])
    runs = [replace(run, needs=(network.folder,)) for run in runs]
    monkeypatch.setattr("netprism.cli.study_slurm.plan", lambda study, experiments, args: [network, *runs])
    main(["slurm", "--study", "mine.yaml", "--gpus=0", "--cpus=2", "--trainer.max_epochs=1"])
    assert (login_node / "asked").read_text().splitlines() == [
        "--parsable", "--parsable --dependency=afterany:11", "--parsable --dependency=afterany:11:12"
    ]  # fmt: skip
    scripts = [(login_node / f"script-{number}").read_text() for number in (1, 2, 3)]
    assert [directives(script).get("array") for script in scripts] == ["0-0", "0-1", None]
    assert directives(scripts[1])["output"] == "runs/slurm/%A_%a.out"
    for number, run in enumerate(runs):
        ended = subprocess.run(
            ["bash"], input=scripts[1].replace("srun", "echo"), text=True, capture_output=True, check=True,
            env={**os.environ, "SLURM_ARRAY_TASK_ID": str(number)},
        )  # fmt: skip
        words = ended.stdout.split()
        assert read_point(Path(words[-1])) == replace(run, arguments={}, config=read_point(Path(words[-1])).config)
        assert f"--output={run.folder}/log.txt" in words
    assert scripts[2].rstrip().endswith("netprism study mine.yaml --table --trainer.max_epochs=1")
    assert capsys.readouterr().out.splitlines()[1:3] == ["job 11  1 runs", "  logs  runs/EXPERIMENT/KEY/log.txt"]
    main(["slurm", "--study", "mine.yaml", "--dry-run", "--tasks=2"])
    assert "--trainer.strategy=ddp" in capsys.readouterr().out
    assert len((login_node / "asked").read_text().splitlines()) == 3


def test_networks_come_before_and_two_measurements_of_a_run_one_after_the_other(login_node):
    def point(name, needs=(), key=None):
        return Point({"name": name}, key or name, login_node / name, "x", "{}", "f" if key else None, needs=needs)

    network, failed = point("network"), point("failed")
    (failed.folder).mkdir()
    failed.failure.write_text("out of memory")
    points = [network, failed, point("a", (network.folder,)), point("b", (failed.folder,)), point("a", key="again")]
    names = [[point.key for point in array] for array in arrays(points, retry=False)]
    assert names == [["network", "again"], ["a"]]
    names = [[point.key for point in array] for array in arrays(points, retry=True)]
    assert names == [["network", "failed", "again"], ["a", "b"]]

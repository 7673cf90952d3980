import os
import re
import shutil
import subprocess
import sys

import pytest
from torch.distributed import TCPStore

from netprism.files import write_text
from netprism.runs.folder import RUN, RUNS, choose_folder, display_path, new_id, open_folder, provenance


@pytest.fixture(autouse=True)
def no_job(tmp_path, monkeypatch):
    """An empty current folder and no scheduler."""
    monkeypatch.chdir(tmp_path)
    for name in (RUN, RUNS, "SLURM_JOB_ID", "SLURM_JOB_NAME", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


def checkpoint(folder, name="last", age=0):
    path = folder / "checkpoints" / f"{name}.ckpt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def test_new_runs_never_share_a_folder(tmp_path):
    folders = {str(choose_folder("gates/digits_mlp")[0]) for _ in range(200)}
    assert len(folders) == 200
    assert all(re.fullmatch(r"runs/gates/digits_mlp/\d{8}-\d{6}-[0-9a-f]{6}", folder) for folder in folders)
    assert not list(tmp_path.iterdir()), "choosing a folder makes none"


def test_ids_sort_by_age(monkeypatch):
    monkeypatch.setattr("time.strftime", lambda form: "20260101-000000")
    early = new_id()
    monkeypatch.setattr("time.strftime", lambda form: "20260101-000001")
    assert early < new_id()


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"SLURM_JOB_ID": "77"}, "runs/quickstart/77"),
        ({"SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "train"}, "runs/quickstart/77"),
        ({"TORCHELASTIC_RUN_ID": "abc"}, "runs/quickstart/abc"),
        ({RUN: "here/it/is"}, "here/it/is"),
        ({RUN: "here/it/is", "SLURM_JOB_ID": "77", RUNS: "elsewhere"}, "here/it/is"),
        ({RUNS: "elsewhere", "SLURM_JOB_ID": "77"}, "elsewhere/quickstart/77"),
    ],
)
def test_the_ranks_of_a_job_get_one_folder(variables, folder, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert [str(choose_folder("quickstart")[0]) for _ in range(2)] == [folder, folder]


def test_an_interactive_job_has_many_runs(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    assert choose_folder("quickstart")[0] != choose_folder("quickstart")[0]


@pytest.fixture
def torchrun(monkeypatch):
    """The store that an agent of torchrun has for its processes; returns what makes this process one of them."""
    store = TCPStore("localhost", 0, is_master=True)

    def become(rank, run_id="none", restarts=0):
        names = {"MASTER_ADDR": "localhost", "MASTER_PORT": store.port, "RANK": rank}
        names |= {"TORCHELASTIC_RUN_ID": run_id, "TORCHELASTIC_RESTART_COUNT": restarts}
        for name, value in names.items():
            monkeypatch.setenv(name, str(value))

    return become


@pytest.mark.parametrize("run_id", ["none", "ddc20222-feb8-4cd8-9ae3-87519937de63"])
def test_the_ranks_of_torchrun_agree_on_a_folder(torchrun, run_id, tmp_path):
    torchrun(0, run_id)
    folder, ckpt = choose_folder("quickstart")
    torchrun(1, run_id)
    assert choose_folder("quickstart") == (folder, None)
    assert ckpt is None
    assert re.fullmatch(r"runs/quickstart/\d{8}-\d{6}-[0-9a-f]{6}", str(folder))
    torchrun(1, run_id, restarts=1)
    assert choose_folder("quickstart") == (folder, None)
    own = checkpoint(tmp_path / folder)
    assert choose_folder("quickstart") == (folder, str(own.relative_to(tmp_path)))


def test_torchrun_goes_on_with_the_newest_run_if_asked(torchrun, tmp_path):
    own = checkpoint(tmp_path / "runs" / "quickstart" / "before")
    torchrun(0)
    assert choose_folder("quickstart", "last") == (own.relative_to(tmp_path).parents[1], str(own.relative_to(tmp_path)))


def test_last_and_best_are_of_the_newest_run(tmp_path):
    home = tmp_path / "runs" / "quickstart"
    checkpoint(home / "old", age=100)
    checkpoint(home / "old", "best", age=100)
    checkpoint(home / "new")
    checkpoint(tmp_path / "runs" / "other" / "newest", age=-100)
    assert choose_folder("quickstart", "last") == (
        home.relative_to(tmp_path) / "new",
        "runs/quickstart/new/checkpoints/last.ckpt",
    )
    assert choose_folder("quickstart", "best") == (
        home.relative_to(tmp_path) / "old",
        "runs/quickstart/old/checkpoints/best.ckpt",
    )


def test_a_requeued_job_goes_on_with_itself_and_starts_afresh_at_first(tmp_path, monkeypatch):
    checkpoint(tmp_path / "runs" / "quickstart" / "other")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert choose_folder("quickstart", "last")[1] is None
    own = checkpoint(tmp_path / "runs" / "quickstart" / "77", age=100)
    folder, ckpt = choose_folder("quickstart", "last")
    assert (tmp_path / ckpt, tmp_path / folder) == (own, own.parents[1])


def test_a_checkpoint_of_the_experiment_brings_its_folder_another_one_does_not(tmp_path):
    own = checkpoint(tmp_path / "runs" / "quickstart" / "a")
    other = checkpoint(tmp_path / "runs" / "other" / "a")
    assert choose_folder("quickstart", str(own)) == (own.parents[1], str(own))
    folder, ckpt = choose_folder("quickstart", str(other))
    assert ckpt == str(other)
    assert re.fullmatch(r"runs/quickstart/\d.*", str(folder))


@pytest.mark.parametrize("word", ["last", "best", "nowhere.ckpt"])
def test_a_missing_checkpoint_is_named(word):
    with pytest.raises(FileNotFoundError, match=f"no checkpoint '{word}'"):
        choose_folder("quickstart", word)


def test_a_file_is_never_half_written(tmp_path, monkeypatch):
    path = tmp_path / "a" / "metrics.csv"
    write_text(path, "old\n")
    monkeypatch.setattr("pathlib.Path.replace", lambda self, target: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError, match="killed"):
        write_text(path, "new\n")
    assert path.read_text() == "old\n"


def test_a_run_folder_that_cannot_be_written_is_named(tmp_path):
    open_folder(tmp_path / "good" / "1")
    assert not list((tmp_path / "good" / "1").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"^run folder file/1: .*NETPRISM_RUNS"):
        open_folder(tmp_path / "file" / "1")


def test_paths_are_shown_as_typed(tmp_path):
    assert display_path(tmp_path / "runs" / "a") == "runs/a"
    assert display_path("runs/a") == "runs/a"
    assert display_path("/elsewhere") == "/elsewhere"


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_provenance_names_the_commit_and_what_differs_from_it(tmp_path):
    assert "no git commit: fatal: not a git repository" in provenance()

    def git(*args):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", *who, *args], check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    assert "no git commit: " in provenance()
    (tmp_path / "model.py").write_text("1")
    git("add", "model.py")
    git("commit", "--message", "A model")
    assert f"commit {git('rev-parse', 'HEAD')}\nsubject A model\nno dirty files\n" in provenance()
    (tmp_path / "model.py").write_text("2")
    (tmp_path / "new.py").touch()
    assert provenance().endswith("dirty files:\n M model.py\n?? new.py\n")


def test_provenance_without_a_git_program(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert "no git commit: " in provenance()


def test_needs_the_standard_library_only():
    code = "import sys, netprism.runs.folder, netprism.cli; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30).stdout
    assert not {"torch", "pytorch_lightning", "numpy", "yaml", "wandb"} & set(loaded.split())

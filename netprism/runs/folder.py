"""The folder of one run, `runs/<experiment>/<id>/`: which one it is, and files in it that are never half written.

Only the standard library: `netprism --help` and unknown experiments answer before torch is imported.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from netprism.files import write_text

RUN = "NETPRISM_RUN"  # the folder of this run; the ranks that Lightning starts inherit it, the loggers read it
RUNS = "NETPRISM_RUNS"  # where the folders of all runs are; `runs` when unset
CKPT_WORDS = ("last", "best")
FINISHED = "finished.txt"  # written when a training completes


def runs_root() -> Path:
    """Returns the folder that holds all runs: `$NETPRISM_RUNS`, or `runs` in the current folder."""
    return Path(os.environ.get(RUNS) or "runs")


def run_folder(given: str | os.PathLike[str] | None = None) -> Path:
    """Returns the folder that was given, or that of this run, `$NETPRISM_RUN`.

    The configs leave it to this function: text that is interpolated into a config is read as YAML, which takes a path
    with ": " in it for a mapping.

    Raises:
        ValueError: There is neither.
    """
    folder = given or os.environ.get(RUN)
    if not folder:
        raise ValueError(f"save_dir is None and ${RUN} is not set; expected a folder")
    return Path(folder)


@contextmanager
def environment(key: str, value: str) -> Iterator[None]:
    """Sets an environment variable, for this process and those it starts, and puts the old value back."""
    before = os.environ.get(key)
    os.environ[key] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[key]
        else:
            os.environ[key] = before


def scheduler_id() -> str | None:
    """Returns the id that a scheduler, or `torchrun --rdzv-id`, gave to all ranks of this job, or None without one.

    An interactive Slurm allocation outlives a run, and what torchrun makes up itself means nothing to its user: `none`
    on several nodes, a random UUID on one.
    """
    if os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive") and (job := os.environ.get("SLURM_JOB_ID")):
        return job
    job = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return None if job == "none" or re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", job) else job


def is_restart() -> bool:
    """Returns whether torchrun (`--max-restarts`) starts these processes after a failure of the first ones."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def new_id() -> str:
    """Returns local time and six random hex digits: sorts by age, and two runs of one second stay apart."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def shared_id() -> str:
    """Returns a new id, the same one on all processes of torchrun, also after it has restarted them.

    Its agent has a store for them, across all nodes.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return new_id()
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # documented, not listed

    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    if os.environ["RANK"] == "0":
        store.compare_set(RUN, "", new_id())
    return str(store.get(RUN).decode())


def finished_runs(experiment: str, seed: int | None = None) -> list[Path]:
    """Returns the folders of an experiment's finished runs, the newest first; where a seed is given, those of it."""
    done = (runs_root() / experiment).glob(f"*/{FINISHED}")
    found = [file.parent for file in sorted(done, key=lambda file: file.stat().st_mtime, reverse=True)]
    return found if seed is None else [run for run in found if _seed_of(run) == seed]


def _seed_of(run: Path) -> int | None:
    """The seed in a run's config, read without a YAML reader; None if there is none."""
    config = run / "config.yaml"
    line = re.search(r"^seed_everything: (\d+)$", config.read_text(), re.MULTILINE) if config.is_file() else None
    return int(line[1]) if line else None


def with_seed(experiment: str, seed: int | None) -> str:
    """Returns an experiment's name in quotes, with the seed that is asked for."""
    return repr(experiment) if seed is None else f"{experiment!r} with seed {seed}"


def command_of(experiment: str, seed: int | None = None) -> str:
    """Returns what one types to train an experiment, with a seed."""
    return f"make train EXP={experiment}" + ("" if seed is None else f' ARGS="--seed_everything {seed}"')


def choose_folder(experiment: str, ckpt: str | None = None) -> tuple[Path, str | None]:
    """Chooses the folder of a run and the checkpoint it starts from.

    The folder is `$NETPRISM_RUN` if set, that of the scheduler's job if there is one, that of the checkpoint if it is
    of the same experiment, otherwise a new one. Nothing is created.

    Args:
        experiment: Name under the runs folder, such as `gates/digits_mlp`.
        ckpt: None (the run's own last one, though, where torchrun starts it again), a path, or `last` / `best`: of this
            run if its folder is given by the environment (a job that starts for the first time has none, and starts
            afresh), otherwise of the newest run of the experiment.

    Raises:
        FileNotFoundError: There is no such checkpoint.
    """
    home = runs_root() / experiment
    job = scheduler_id()
    given = Path(os.environ[RUN]) if os.environ.get(RUN) else home / job if job else None
    if ckpt is None:
        folder = given or home / shared_id()
        return folder, str(path) if is_restart() and (path := _ckpt(folder, "last")).is_file() else None
    if ckpt in CKPT_WORDS:
        found = [path for folder in ([given] if given else home.glob("*")) if (path := _ckpt(folder, ckpt)).is_file()]
        if not found and given:
            if others := sorted((given / "checkpoints").glob("*.ckpt")):
                kept = ", ".join(map(display_path, others))
                raise FileNotFoundError(
                    f"no checkpoint {ckpt!r} in {display_path(given)}, which has {kept}: a training from the start "
                    "would write over it; name a checkpoint with --ckpt_path, or another folder"
                )
            return given, None
        if not found:
            raise FileNotFoundError(f"no checkpoint {ckpt!r} of experiment {experiment!r} in {home}/*/checkpoints")
        path = max(found, key=lambda file: file.stat().st_mtime)
    elif not (path := Path(ckpt)).is_file():
        raise FileNotFoundError(f"no checkpoint {ckpt!r}; give a file, or one of {', '.join(CKPT_WORDS)}")
    own = path.resolve().parent.parent.parent == home.resolve()
    return given or (path.parent.parent if own else home / shared_id()), str(path)


def _ckpt(folder: Path, word: str) -> Path:
    return folder / "checkpoints" / f"{word}.ckpt"


def display_path(path: str | os.PathLike[str]) -> str:
    """Returns `path` as people would type it: relative if it is below the current folder."""
    full = Path(path).absolute()
    return str(full.relative_to(Path.cwd()) if full.is_relative_to(Path.cwd()) else full)


def open_folder(folder: Path) -> None:
    """Creates the run folder and checks that files can be written there.

    Raises:
        OSError: They cannot; in one line.
    """
    try:
        write_text(folder / ".written", "")
        (folder / ".written").unlink(missing_ok=True)
    except OSError as error:
        raise OSError(
            f"run folder {display_path(folder)}: {error.strerror}; ${RUNS} can name a place for all runs"
        ) from error


def lock(folder: Path) -> None:
    """Lock a run folder against other trainings, and remove what a killed one left half written there.

    It is the lock of an open file: the system releases it when a process is killed, so that its run can resume at once.

    Raises:
        FileExistsError: Another training is at work there.
    """
    file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    _claims.append(file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise FileExistsError(
            f"{display_path(folder)}: another training is at work there; ${RUN} names a folder"
        ) from error
    except OSError:
        pass  # a network file system without locks: the user has to take care
    for left in (*folder.glob(".*.part*"), *folder.glob("checkpoints/.*.part*")):
        left.unlink()


def unlock() -> None:
    """Release the locks of this process."""
    while _claims:
        os.close(_claims.pop())


_claims: list[int] = []
os.register_at_fork(after_in_child=unlock)  # otherwise a loader's worker would keep the lock when its parent is killed


def provenance() -> str:
    """Returns versions, the commit of the current folder and the files that differ from it, or why there is none."""
    packages = ("netprism", "torch", "pytorch-lightning")
    versions = " ".join(f"{package} {metadata.version(package)}" for package in packages)
    try:
        commit = _git("log", "-1", "--format=commit %H%nsubject %s")
        dirty = _git("status", "--porcelain")
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        return f"{versions}\nno git commit: {said.strip().splitlines()[0]}\n"
    return f"{versions}\n{commit}\n" + (f"dirty files:\n{dirty}\n" if dirty else "no dirty files\n")


def _git(*args: str) -> str:
    command = ["git", "--no-optional-locks", *args]
    return subprocess.run(command, capture_output=True, check=True, text=True, timeout=20).stdout.rstrip()

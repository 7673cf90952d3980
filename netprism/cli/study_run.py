"""One run of a study: trains what is not trained, measures what is not measured, notes why it failed."""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from netprism.files import alone, write_table, write_text
from netprism.runs.folder import FINISHED, RUN, display_path, environment
from netprism.studies.points import FAILED, LOG, SECONDS, Point, read_point

Fit = Callable[[str, list[str]], object]
PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def run_point(file: Path, fit: Fit) -> None:
    """Runs a point to its end, in this process.

    Of several processes with the same run, from two studies, one trains and the others wait for it and then find it
    done. A run that was stopped goes on from its last checkpoint.

    Args:
        file: What `Point.write` wrote.
        fit: Trains: command and arguments.

    Raises:
        Exception: Whatever the training raised; its reason is in `failed.txt` of the run's folder.
        ValueError: A network that it looks into is not trained.
    """
    point = read_point(file)
    for folder in point.needs:  # as jobs of a cluster, runs start though a network has failed
        if not point.trained and not (folder / FINISHED).is_file():
            raise ValueError(f"its network {display_path(folder)} is not trained")
    with _alone(point.folder):
        if not point.trained:
            _guarded(point.folder / FAILED, lambda: _train(point, file.with_suffix(".yaml"), fit))
        if point.measure and not point.result.is_file() and _is_first():
            _guarded(point.result.with_suffix(f".{FAILED}"), lambda: _measure(point))


def _train(point: Point, config: Path, fit: Fit) -> None:
    checkpoints, begin = point.folder / "checkpoints", time.monotonic()
    if _is_first() and not (checkpoints / "last.ckpt").is_file():
        for left in checkpoints.glob("*.ckpt"):  # killed between the two checkpoints of its first epoch: from the start
            left.unlink()
    try:
        with environment(RUN, str(point.folder.absolute())):
            fit("fit", [f"--config={config}", "--ckpt_path=last"])
    finally:
        if _is_first():
            _add_seconds(point.folder, time.monotonic() - begin)
    if _is_first() and not (point.folder / FINISHED).is_file():
        raise ValueError("the training ended before its last epoch")


def _measure(point: Point) -> None:
    module, _, name = str(point.measure).rpartition(".")
    begin = time.monotonic()
    rows: Sequence[dict[str, object]] = getattr(importlib.import_module(module), name)(
        point.folder, **(point.arguments or {})
    )
    if not rows:
        raise ValueError(f"{point.measure} returned no row")
    write_table(point.result, rows)
    _add_seconds(point.folder, time.monotonic() - begin)


def _guarded(failure: Path, work: Callable[[], None]) -> None:
    """Does the work; notes an error in one line. Who is asked to stop has not failed."""
    if _is_first():
        failure.unlink(missing_ok=True)
    try:
        work()
    except Exception as error:
        if _is_first():
            words = " ".join(str(error).split())
            named = isinstance(error, ValueError | OSError)
            write_text(failure, (words if words and named else f"{type(error).__name__}: {words}") + "\n")
        raise


def _add_seconds(folder: Path, seconds: float) -> None:
    file = folder / SECONDS
    if folder.is_dir():
        write_text(file, f"{seconds + (float(file.read_text()) if file.is_file() else 0):.1f}\n")


def _is_first() -> bool:
    """Whether this is the first of the processes that train one run."""
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "RANK", "SLURM_PROCID"))


def _is_one_of_many() -> bool:
    launched = any(int(os.environ.get(name, "1")) > 1 for name in ("WORLD_SIZE", "SLURM_NTASKS"))
    return launched or not _is_first()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds the run for this process; ranks of one training do not wait for each other."""
    if _is_one_of_many():
        yield
        return
    waiting = partial(print, f"{folder} is at work in another study: waiting for it", flush=True)
    with alone(folder / ".study.lock", waiting):
        yield


def fork_point(file: Path, point: Point, fit: Fit, gpu: str | None = None) -> int:
    """Starts a point in a fork of this process, which has Lightning loaded already: 10 CPU seconds saved for each run.

    It writes into `log.txt` of the run's folder. It dies with this process, however that ends.

    Args:
        file: What `Point.write` wrote.
        point: The same.
        fit: Trains.
        gpu: The one GPU that it sees; None: all that this process sees.

    Returns:
        The id of the process, for `os.waitpid`.
    """
    parent = os.getpid()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        _become_a_run(parent, point.folder / LOG)
        if gpu is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        _take_its_threads()
        sys.argv[1:] = ["study", "--run", str(file)]  # what Lightning starts the other ranks of a DDP training with
        run_point(file, fit)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _take_its_threads() -> None:
    """Gives torch the number of threads of the environment: it was loaded before the pool divided the cores."""
    if (count := os.environ.get("OMP_NUM_THREADS", "")).isdigit() and "torch" in sys.modules:
        import torch

        torch.set_num_threads(int(count))


def _become_a_run(parent: int, log: Path) -> None:
    os.setpgid(0, 0)  # Ctrl-C is for the study, which asks its runs to save
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the call
            os.kill(os.getpid(), signal.SIGKILL)
    log.parent.mkdir(parents=True, exist_ok=True)
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_DFL if signum == signal.SIGTERM else signal.default_int_handler)
    null, file = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(null, 0)
    os.dup2(file, 1)
    os.dup2(file, 2)

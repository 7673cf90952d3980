"""Files that are whole or not there at all, tables, and locks; the standard library only."""

from __future__ import annotations

import csv
import fcntl
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary file beside `path` to write to; at the end of the block it takes the place of `path`.

    The folder is created. After an error `path` is as it was, and nothing is left behind.

    Raises:
        OSError: The file cannot be written; the error names `path`.
    """
    path = Path(path)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with suppress(OSError):
            part.unlink()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file, whole or not at all.

    Raises:
        OSError: The file cannot be written; the error names `path`.
    """
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8", newline="")


@contextmanager
def alone(lock: Path, waiting: Callable[[], object]) -> Iterator[None]:
    """Lets one process into the block at a time, of all that name the same file, on all machines that share it.

    Without locks, in a folder that cannot be written to or on some network file systems, all go on at once.

    Args:
        lock: File that is created, and stays.
        waiting: Function that is called before this process waits for another one.
    """
    with ExitStack() as stack:
        with suppress(OSError):
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(lock.open("a"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def csv_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Returns rows as CSV with LF line ends; `columns` are those of the first row unless given."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns or (rows[0] if rows else ())), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_table(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]) -> Path:
    """Writes rows as a CSV file, whole or not at all; returns `path`."""
    write_text(path, csv_text(rows))
    return Path(path)

"""Whose mistake an error is: a line for one of the user's, a traceback for one of ours or of the user's own code."""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from traceback import walk_tb
from types import FrameType

PURPOSEFUL = ("netprism.", "pytorch_lightning.trainer.")  # where a ValueError is about what the user gave
LIBRARIES = tuple(f"{Path(sysconfig.get_path(name)).resolve()}/" for name in ("stdlib", "purelib", "platlib"))
DEAD_WORKER = r"DataLoader worker .*(killed|exited unexpectedly)"  # torch's two ways to say it
HAND_OVER = {"torch.utils.data.dataloader", "torch.multiprocessing.reductions"}  # where it dies within a batch
OUT_OF_MEMORY = "It may have been out of memory; data.num_workers=0 loads without workers."
FULL_MEMORY = r"(?s).*(shared memory|unable to (write to|open|mmap|allocate).*</?torch_)"  # what workers hand over in
LONGEST = 600  # characters of a library's message


class UsageError(Exception):
    """The command line is wrong: one line, exit code 2."""


def users_error(error: BaseException) -> Exception | None:
    """Returns the error about what the user gave, or None if a traceback says more: of a bug, or of the user's code.

    - An error that netprism or Lightning's trainer raises on purpose is the user's, whenever it comes. It is looked for
      in the chain of causes, since jsonargparse wraps what a class says about its arguments.
    - Before the first training step is done, what a library raises about a value or a file is the user's as well:
      nothing but the command line and the files that it names has come in. Later it is not.
    - So is a TypeError of a class that jsonargparse calls with what was typed, such as null for a number.
    - What else is raised in netprism is a bug. What passed through code that is neither netprism's nor installed is for
      whoever writes that code.
    """
    chain = list(_chain(error))
    for link in chain:
        frames = _frames(link)
        module = frames[-1].f_globals.get("__name__", "") if frames else ""  # where it was raised
        # A loader raises what its worker raised, so that the module is torch's: then the class tells.
        purposeful = module.startswith(PURPOSEFUL) or type(link).__module__.startswith("netprism.")
        on_purpose = isinstance(link, ValueError | OSError) and purposeful
        if on_purpose or type(link).__name__ == "MisconfigurationException":
            return link
        if isinstance(link, RuntimeError) and re.match(DEAD_WORKER, str(link)):
            return RuntimeError(f"{link} {OUT_OF_MEMORY}")
        if isinstance(link, OSError | EOFError) and HAND_OVER <= {f.f_globals.get("__name__") for f in frames}:
            return RuntimeError(f"DataLoader worker ended as it handed over a batch ({link!r}). {OUT_OF_MEMORY}")
        if isinstance(link, RuntimeError) and re.match(FULL_MEMORY, str(link)):
            why = str(link).strip().splitlines()[-1].strip()
            return RuntimeError(f"/dev/shm may be full ({why}); data.num_workers=0 loads without workers")
    frames = [frame for link in chain for frame in _frames(link)]
    if not frames or has_trained(frames) or not all(_is_netprism(f) or _is_library(f) for f in frames):
        return None
    cause = chain[-1]
    is_of_argument = isinstance(cause, TypeError) and any(map(_is_jsonargparse, frames))  # null for a number
    if not is_of_argument and not _is_library(_frames(cause)[-1]):
        return None
    said = " ".join(str(cause).split())
    said = said if len(said) <= LONGEST else f"{said[:LONGEST]} ..."
    return ValueError(f"{said} ({type(cause).__name__}; NETPRISM_TRACEBACK=1 shows where)")


def has_trained(frames: list[FrameType]) -> bool:
    """Returns whether an error with these frames came after the first training step of this process."""
    loops = [f for f in frames if f.f_globals.get("__name__") == "pytorch_lightning.loops.training_epoch_loop"]
    return any(getattr(frame.f_locals.get("self"), "global_step", 0) > 0 for frame in loops)


def _chain(error: BaseException) -> Iterator[Exception]:
    """An error and its causes."""
    link: BaseException | None = error
    while isinstance(link, Exception):
        yield link
        link = link.__cause__


def _frames(error: BaseException) -> list[FrameType]:
    """The frames from where an error was caught to where it was raised."""
    return [frame for frame, _ in walk_tb(error.__traceback__)]


def _is_netprism(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).split(".")[0] == "netprism"


def _is_jsonargparse(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).split(".")[0] == "jsonargparse"


def _is_library(frame: FrameType) -> bool:
    """Whether a frame is of an installed package, of Python itself, or of code that it makes, as for dataclasses."""
    file = frame.f_code.co_filename
    return not _is_netprism(frame) and (file.startswith("<") or str(Path(file).resolve()).startswith(LIBRARIES))

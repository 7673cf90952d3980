"""Reading checkpoints: no code in one is run, and an error names in one line what is wrong with the file."""

from __future__ import annotations

import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch

from netprism.runs.folder import CKPT_WORDS, display_path

TRAINING = ("state_dict", "epoch", "global_step", "pytorch-lightning_version")  # what Lightning needs to resume
DIFFERENCES = (  # in torch's words, and in netprism's
    (r'Missing key\(s\) in state_dict: "([^"]+)', "{} is absent"),
    (r'Unexpected key\(s\) in state_dict: "([^"]+)', "{} is absent in this model"),
    (r"mismatch for ([^:]+): .*?Size\(\[(.*?)\]\) from .* is .*Size\(\[(.*?)\]\)", "{} is ({}), in this model ({})"),
)


def read_checkpoint(path: str | Path) -> Any:  # noqa: ANN401 - anything
    """Returns, on the CPU, what `torch.save` wrote, if it is tensors, numbers, texts and containers of them.

    Always with `weights_only=True`, which TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD does not override where it is asked for.
    The checksums are compared, since torch (2.15) loads an archive with a changed byte without an error. Cost: one
    second per GB.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: The file cannot be read.
        ValueError: It is empty, damaged, or has objects in it; the message names another checkpoint of the run.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {display_path(path)}")
    try:
        _check(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise OSError(f"{display_path(path)}: {error.strerror or error}") from error
    except Exception as error:  # of a damaged file: RuntimeError, EOFError, KeyError, UnpicklingError and others
        fault = f"it {_fault(path, error)}{_other(path)}"
        raise ValueError(f"{display_path(path)} is no file of tensors alone: {fault}") from error


def read_training(path: str | Path) -> dict[str, Any]:
    """Returns a checkpoint from which Lightning can resume. Raises what `read_checkpoint` does.

    Raises:
        ValueError: It is something else, such as the weights alone.
    """
    content: dict[str, Any] = read_checkpoint(path)
    missing = [key for key in TRAINING if not isinstance(content, dict) or key not in content]
    if missing:
        raise ValueError(
            f"{display_path(path)} is no checkpoint of a training: it has no {missing[0]!r}{_other(Path(path))}"
        )
    return content


def of_another_model(path: str | Path, error: RuntimeError) -> str:
    """Returns one line for torch's page about a state dict that does not fit: the file and the first key."""
    text = str(error)
    model = text.partition("state_dict for ")[2].partition(":")[0]
    found = ((re.search(theirs, text), ours) for theirs, ours in DIFFERENCES)
    first = next((ours.format(*match.groups()) for match, ours in found if match), text)
    return f"{display_path(path)} is of another model than this {model}: {first}"


def _check(path: Path) -> None:
    if is_zipfile(path):  # otherwise torch's older format, without checksums
        with ZipFile(path) as archive:
            if bad := archive.testzip():
                raise BadZipFile(bad)


def _fault(path: Path, error: Exception) -> str:
    if not path.stat().st_size:
        return "is empty"
    if isinstance(error, UnpicklingError) and (named := re.search(r"\b(?:GLOBAL|function) ([\w.]+)", str(error))):
        return f"has objects in it ({named[1]}), which would run code"
    return "is damaged, cut short or something else"


def _other(path: Path) -> str:
    others = (path.with_name(f"{word}.ckpt") for word in CKPT_WORDS)
    found = [display_path(other) for other in others if other != path and other.is_file()]
    return f"; there is {found[0]}, too" if found else ""

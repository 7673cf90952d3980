"""Names of a model's modules as users know them, and eager runs of compiled models, so that hooks fire."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

_NAMES_IN_ERROR = 20


def module_names(model: nn.Module, relative_to: nn.Module | None = None) -> dict[nn.Module, str]:
    """Returns every module with its path, without the prefixes of DDP and `torch.compile`; the model itself is "".

    Args:
        model: Any module.
        relative_to: Part of it whose modules are named as seen from there.
    """
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else relative_to
    names = {module: path for path, module in model.named_modules()}
    if inner is not None:
        names.update({module: path for path, module in inner.named_modules()})
    return {module: ".".join(part for part in path.split(".") if part != "_orig_mod") for module, path in names.items()}


def match_name(name: str, known: Sequence[str], owner: str = "") -> str | None:
    """Returns the known layer that a typed name means, or None.

    That is the name itself; the full name where known ones begin at `owner`, a part of the model (`net.layer1` is
    `layer1`); or the end of one known name only (`layer1` is `encoder.layer1`).

    Args:
        name: What was typed.
        known: Names of layers.
        owner: Name of the part of the model as seen from which the known names are.
    """
    if name in known:
        return name
    if owner and name.startswith(f"{owner}.") and name.removeprefix(f"{owner}.") in known:
        return name.removeprefix(f"{owner}.")
    ends = [other for other in known if other.endswith(f".{name}")]
    return ends[0] if len(ends) == 1 else None


def no_such_layer(owner: str, name: str, known: Iterable[str], kind: str = "layer") -> str:
    """Returns the text of an error: the close names first, then what may be typed."""
    listed = list(known)
    close = difflib.get_close_matches(name, listed, n=1)
    hint = f", did you mean {close[0]!r}?" if close else ";"
    more = f" and {len(listed) - _NAMES_IN_ERROR} more" if len(listed) > _NAMES_IN_ERROR else ""
    return f"{owner} has no {kind} {name!r}{hint} it has {', '.join(listed[:_NAMES_IN_ERROR])}{more}"


def key_of_layer(name: str) -> str:
    """Returns the name of a layer as a key of a ModuleDict, which allows no dots."""
    return name.replace(".", "|")


def run_eagerly() -> AbstractContextManager[object]:
    """Lets compiled models run eagerly: hooks registered after the first compiled call would never fire.

    Where dynamo is not loaded nothing can be compiled, and `set_stance` would load it: 1.8 s.
    """
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance

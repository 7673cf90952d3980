"""Names of a model's modules as users know them, and eager runs of compiled models, so that hooks fire."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn


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


def run_eagerly() -> AbstractContextManager[object]:
    """Lets compiled models run eagerly: hooks registered after the first compiled call would never fire.

    Where dynamo is not loaded nothing can be compiled, and `set_stance` would load it: 1.8 s.
    """
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance

"""What ranks that are forked or spawned hand back to the process that started them."""

from __future__ import annotations

import io

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher
from pytorch_lightning.utilities import rank_zero_warn

PIPE = 60_000  # bytes: a pipe of 64 KiB, which nobody reads before the rank that writes has ended


def fit_into_pipe(trainer: pl.Trainer, prefix: str) -> None:
    """Makes `callback_metrics` so small that Lightning can hand them back from forked ranks; otherwise it would hang.

    They are put into one storage, in a third of the bytes. Where that is not enough, some with this prefix are left
    out, those of layers first, and a warning says so; loggers have them all.

    Args:
        trainer: The trainer, at the end of a fit.
        prefix: Beginning of the names that may be left out.
    """
    if not isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        return
    metrics = trainer.callback_metrics
    for dtype in {value.dtype for value in metrics.values()}:
        of_type = {name: value.detach().cpu() for name, value in metrics.items() if value.dtype == dtype}
        metrics.update(zip(of_type, torch.stack(list(of_type.values())).unbind(), strict=True))
    own = sorted((name for name in metrics if name.startswith(prefix)), key=lambda name: (name.count("/"), name))
    before = len(own)
    while own and _bytes_of(metrics) > PIPE:
        for name in own[-50:]:
            del metrics[name]
        del own[-50:]
    if len(own) < before:
        rank_zero_warn(
            f"{prefix.rstrip('/')}: {before - len(own)} of {before} numbers are not in trainer.callback_metrics, of "
            "which forked ranks can hand back 64 KiB; the loggers and the callback's history have all"
        )


def _bytes_of(metrics: dict[str, torch.Tensor]) -> int:
    buffer = io.BytesIO()
    torch.save(dict(metrics), buffer)
    return buffer.tell()

"""The sums of a running epoch: what `self.log` and torchmetrics have added up, for a checkpoint.

Lightning (2.6) leaves them out, so that the means of an interrupted epoch are those of its second half. It has no
public access to them; `tests/test_resume.py` would notice a change.
"""

from __future__ import annotations

from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.loops.progress import _ProcessedTracker
from torch import Tensor, nn
from torchmetrics import Metric


def is_running(trainer: pl.Trainer) -> bool:
    """Returns whether an epoch has begun and not ended: Lightning counts it as processed before its last hooks."""
    epoch = cast(_ProcessedTracker, trainer.fit_loop.epoch_progress.current)
    return epoch.started > epoch.processed


def pending_row(trainer: pl.Trainer) -> tuple[dict[str, float], int] | None:
    """Returns what Lightning will give to the loggers after the checkpoint, if anything, and with what step.

    Within an epoch that is the last batch, at its end the whole epoch.
    """
    connector, step = trainer._logger_connector, trainer.fit_loop.epoch_loop._batches_that_stepped
    due = trainer.training and (connector.should_update_logs or not is_running(trainer))
    values = connector.metrics["log"] if due else {}
    if not values:
        return None
    scalars = {key: float(value) for key, value in values.items()}
    return {**scalars, "epoch": trainer.current_epoch}, step if is_running(trainer) else step - 1


def logged_sums(trainer: pl.Trainer) -> list[dict[str, Any]]:
    """Returns what this rank has logged in the running epoch, one dict per key: how it was logged, and its sums."""
    entries = []
    for result in _results(trainer).result_metrics:
        if result.has_reset:
            continue
        meta = result.meta
        how = {
            "fx": meta.fx,
            "name": meta.name,
            "prog_bar": meta.prog_bar,
            "logger": meta.logger,
            "on_step": meta.on_step,
            "on_epoch": meta.on_epoch,
            "reduce_fx": meta.reduce_fx.__name__,
            "metric_attribute": meta.metric_attribute,
            "sync_dist": meta.sync.should,
            "rank_zero_only": meta.sync.rank_zero_only,
        }
        sums = {name: _on_cpu(getattr(result, name)) for name in result._defaults}
        entries.append({"how": how, "sums": sums})
    return entries


def restore_sums(trainer: pl.Trainer, pl_module: pl.LightningModule, entries: list[dict[str, Any]]) -> None:
    """Restores what `logged_sums` returned, before the first batch of the rest of the epoch; on all ranks."""
    results = _results(trainer)
    for entry in entries:
        how = {**entry["how"], "reduce_fx": getattr(torch, entry["how"]["reduce_fx"])}
        attribute = how["metric_attribute"]
        value = torch.zeros(()) if attribute is None else pl_module.get_submodule(attribute)
        results.log(value=value, sync_dist_fn=trainer.strategy.reduce, batch_size=1, **how)
        for name, total in entry["sums"].items():
            setattr(results[f"{how['fx']}.{how['name']}"], name, total.to(pl_module.device))
    # Otherwise the first batch counts as the first of the epoch, which resets all sums; None means "no batch yet".
    trainer._logger_connector._first_loop_iter = True


def metric_states(module: nn.Module) -> dict[str, dict[str, Any]]:
    """Returns the states of the module's torchmetrics that have been updated, by their names."""
    updated = ((name, m) for name, m in module.named_modules() if isinstance(m, Metric) and m.update_called)
    return {
        name: {"updates": m._update_count, "states": {key: _on_cpu(getattr(m, key)) for key in m._defaults}}
        for name, m in updated
    }


def set_metric_states(module: nn.Module, states: dict[str, dict[str, Any]]) -> None:
    """Restores what `metric_states` returned."""
    for name, state in states.items():
        metric = module.get_submodule(name)
        assert isinstance(metric, Metric)
        metric._update_count, metric._computed = state["updates"], None
        for key, value in state["states"].items():
            setattr(metric, key, _to(value, metric.device))


def _results(trainer: pl.Trainer) -> Any:  # noqa: ANN401 - a private class of Lightning
    return trainer.fit_loop.epoch_loop._results


def _on_cpu(value: Any) -> Any:  # noqa: ANN401 - a tensor or a list of them
    return _to(value, torch.device("cpu"))


def _to(value: Any, device: torch.device) -> Any:  # noqa: ANN401 - a tensor or a list of them
    return value.detach().to(device) if isinstance(value, Tensor) else [part.detach().to(device) for part in value]

"""Means of an epoch over samples and ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from netprism.distributed import all_gather_object, this_rank


class EpochMeans:
    """Means of named values over all samples of an epoch and of all ranks.

    Lightning's own mean over ranks is wrong where they have seen different numbers of samples (2.6.6).
    """

    def __init__(self) -> None:
        self._keys: list[str] = []
        self._sums: Tensor | None = None  # of this rank: value * samples of every key, and samples

    def add(self, values: Mapping[str, Tensor], samples: int) -> None:
        """Adds the means of some samples: the same keys in every call."""
        means = list(values.values())
        sums = torch.stack([*means, torch.ones_like(means[0])]) * samples
        self._keys = list(values)
        self._sums = sums if self._sums is None else self._sums.to(sums) + sums

    def pop(self, trainer: pl.Trainer) -> dict[str, Tensor]:
        """Returns the means so far and forgets them; empty if there is none. All ranks have to call it."""
        sums, self._sums = self._sums, None
        if sums is None:
            return {}
        sums = trainer.strategy.reduce(sums, reduce_op="sum")
        return dict(zip(self._keys, sums[:-1] / sums[-1], strict=True))

    def state_dict(self) -> dict[str, Any]:
        """The sums of all ranks. All ranks have to call it."""
        return {"keys": self._keys, "sums": all_gather_object(None if self._sums is None else self._sums.cpu())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues with this rank's sums."""
        self._keys, self._sums = state["keys"], this_rank(state["sums"])

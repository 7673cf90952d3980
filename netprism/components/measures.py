"""Feature components of complexity order l: how much of a feature so many ReLUs make, and what it is good for.

A disentangler net with l ReLUs mimics a feature f: Phi^(l). The component of order l is what it adds to the next
shallower one, `c^(l) = Phi^(l) - Phi^(l')`, so that f = c^(l1) + ... + c^(lL) + rest.

Source: "Disentanglement, Visualization and Analysis of Complex Features in DNNs", section 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from netprism.components.coalitions import Head, coalition_losses, is_affine, summed_losses
from netprism.components.shapley import EXACT_PLAYERS, all_coalitions, shapley_values
from netprism.components.variance import Moments

_ROUNDING = (4 * torch.finfo(torch.float32).eps) ** 2  # variance over squared mean of what float32 takes for equal


def components(approximations: Sequence[Tensor]) -> list[Tensor]:
    """Phi^(l) of rising order, each `(N, ...)`, to c^(l): the first one, and the differences of neighbours (eq. 2)."""
    return [phi if i == 0 else phi - approximations[i - 1] for i, phi in enumerate(approximations)]


def significance(approximations: Sequence[Tensor], feature: Tensor) -> Tensor:
    """rho^(l) = Var[c^(l)] / Var[f], with Var[c] = E||c - E c||^2.

    Args:
        approximations: Phi^(l) of rising order, each `(N, ...)` as the feature.
        feature: f, `(N, ...)`.

    Returns:
        `(L,)` float64, each >= 0. They need not sum up to 1: components may be correlated.

    Raises:
        ValueError: f is the same for all N samples, or something is not finite.

    Example:
        >>> f = torch.tensor([[-2.0], [2.0]])
        >>> significance([0.5 * f, 0.75 * f], f).tolist()
        [0.25, 0.0625]

    Source: section 3.1.
    """
    *parts, whole = (_moments(tensor) for tensor in (*components(approximations), feature))
    return torch.tensor([part.total_variance for part in parts], dtype=torch.float64) / _variance(whole)


@dataclass(frozen=True)
class Components:
    """What the components of a feature are over a set of samples; each tuple has one number an order.

    Attributes:
        orders: l, rising.
        samples: how many.
        significance: Var[c^(l)] / Var[f].
        unexplained: E||f - Phi^(l)||^2 / Var[f]; 0 where Phi^(l) is f, 1 where it is no better than the mean of f.
        variance: Var[c^(l)], in squared units of the feature.
        contribution: phi^(l), the Shapley value of c^(l) in the fall of the task loss, nats; None without labels.
        loss: mean cross-entropy of head(Phi^(l)), nats; None without labels.
        accuracy: share of samples that head(Phi^(l)) classifies rightly; None without labels.
        feature_variance: Var[f].
        rest_significance: Var[f - Phi^(L)] / Var[f].
        feature_loss: mean cross-entropy of head(f), nats; None without labels.
        feature_accuracy: share that head(f) classifies rightly; None without labels.
        gain: v(all), how much all components together lower the loss of head(rest), nats; None without labels.
    """

    orders: tuple[int, ...]
    samples: int
    significance: tuple[float, ...]
    unexplained: tuple[float, ...]
    variance: tuple[float, ...]
    feature_variance: float
    rest_significance: float
    contribution: tuple[float, ...] | None = None
    loss: tuple[float, ...] | None = None
    accuracy: tuple[float, ...] | None = None
    feature_loss: float | None = None
    feature_accuracy: float | None = None
    gain: float | None = None

    @property
    def effectiveness(self) -> tuple[float, ...] | None:
        """alpha_effective^(l) = phi^(l) / sqrt(Var[c^(l)]), nats per unit of the feature; 0 where c^(l) is constant."""
        if self.contribution is None:
            return None
        return tuple(
            phi / math.sqrt(var) if var > 0 else 0.0 for phi, var in zip(self.contribution, self.variance, strict=True)
        )


def overfitting(train: Components, test: Components) -> tuple[float, ...]:
    """alpha_overfit^(l) = (phi_train^(l) - phi_test^(l)) / phi_train^(l).

    The difference is the Shapley value of the gap between test and training loss, since Shapley values are linear in
    the game. 0: the component is as good on new samples; 1: it is no good there. Where phi_train is negative, the
    component raises the loss, and the ratio has no such meaning. Where it is 0 the ratio is said to be 0.

    Raises:
        ValueError: one of the two was measured without labels.
    """
    if train.contribution is None or test.contribution is None:
        raise ValueError("over-fitting needs the labels of training and of test samples")
    return tuple((a - b) / a if a != 0 else 0.0 for a, b in zip(train.contribution, test.contribution, strict=True))


def quantities(found: Mapping[str, Components]) -> dict[str, float]:
    """All numbers by the names under which they are logged.

    Args:
        found: "train", "test" or both -> components.

    Returns:
        `<quantity>/<order>` and, of the feature as a whole, `<quantity>`; of test samples with `test_` before. What was
        not measured for want of labels is left out; `overfitting/<order>` needs both splits.
    """
    values: dict[str, float] = {}
    for split, prefix in (("train", ""), ("test", "test_")):
        if split in found:
            components = found[split]
            for key in ("significance", "unexplained", "contribution", "effectiveness", "loss", "accuracy"):
                of_orders = zip(components.orders, getattr(components, key) or (), strict=False)
                values |= {f"{prefix}{key}/{order}": value for order, value in of_orders}
            for key in ("rest_significance", "gain", "feature_loss", "feature_accuracy"):
                if (value := getattr(components, key)) is not None:
                    values[f"{prefix}{key}"] = value
    if len(found) == 2 and all(components.contribution is not None for components in found.values()):
        excess = overfitting(found["train"], found["test"])
        values |= {f"overfitting/{order}": value for order, value in zip(found["train"].orders, excess, strict=True)}
    return values


class ComponentMetric:
    """Measures `Components` of samples that come in batches, on one process or many.

    Nothing is kept but moments, 16 bytes a feature dimension for each order, and 2^L + 2 L + 2 sums.

    Args:
        orders: l, rising; up to 12 with labels.

    Raises:
        ValueError: more orders than that, in `update` with labels.
    """

    def __init__(self, orders: Sequence[int]) -> None:
        self.orders = tuple(orders)
        self._feature, self._rest = Moments(), Moments()
        self._parts = [Moments() for _ in self.orders]
        self._errors = torch.zeros(len(self.orders), dtype=torch.float64)
        self._coalitions = torch.zeros(2 ** min(len(self.orders), EXACT_PLAYERS), dtype=torch.float64)
        self._replaced = torch.zeros(len(self.orders) + 1, 2, dtype=torch.float64)  # Phi^(l) and f: loss, hits
        self._labelled = 0
        self._affine: bool | None = None

    @torch.no_grad()
    def update(
        self,
        feature: Tensor,
        approximations: Sequence[Tensor],
        head: Head | None = None,
        labels: Tensor | None = None,
    ) -> None:
        """Adds samples: f and Phi^(l) of rising order, each `(N, ...)`; for the task, the head and labels `(N,)`."""
        parts = components(approximations)
        rest = feature - approximations[-1]
        for moments, tensor in zip((self._feature, self._rest, *self._parts), (feature, rest, *parts), strict=True):
            moments.update(tensor)
        for i, phi in enumerate(approximations):
            self._errors[i] += (feature - phi).double().square().sum().cpu()
        if head is None or labels is None or len(labels) == 0:
            return
        if len(parts) > EXACT_PLAYERS:
            raise ValueError(f"{len(parts)} orders: contributions to the loss are exact, for up to {EXACT_PLAYERS}")
        if self._affine is None:
            self._affine = is_affine(head, feature)
        members = all_coalitions(len(parts)).to(feature.device)
        self._coalitions += coalition_losses(head, parts, rest, labels, members, self._affine).cpu()
        for i, tensor in enumerate((*approximations, feature)):
            logits = head(tensor)
            hits = (logits.argmax(1) == labels).sum()
            self._replaced[i] += torch.stack([summed_losses(logits[None], labels)[0], hits.double()]).cpu()
        self._labelled += len(labels)

    def all_reduce(self) -> None:
        """Adds what all other processes have seen; each has to call it. The result is the same on all."""
        for moments in (self._feature, self._rest, *self._parts):
            moments.all_reduce()
        if dist.is_available() and dist.is_initialized():
            sums = (self._errors, self._coalitions, self._replaced, self._labelled)
            gathered: list[tuple[Tensor, Tensor, Tensor, int] | None] = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, sums)
            several = zip(*[entry for entry in gathered if entry is not None], strict=True)
            # in the order of the ranks, so that all round alike
            self._errors, self._coalitions, self._replaced, self._labelled = (sum(values) for values in several)

    def compute(self) -> Components:
        """The components of all samples seen.

        Raises:
            ValueError: no samples, the same feature for all of them, or values that are not finite.
        """
        samples, total = self._feature.count, _variance(self._feature)
        variance = tuple(moments.total_variance for moments in self._parts)
        return Components(
            orders=self.orders,
            samples=samples,
            significance=tuple(var / total for var in variance),
            unexplained=tuple((self._errors / samples / total).tolist()),
            variance=variance,
            feature_variance=total,
            rest_significance=self._rest.total_variance / total,
            **self._task(),
        )

    def _task(self) -> dict[str, Any]:
        """What needs labels."""
        if not self._labelled:
            return {}
        gains = (self._coalitions[0] - self._coalitions) / self._labelled
        loss, accuracy = (self._replaced / self._labelled).T.tolist()
        return {
            "contribution": tuple(shapley_values(lambda members: gains, len(self.orders)).tolist()),
            "gain": float(gains[-1]),
            "loss": tuple(loss[:-1]),
            "accuracy": tuple(accuracy[:-1]),
            "feature_loss": loss[-1],
            "feature_accuracy": accuracy[-1],
        }


def _moments(batch: Tensor) -> Moments:
    moments = Moments()
    moments.update(batch)
    return moments


def _variance(feature: Moments) -> float:
    """Var[f], which has to be more than rounding makes of a constant."""
    variance = feature.total_variance
    if variance <= _ROUNDING * float(feature.mean.square().sum()):
        raise ValueError(f"the feature is the same for all {feature.count} samples: its variance is 0")
    return variance

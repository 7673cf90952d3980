"""Feature components of complexity order l: how much of a feature l ReLUs can make, and what that part is good for.

A disentangler net with l ReLUs mimics a feature f: Phi^(l). The component of order l is what it adds to the next
shallower one, `c^(l) = Phi^(l) - Phi^(l')`, so that f = c^(l1) + ... + c^(lL) + rest.

Source: Ren et al. 2020, section 3, https://arxiv.org/abs/2006.15920.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from netprism.checks import check_tensor
from netprism.components.covariance import Covariance
from netprism.components.shapley import shapley_values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def components(approximations: Sequence[Tensor]) -> list[Tensor]:
    """Returns c^(l) for Phi^(l) of rising order, each `(N, ...)`: the first one, and the differences of neighbours.

    Raises:
        ValueError: The shapes differ.

    Source: Ren et al. 2020, eq. (2), https://arxiv.org/abs/2006.15920.
    """
    for phi in approximations:
        if phi.shape != approximations[0].shape:
            shapes = f"{tuple(approximations[0].shape)} and {tuple(phi.shape)}"
            raise ValueError(f"shapes of approximations are {shapes}; expected the same of all")
    return [phi if i == 0 else phi - approximations[i - 1] for i, phi in enumerate(approximations)]


def significance(approximations: Sequence[Tensor], feature: Tensor) -> Tensor:
    """Returns rho^(l) = Var[c^(l)] / Var[f], with Var[c] = E||c - E c||^2.

    Args:
        approximations: Tensors Phi^(l) of rising order, each `(N, ...)` as the feature.
        feature: Tensor f, `(N, ...)`.

    Returns:
        `(L,)` in float64, each >= 0. They need not sum to 1: components may be correlated.

    Raises:
        TypeError: f is not floating.
        ValueError: f is the same for all N samples, a value is not finite, or there is no approximation of its shape.

    Example:
        >>> f = torch.tensor([[-2.0], [2.0]])
        >>> significance([0.5 * f, 0.75 * f], f).tolist()
        [0.25, 0.0625]

    Source: Ren et al. 2020, section 3.1, https://arxiv.org/abs/2006.15920.
    """
    check_tensor("feature", feature)
    _check_shapes(feature, approximations)
    covariance = Covariance.of(torch.stack([feature, *components(approximations)], dim=1))
    return covariance.within.diagonal()[1:] / covariance.variance(slice(0, 1))


@dataclass(frozen=True)
class Components:
    """The components of a feature over a set of samples; each tuple has one number per order.

    Attributes:
        orders: The orders l, rising.
        samples: Number of samples.
        significance: Var[c^(l)] / Var[f].
        unexplained: E||f - Phi^(l)||^2 / Var[f]; 0 where Phi^(l) is f, 1 where it is no better than the mean of f.
        variance: Var[c^(l)], in squared units of the feature.
        feature_variance: Var[f].
        rest_significance: Var[f - Phi^(L)] / Var[f].
        contribution: phi^(l), the Shapley value of c^(l) in the decrease of the task loss, nats; None without labels.
        loss: Mean cross-entropy of head(Phi^(l)), nats; None without labels.
        accuracy: Fraction of samples that head(Phi^(l)) classifies correctly; None without labels.
        feature_loss: Mean cross-entropy of head(f), nats; None without labels.
        feature_accuracy: Fraction of samples that head(f) classifies correctly; None without labels.
        gain: v(all), by how much all components together lower the loss of head(rest), nats; None without labels.
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

    def plot(self) -> tuple[Figure, list[Axes]]:
        """Returns a figure with each measure over the orders, and its panels."""
        from netprism.plots import plot_numbers

        return plot_numbers({"components": quantities({"train": self})})


def components_of_sums(orders: Sequence[int], covariance: Covariance, task: Tensor | None = None) -> Components:
    """Returns all measures of a feature's components from sums over the samples.

    Args:
        orders: L orders l, rising.
        covariance: Covariance of 2 L + 1 channels, as `measured_parts` stacks them.
        task: Sums over samples with labels, `(1 + 2^L + 2 (L + 1),)`: their number; the cross-entropies of the head on
            the rest and the components of each coalition; those on each Phi^(l) and on f; and how many samples are
            then classified correctly. None without labels.

    Raises:
        ValueError: The feature is the same for all samples, or a value is not finite.
    """
    count, total = len(orders), covariance.variance(slice(0, 1))
    _, parts, errors = covariance.within.diagonal().split([1, count, count])
    offsets = covariance.mean[1 + count :].square().sum(dim=1)
    found = Components(
        orders=tuple(orders),
        samples=covariance.count,
        significance=tuple((parts / total).tolist()),
        unexplained=tuple(((errors + offsets) / total).tolist()),
        variance=tuple(parts.tolist()),
        feature_variance=total,
        rest_significance=float(errors[-1]) / total,
    )
    if task is None:
        return found
    coalitions, losses, hits = (task[1:] / task[0]).cpu().split([2**count, count + 1, count + 1])
    gains = coalitions[0] - coalitions
    (*loss, feature_loss), (*accuracy, feature_accuracy) = losses.tolist(), hits.tolist()
    return replace(
        found,
        contribution=tuple(shapley_values(lambda members: gains, count).tolist()),
        gain=float(gains[-1]),
        loss=tuple(loss),
        accuracy=tuple(accuracy),
        feature_loss=feature_loss,
        feature_accuracy=feature_accuracy,
    )


def measured_parts(feature: Tensor, approximations: Sequence[Tensor]) -> Tensor:
    """Returns f, c^(l) and f - Phi^(l), all orders of each, side by side: `(N, 2 L + 1, ...)`."""
    _check_shapes(feature, approximations)
    errors = [feature - phi for phi in approximations]
    return torch.stack([feature, *components(approximations), *errors], dim=1)


def _check_shapes(feature: Tensor, approximations: Sequence[Tensor]) -> None:
    if not approximations or any(phi.shape != feature.shape for phi in approximations):
        shapes = ", ".join(str(tuple(phi.shape)) for phi in approximations)
        raise ValueError(
            f"shapes of approximations are {shapes or 'none'}; expected one or more {tuple(feature.shape)}"
        )


def overfitting(train: Components, test: Components) -> tuple[float, ...]:
    """Returns alpha_overfit^(l) = (phi_train^(l) - phi_test^(l)) / phi_train^(l).

    The difference is the Shapley value of the gap between test and training loss, since Shapley values are linear in
    the game. 0: the component is as good on new samples; 1: it does not transfer to them. Where phi_train is negative,
    the component raises the loss, and the ratio has no such meaning. The ratio is defined as 0 where phi_train is 0.

    Raises:
        ValueError: One of the two was measured without labels.
    """
    if train.contribution is None or test.contribution is None:
        raise ValueError("contribution is None; expected labels of training and of test samples")
    return tuple((a - b) / a if a != 0 else 0.0 for a, b in zip(train.contribution, test.contribution, strict=True))


def quantities(found: Mapping[str, Components]) -> dict[str, float]:
    """Returns all numbers by the names under which they are logged.

    Args:
        found: Components of "train", "test" or both.

    Returns:
        `<quantity>/<order>` and, of the feature as a whole, `<quantity>`; of test samples with `test/` before. What was
        not measured for want of labels is left out; `overfitting/<order>` needs both splits.
    """
    values: dict[str, float] = {}
    for split, infix in (("train", ""), ("test", "test/")):
        if split in found:
            components = found[split]
            for key in ("significance", "unexplained", "contribution", "effectiveness", "loss", "accuracy"):
                of_orders = zip(components.orders, getattr(components, key) or (), strict=False)
                values |= {f"{infix}{key}/{order}": value for order, value in of_orders}
            for key in ("rest_significance", "gain", "feature_loss", "feature_accuracy"):
                if (value := getattr(components, key)) is not None:
                    values[f"{infix}{key}"] = value
    if len(found) == 2 and all(components.contribution is not None for components in found.values()):
        excess = overfitting(found["train"], found["test"])
        values |= {f"overfitting/{order}": value for order, value in zip(found["train"].orders, excess, strict=True)}
    return values

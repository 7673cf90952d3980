"""How much of a feature's variance is reliable, order by order: all from the covariance of psi, Phi and f together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from netprism.components.covariance import Covariance, variance_of
from netprism.components.reliability import reliable_readouts, round_trips

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Terms = tuple[tuple[slice, Tensor], ...]  # a sum of linear maps of some channels each


@dataclass(frozen=True)
class Reliability:
    """How much of a feature's components other networks share; each tuple has one entry per order.

    Variances are summed over feature dimensions, in squared units of the feature. The component of an order is what is
    new at it: the difference to the next shallower order, at the first order all of it.

    Attributes:
        orders: The orders l, rising.
        samples: Number of samples.
        feature: Var[f].
        by_round: For r = 0, ..., R, Var[g(psi_r)] / Var[Phi^(l)], >= 0; 0 where Phi^(l) is constant.
        unexplained: Var[f - g(psi)] / Var[f]: what the wide net misses of the target network's feature.
        component: Var[c^(l)].
        up_to_order: Var[Phi^(l)].
        reliable_component: Var[Phi^(l),reli - Phi^(l'),reli].
        reliable_up_to_order: Var[Phi^(l),reli].
        unreliable_component: Var[Phi^(l),unreli - Phi^(l'),unreli].
        unreliable_up_to_order: Var[Phi^(l),unreli], Phi^(l),unreli = Phi^(l) - Phi^(l),reli.
        weights: Tensor `(L, c, d)` in float64, with `biases` what makes Phi^(l),reli of psi.
        biases: Tensor `(L, c)` in float64.
    """

    orders: tuple[int, ...]
    samples: int
    feature: float
    by_round: tuple[tuple[float, ...], ...]
    unexplained: tuple[float, ...]
    component: tuple[float, ...]
    up_to_order: tuple[float, ...]
    reliable_component: tuple[float, ...]
    reliable_up_to_order: tuple[float, ...]
    unreliable_component: tuple[float, ...]
    unreliable_up_to_order: tuple[float, ...]
    weights: Tensor
    biases: Tensor

    @property
    def reliability(self) -> tuple[float, ...]:
        """rho^(l),reli = Var[Phi^(l),reli] / Var[Phi^(l)], >= 0; above 1 where g(psi) varies more than Phi^(l)."""
        return tuple(values[-1] for values in self.by_round)

    @property
    def reliable_significance(self) -> tuple[float, ...]:
        """Var[Phi^(l),reli - Phi^(l'),reli] / Var[f]."""
        return tuple(value / self.feature for value in self.reliable_component)

    @property
    def unreliable_significance(self) -> tuple[float, ...]:
        """Var[Phi^(l),unreli - Phi^(l'),unreli] / Var[f]."""
        return tuple(value / self.feature for value in self.unreliable_component)

    @property
    def rows(self) -> list[dict[str, float]]:
        """A row per order, with the columns that `netprism.components.regressor.component_ratios` reads."""
        return [
            {
                "order": order,
                "var_feature": self.feature,
                "var_component": self.component[i],
                "var_up_to_order": self.up_to_order[i],
                "var_reliable_component": self.reliable_component[i],
                "var_reliable_up_to_order": self.reliable_up_to_order[i],
                "var_unreliable_component": self.unreliable_component[i],
                "var_unreliable_up_to_order": self.unreliable_up_to_order[i],
                "reliability": self.reliability[i],
                "unexplained": self.unexplained[i],
            }
            for i, order in enumerate(self.orders)
        ]

    @property
    def quantities(self) -> dict[str, float]:
        """The numbers that are logged: `<quantity>/<order>`, and of two of them the mean over orders."""
        names = ("reliability", "reliable_significance", "unreliable_significance", "unexplained")
        values = {
            f"{name}/{order}": value
            for name in names
            for order, value in zip(self.orders, getattr(self, name), strict=True)
        }
        means = {name: sum(getattr(self, name)) / len(self.orders) for name in ("reliability", "unexplained")}
        return values | means

    def plot(self) -> tuple[Figure, list[Axes]]:
        """Returns a figure with reliability, reliable and unreliable significance over the orders, and its panels."""
        from netprism.plots import plot_numbers

        return plot_numbers({"reliability": self.quantities})


def reliability_of_covariance(
    covariance: Covariance,
    orders: Sequence[int],
    readouts: Sequence[Sequence[Tensor]],
    rounds: int = 10,
    refit: bool = True,
) -> Reliability:
    """Returns the reliability that follows from the covariance of all features together.

    Args:
        covariance: Covariance of these channels, side by side: psi^(l) of each order, Phi^(l) of each order, and f.
        orders: The L orders l, rising.
        readouts: For each order g_k, `(c_k, d)` each, the target's first.
        rounds: Number of round trips R.
        refit: See `netprism.components.reliability.round_trips`.

    Raises:
        ValueError: The feature is the same for all samples, or a value is not finite.
    """
    target = len(readouts[0][0])
    widths = [of_order[0].shape[1] for of_order in readouts] + [target] * (len(orders) + 1)
    slices = [slice(end - width, end) for end, width in zip(accumulate(widths), widths, strict=True)]
    psis, phis, f = slices[: len(orders)], slices[len(orders) : -1], slices[-1]

    feature, within, pooled = covariance.variance(f), covariance.within, covariance.pooled
    # For each order, the target's g after 0 to R round trips, (R + 1, c, d).
    trips = [round_trips(pooled[psi, psi], gs, rounds, refit) for psi, gs in zip(psis, readouts, strict=True)]
    chains = [reliable_readouts(gs, of_order)[0] for gs, of_order in zip(readouts, trips, strict=True)]
    # What the round trips take from the mean of g(psi), to be put back.
    means = [covariance.mean[psi].mean(dim=1) for psi in psis]
    biases = [(chain[0] - chain[-1]) @ mean for chain, mean in zip(chains, means, strict=True)]

    one = torch.eye(target).to(within)
    phi: list[Terms] = [((channels, one),) for channels in phis]
    reliable: list[Terms] = [((psi, chain[-1]),) for psi, chain in zip(psis, chains, strict=True)]
    unreliable = [(*whole, *_minus(part)) for whole, part in zip(phi, reliable, strict=True)]
    missed: list[Terms] = [((f, one), (psi, -chain[0])) for psi, chain in zip(psis, chains, strict=True)]

    def variances(parts: Sequence[Terms]) -> tuple[float, ...]:
        return tuple(variance_of(within, *terms) for terms in parts)

    up_to_order = variances(phi)
    return Reliability(
        orders=tuple(orders),
        samples=covariance.count,
        feature=feature,
        by_round=tuple(
            tuple(value / whole if whole > 0 else 0.0 for value in variances([((psi, g),) for g in chain]))
            for psi, chain, whole in zip(psis, chains, up_to_order, strict=True)
        ),
        unexplained=tuple(value / feature for value in variances(missed)),
        component=variances(_new(phi)),
        up_to_order=up_to_order,
        reliable_component=variances(_new(reliable)),
        reliable_up_to_order=variances(reliable),
        unreliable_component=variances(_new(unreliable)),
        unreliable_up_to_order=variances(unreliable),
        weights=torch.stack([chain[-1] for chain in chains]),
        biases=torch.stack(biases),
    )


def _minus(terms: Terms) -> Terms:
    return tuple((channels, -matrix) for channels, matrix in terms)


def _new(parts: Sequence[Terms]) -> list[Terms]:
    """What each part adds to the one before it."""
    return [terms if i == 0 else (*terms, *_minus(parts[i - 1])) for i, terms in enumerate(parts)]

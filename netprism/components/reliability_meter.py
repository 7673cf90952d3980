"""Reliable and unreliable components of a feature, over samples that come in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from netprism.components.covariance import Covariance, variance_of
from netprism.components.reliability import reliable_heads, round_trips

Terms = tuple[tuple[slice, Tensor], ...]  # a sum of linear maps of some channels each

_ROUNDING = (4 * torch.finfo(torch.float32).eps) ** 2  # variance over squared mean of what float32 takes for equal


@dataclass(frozen=True)
class Reliability:
    """How much of a feature's components other networks share; each tuple has one entry an order.

    Variances are summed over feature dimensions, in squared units of the feature. The component of an order is what is
    new at it: the difference to the next shallower order, at the first order all of it.

    Attributes:
        orders: l, rising.
        samples: how many.
        feature: Var[f].
        by_round: for r = 0, ..., R, Var[g(psi_r)] / Var[Phi^(l)], >= 0; 0 where Phi^(l) is constant.
        unexplained: Var[f - g(psi)] / Var[f]: what the wide net misses of the target network's feature.
        component: Var[c^(l)].
        up_to_order: Var[Phi^(l)].
        reliable_component: Var[Phi^(l),reli - Phi^(l'),reli].
        reliable_up_to_order: Var[Phi^(l),reli].
        unreliable_component: Var[Phi^(l),unreli - Phi^(l'),unreli].
        unreliable_up_to_order: Var[Phi^(l),unreli], Phi^(l),unreli = Phi^(l) - Phi^(l),reli.
        weights: `(L, c, d)` float64, with `biases` what makes Phi^(l),reli of psi.
        biases: `(L, c)` float64.
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
    def rows(self) -> list[dict[str, float]]:
        """A row an order, with the columns that `netprism.components.regressor.component_ratios` reads."""
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


class ReliabilityMetric:
    """Measures `Reliability` in one pass: all of it follows from the covariance of psi, Phi and f together.

    The target is the first network. Cost: D^2 multiply-adds a sample and position, D = L (d + c) + c channels for L
    orders, psi of d and a target of c channels. Memory: 8 D^2 bytes, 100 MB at L = 6, d = 512, c = 64.

    Args:
        orders: l, rising.
        heads: for each order g_k, `(c_k, d)` each, the target's first.
        rounds: R.
        refit: see `netprism.components.reliability.round_trips`.
        trips: for each order the round trips `(R, d, d)` where they are learned; None: in closed form from the samples.
    """

    def __init__(
        self,
        orders: Sequence[int],
        heads: Sequence[Sequence[Tensor]],
        rounds: int = 10,
        refit: bool = False,
        trips: Sequence[Tensor] | None = None,
    ) -> None:
        self.orders, self.heads, self.trips = tuple(orders), heads, trips
        self.rounds, self.refit = rounds, refit
        self._together = Covariance()
        target = len(heads[0][0])
        widths = [of_order[0].shape[1] for of_order in heads] + [target] * (len(self.orders) + 1)
        slices = [slice(end - width, end) for end, width in zip(accumulate(widths), widths, strict=True)]
        self._psi, self._phi, self._f = slices[: len(orders)], slices[len(orders) : -1], slices[-1]

    def update(self, psi: Sequence[Tensor], approximations: Sequence[Tensor], feature: Tensor) -> None:
        """Adds samples: for each order psi `(N, d, ...)` and Phi^(l) `(N, c, ...)`, and f `(N, c, ...)`."""
        self._together.update(torch.cat([*psi, *approximations, feature], dim=1))

    def all_reduce(self) -> None:
        """Adds what all other processes have seen; each has to call it. The result is the same on all."""
        self._together.all_reduce()

    def compute(self) -> Reliability:
        """The reliability over all samples seen.

        Raises:
            ValueError: no samples, the same feature for all of them, or values that are not finite.
        """
        within = self._together.within
        self._check_feature(within)
        chains = self._chains()
        one = torch.eye(self._f.stop - self._f.start).to(within)
        phi: list[Terms] = [((channels, one),) for channels in self._phi]
        reliable: list[Terms] = [((own, chain[-1]),) for own, chain in zip(self._psi, chains, strict=True)]
        unreliable = [(*whole, *_minus(part)) for whole, part in zip(phi, reliable, strict=True)]

        def variances(parts: Sequence[Terms]) -> tuple[float, ...]:
            return tuple(variance_of(within, *terms) for terms in parts)

        feature, up_to_order = variance_of(within, (self._f, one)), variances(phi)
        missed = variances([((self._f, one), (own, -c[0])) for own, c in zip(self._psi, chains, strict=True)])
        return Reliability(
            orders=self.orders,
            samples=self._together.count,
            feature=feature,
            by_round=tuple(
                tuple(value / whole if whole > 0 else 0.0 for value in variances([((own, g),) for g in chain]))
                for own, chain, whole in zip(self._psi, chains, up_to_order, strict=True)
            ),
            unexplained=tuple(value / feature for value in missed),
            component=variances(_new(phi)),
            up_to_order=up_to_order,
            reliable_component=variances(_new(reliable)),
            reliable_up_to_order=variances(reliable),
            unreliable_component=variances(_new(unreliable)),
            unreliable_up_to_order=variances(unreliable),
            weights=torch.stack([chain[-1] for chain in chains]),
            biases=torch.stack([self._kept_mean(own, chain) for own, chain in zip(self._psi, chains, strict=True)]),
        )

    def _chains(self) -> list[Tensor]:
        """For each order g after 0 to R round trips, `(R + 1, c, d)`."""
        pooled = self._together.pooled
        chains = []
        for i, (channels, heads) in enumerate(zip(self._psi, self.heads, strict=True)):
            if self.trips is None:
                trips = round_trips(pooled[channels, channels], heads, self.rounds, self.refit)
            else:
                trips = self.trips[i].to(pooled)
            chains.append(reliable_heads(heads, trips)[0])
        return chains

    def _kept_mean(self, channels: slice, chain: Tensor) -> Tensor:
        """What the round trips take from the mean of g(psi), to be put back."""
        return (chain[0] - chain[-1]) @ self._together.mean[channels].mean(dim=1)

    def _check_feature(self, within: Tensor) -> None:
        variance, mean = within[self._f, self._f].trace(), self._together.mean[self._f]
        if variance <= _ROUNDING * mean.square().sum():
            raise ValueError(f"the feature is the same for all {self._together.count} samples: its variance is 0")


def _minus(terms: Terms) -> Terms:
    return tuple((channels, -matrix) for channels, matrix in terms)


def _new(parts: Sequence[Terms]) -> list[Terms]:
    """What each part adds to the one before it."""
    return [terms if i == 0 else (*terms, *_minus(parts[i - 1])) for i, terms in enumerate(parts)]

"""The covariance of samples that come in batches and on several ranks: the state of several metrics."""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from netprism.components.covariance import Covariance


class CovarianceState(Metric):
    """A metric whose state is the `Covariance` of all samples seen, at most one per rank.

    A subclass calls `add` in `update` and `total` in `compute`. Each rank merges its batches as they come; `compute`
    gathers what the ranks have and merges it in their order, so that the result is bitwise the same on each of them.
    A rank without samples takes part.

    Args:
        options: Options of `torchmetrics.Metric`.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = None
    sizes: list[Tensor]
    means: list[Tensor]
    products: list[Tensor]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # Lists, since the shapes are unknown before the first sample; flat, since torchmetrics gathers tensors of one
        # number of dimensions alone, and an empty one for a rank without samples.
        for state in ("sizes", "means", "products"):  # sizes: samples, channels, positions
            self.add_state(state, default=[], dist_reduce_fx="cat")

    @property
    def dtype(self) -> torch.dtype:
        """Type of the empty state that a rank without samples sends."""
        return torch.float64

    @property
    def update_called(self) -> bool:
        """Keeps torchmetrics from warning on a rank without samples; `total` raises where no rank has one."""
        return True

    def plot(self, val: Any = None, ax: Any = None) -> Any:  # noqa: ANN401 - matplotlib's
        """Draws the values of `compute`, or given ones, as `torchmetrics.Metric.plot` describes."""
        return self._plot(val, ax)

    def add(self, samples: Tensor) -> None:
        """Adds samples `(N, C, ...)`, N >= 0, all of one shape.

        Raises:
            ValueError: The samples have no channels, or another shape than before.
        """
        if len(samples) == 0:
            return
        covariance = Covariance.of(samples)
        if self.sizes:
            covariance = self.total().merge(covariance)
        self.sizes = [covariance.mean.new_tensor([covariance.count, *covariance.mean.shape])]
        self.means, self.products = [covariance.mean.flatten()], [covariance.products.flatten()]

    def total(self) -> Covariance:
        """Returns the covariance of the samples in the state: within `compute`, those of all ranks.

        Raises:
            ValueError: There are no samples, or ranks have samples of different shapes.
        """
        sizes = dim_zero_cat(self.sizes).long().view(-1, 3).tolist() if len(self.sizes) else []
        if not sizes:
            raise ValueError("the number of samples is 0; expected a number >= 1")
        means = dim_zero_cat(self.means).split([channels * positions for _, channels, positions in sizes])
        products = dim_zero_cat(self.products).split([channels**2 for _, channels, _ in sizes])
        parts = zip(sizes, means, products, strict=True)
        return reduce(
            Covariance.merge,
            (Covariance(n, mean.view(c, p), product.view(c, c)) for (n, c, p), mean, product in parts),
        )


class CovarianceMetric(CovarianceState):
    """The covariance of channels over all samples of all ranks, see `netprism.components.covariance.Covariance`.

    Example:
        >>> metric = CovarianceMetric()
        >>> metric.update(torch.tensor([[1.0, 0.0], [3.0, 2.0]]))
        >>> metric.update(torch.tensor([[2.0, 1.0]]))
        >>> metric.compute()["within"].round(decimals=3).tolist()
        [[0.667, 0.667], [0.667, 0.667]]
    """

    def update(self, samples: Tensor) -> None:
        """Adds samples `(N, C, ...)`, N >= 0, all of one shape.

        Raises:
            ValueError: The samples have no channels, or another shape than before.
        """
        self.add(samples)

    def compute(self) -> dict[str, Tensor]:
        """Returns `mean`, `within` and `pooled` of a `Covariance`, in float64.

        Raises:
            ValueError: There are no samples, or one is not finite.
        """
        total = self.total()
        return {"mean": total.mean, "within": total.within, "pooled": total.pooled}

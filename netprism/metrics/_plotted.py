"""`plot()` of metrics whose numbers are per layer, or per order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torchmetrics import Metric

from netprism.plots import plot_numbers


class PlottedMetric(Metric):
    """A metric whose `compute` returns `{"<quantity>/<layer>": number}`, and a figure of it."""

    def plot(self, val: Any = None, ax: Axes | None = None) -> tuple[Figure, list[Axes]]:  # noqa: ANN401 - torchmetrics'
        """Draws each quantity over the layers, or over the orders; numbers of the whole network are left out.

        Args:
            val: What `compute` or `forward` has returned; None to compute it. Several results by name are drawn over
                one another.
            ax: Refused: a quantity has a panel of its own.

        Returns:
            The figure, and one panel per quantity.

        Raises:
            ValueError: `ax` is given, or there is no number of a layer.
        """
        if ax is not None:
            raise ValueError("ax is given; expected None, since each quantity has a panel of its own")
        val = self.compute() if val is None else val
        is_many = all(isinstance(each, Mapping) for each in val.values())
        return plot_numbers(val if is_many else {type(self).__name__: val})

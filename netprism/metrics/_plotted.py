"""`plot()` of metrics whose numbers are per layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics import Metric

from netprism.figures.profiles import layer_profiles


class PlottedMetric(Metric):
    """A metric whose `compute` returns `{"<quantity>/<layer>": number}`, and a figure of it."""

    def plot(self, val: Any = None, ax: Axes | None = None) -> tuple[Figure, list[Axes]]:  # noqa: ANN401 - torchmetrics'
        """Draws each quantity over the layers; numbers of the whole network are left out.

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
        runs = val if all(isinstance(each, Mapping) for each in val.values()) else {type(self).__name__: val}
        found: dict[str, dict[str, dict[str, list[float]]]] = {}
        for name, values in runs.items():
            for key, value in values.items():
                quantity, _, layer = key.partition("/")
                is_number = not isinstance(value, Tensor) or value.numel() == 1
                if layer and is_number:
                    found.setdefault(quantity, {}).setdefault(name, {})[layer] = [float(value)]
        if not found:
            raise ValueError(f"{type(self).__name__} has no number of a layer; expected some, from update")
        return layer_profiles(found)

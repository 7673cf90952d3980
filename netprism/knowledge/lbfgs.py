"""L-BFGS for the projections: some hundreds of parameters, and evaluations that cost far more than a step.

torch's own makes 40 to 150 calls of operators per step for its history, which on a GPU take longer than an evaluation.
Here scipy's takes the steps, in float64 on the CPU: an evaluation costs one copy there and one back.

Source: R. H. Byrd, P. Lu, J. Nocedal, C. Zhu, "A Limited Memory Algorithm for Bound Constrained Optimization", 1995,
https://doi.org/10.1137/0916069.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor, nn


class LBFGS(torch.optim.Optimizer):
    """Minimises a function of parameters that all are on one device; all of it in one `step`.

    With several ranks, a closure that returns the same value and the same gradient on each makes the same steps.

    Args:
        parameters: Parameters, in the order in which they lie in a vector.
        steps: Largest number of steps; each takes one evaluation, or two.
        history: Number of past steps that make up the curvature.
        tolerance: The search ends when a step gains less than this, as a fraction where the value is above 1.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], steps: int = 200, *, history: int = 20, tolerance: float = 1e-9
    ) -> None:
        super().__init__(parameters, {"steps": steps, "history": history, "tolerance": tolerance})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor | float]) -> float:  # type: ignore[override]
        """Minimises what the closure returns after it has set the gradients; returns the least value."""
        (group,) = self.param_groups
        parameters: list[nn.Parameter] = group["params"]

        def evaluate(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            self._place(parameters, point)
            with torch.enable_grad():
                value = closure()
            value = float(value.detach() if isinstance(value, Tensor) else value)
            return value, _vector([p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters])

        # gtol: of a function in nats, so small that the tolerance ends the search.
        options = {"maxiter": group["steps"], "maxcor": group["history"], "ftol": group["tolerance"], "gtol": 1e-9}
        found = minimize(evaluate, _vector(parameters), jac=True, method="L-BFGS-B", options=options)
        self._place(parameters, found.x)
        return float(found.fun)

    @staticmethod
    def _place(parameters: list[nn.Parameter], point: NDArray[np.float64]) -> None:
        start = 0
        for p in parameters:
            p.copy_(torch.from_numpy(point[start : start + p.numel()]).view_as(p))
            start += p.numel()


def _vector(tensors: Iterable[Tensor]) -> NDArray[np.float64]:
    """All numbers in a row, a copy."""
    return np.concatenate([t.detach().cpu().numpy().ravel() for t in tensors]).astype(np.float64)

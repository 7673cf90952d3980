"""The complexity loss as its authors ran it, to compare with; nothing else in netprism uses this file.

Two things differ from `netprism.gates.energy` and `netprism.gates.loss`, and each was dropped for a reason:

- the negatives are continuous Langevin steps from the gates of the batch (`langevin`, `LangevinGateEnergy`). A model
  fitted with them misses the distribution by nats (`tests/gates/test_as_published.py`);
- every ReLU of the network becomes `input * sigmoid(beta * input)` while it trains (`swish_relus`), which changes the
  outputs of an existing model. netprism leaves the network as it is, and uses soft gates for the loss alone.

Source: Ren et al. 2022, section 4.3 and appendix J of the first version, https://arxiv.org/abs/2205.01940.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from netprism.gates.energy import GateEnergy
from netprism.gates.sampler import LogProb, value_and_slope


def langevin(
    log_prob: LogProb,
    states: Tensor,
    *,
    steps: int = 5,
    step_size: float = 1e-3,
    clamp: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Makes Langevin steps on states between 0 and 1: s + step_size / 2 * g + sqrt(step_size) * noise.

    Args:
        log_prob: Log-density up to a constant, float `(n, ...)` to `(n,)`, differentiable.
        states: float or bool `(n, ...)`.
        steps: Number of steps; each costs one gradient of `log_prob`.
        step_size: The paper's Delta tau.
        clamp: Keep the states in [0, 1]. Without it, a gate that is nearly always closed sends them to +-80.
        generator: Generator of the noise, on the device of `states`.

    Returns:
        float `(n, ...)`.
    """
    states = states.float()
    for _ in range(steps):
        _, slope = value_and_slope(log_prob, states)
        noise = torch.randn(states.shape, dtype=states.dtype, device=states.device, generator=generator)
        states = states.add(slope, alpha=step_size / 2).add_(noise, alpha=math.sqrt(step_size))
        if clamp:
            states.clamp_(0, 1)
    return states


class LangevinGateEnergy(GateEnergy):
    """An energy model whose negatives are Langevin steps from the gates of the batch.

    Unlike those of `GateEnergy`, its negatives differ between one process and many.

    Args:
        shape: As in `GateEnergy`.
        step_size: The paper's Delta tau.
        options: The other options of `GateEnergy`.
    """

    def __init__(self, shape: tuple[int, ...], *, step_size: float = 1e-3, **options: Any) -> None:
        super().__init__(shape, **options)
        self.step_size = step_size

    def _sample(self, states: Tensor, positions: Tensor | None, unseen: Tensor) -> Tensor:
        generator = torch.Generator(states.device).manual_seed(self._noise_seed(0))

        def log_prob(s: Tensor) -> Tensor:
            return (self.f(s, positions) + self.log_prior(s, positions)).sum(1)

        return langevin(log_prob, states, steps=self.steps, step_size=self.step_size, generator=generator)


class swish_relus(TorchFunctionMode):
    """Replaces every ReLU in the block by input * sigmoid(beta * input), also one in place.

    Enter it before `ComplexityLoss.watch`, which then sees the ReLU first:
    `with swish_relus(beta), loss.watch() as gates: ...`

    Args:
        beta: Steepness, that of the soft gates.

    Raises:
        ValueError: Under activation checkpointing, which would recompute a plain ReLU.
    """

    def __init__(self, beta: float = 100.0) -> None:
        super().__init__()
        self._beta = beta

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name not in ("relu", "relu_"):
            return func(*args, **kwargs)
        if _in_checkpoint():
            raise ValueError("swish_relus does not work with activation checkpointing, which recomputes a plain ReLU")
        x = args[0] if args else kwargs["input"]
        if name == "relu" and not kwargs.get("inplace", len(args) > 1 and args[1]):
            return x * torch.sigmoid(x * self._beta)
        before = x.clone()
        return x.copy_(before * torch.sigmoid(before * self._beta))


def _in_checkpoint() -> bool:
    """Whether non-reentrant checkpointing is tracking saved tensors; torch has no public function for this."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks is not None and getattr(hooks[0], "__module__", "") == "torch.utils.checkpoint"

"""The complexity loss: it penalises the entropy of a network's gates while the network trains.

    L = L_task + weight * sum_l C_l

C_l is one of three estimates of the entropy of layer l's gates, in nats, a mean over the positions of a feature map:

- `prior`: E[-log q(sigma)], q independent gates with their running activation rates. An upper bound.
- `energy`: E[-log p(sigma)], p an energy model that learns beside the network what q misses (`GateEnergy`); the
  published loss. log Z, which the network cannot change, is left out, so the value can be negative, and values of
  different steps compare only roughly.
- `kernel`: the leave-one-out kernel estimate over the batch (`soft_kernel_entropy`); no state. Each rank takes it over
  its own batch.

The gradient reaches the network through soft gates sigmoid(beta * input).

Source: Ren et al. 2022, section 4.3 and appendix J of the first version, https://arxiv.org/abs/2205.01940.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from netprism.gates.energy import LOOKS, WIDTHS, GateEnergy, GatePrior
from netprism.gates.layer_models import LayerModels
from netprism.gates.soft_entropy import CONV_ALPHA, LINEAR_ALPHA, soft_kernel_entropy
from netprism.gates.soft_gates import LayerGates, SoftGates, watch_soft_gates

Estimator = Literal["prior", "energy", "kernel"]
EXPLODED = 1e3  # nats of f per gate; a well-fitted layer stays below 100 in all
PATIENCE = 10  # steps in a row that a layer may be left out, and steps between checks, which wait for a GPU


class ComplexityLoss(nn.Module):
    """The complexity of the gates of a model's layers, with models of them that learn while it is used.

        self.complexity = ComplexityLoss(self.net, layers=-4)            # in __init__

        with self.complexity.watch() as gates:                           # in training_step
            logits = self.net(x)
        loss = cross_entropy(logits, y) + 1e-3 * self.complexity(gates)

    A call first adds the gates seen to the rates, and fits energy models with an Adam of their own; then it returns the
    loss for those gates. The models appear with the first batch, whose gates have the shapes. They are not in
    `parameters()`: no optimiser, gradient clipping, DDP or weight averaging of the network sees them. They are in the
    state dict, with their Adam, rates and chains, and a training that continues from it is bitwise the same.

    The value is a sum over layers and channels and a mean over the positions of a map, so a weight means the same for
    a fully connected layer and for a feature map of as many channels. Each call looks at `positions` random positions
    per map, the same for gates and negatives and on all ranks: value, gradient and fit are unbiased (`kernel` nearly).

    With `torch.distributed` gradients and rates of the models are averaged over all processes, so all must call this
    equally often. Everything here is float32, also under autocast, and no global random number is drawn.

    Several forward passes in one `watch` count as one with all their samples. Calls without gradients (a teacher) do
    not count. In eval mode nothing is fitted, and `watch` in a block without gradients gives the value alone; before
    the first training batch it is that of untrained models, or of the checkpoint's.

    Non-reentrant activation checkpointing works; layers in reentrant checkpointing run without gradients. Compiled
    models run eagerly inside `watch`.

    Cost: docs/complexity_loss.md has it measured. Memory: a float32 per gate at the positions drawn, per sample, until
    the backward pass; the first block keeps those of all layers until it knows the last four.

    Args:
        model: The network; its own `forward` has to be called in `watch`. It does not become a submodule.
        layers: Names of gating layers or of modules that hold them, or -4 for the last four; None for all.
        estimator: `prior`, `energy` or `kernel`, see the head of this module.
        beta: Steepness of the soft gates.
        positions: Number of positions per map and call; None for all.
        energy_lr: Learning rate of the energy models' Adam.
        widths: Widths of the layers of f.
        chains: Number of negatives per layer and position.
        sampler_steps: Number of sampler steps per batch.
        l2: Penalty on the energies, see `GateEnergy`.
        seed: Seed of the positions and of the energy models.

    Attributes:
        layers: Names of the chosen gating layers; empty before the first batch.
        samples: Number of samples of the last call, on this rank.
        metrics: What the last call measured, detached: `complexity`, per layer `complexity/<layer>`, and for energy
            models `energy_gap/<layer>` and `acceptance/<layer>`.
        collapsed: Layers that were left to their prior, as their chains had stopped moving.
        nonfinite_skips: How often a layer has been left out so far, since its gates or energies were not finite.

    Raises:
        ValueError: An option is out of range. A layer does not exist, changes its shape, was named and runs without
            gradients, or is not called each time. No layer depends on a parameter that trains. A batch is empty. A
            checkpoint is of other layers or options.
        RuntimeError: No gate was seen, or no pass with gradients.
        FloatingPointError: A layer's gates or energies were not finite ten times in a row. Until then the layer is
            left out and counted.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str] | int | None = -4,
        *,
        estimator: Estimator = "prior",
        beta: float = 100.0,
        positions: int | None = 8,
        energy_lr: float = 1e-3,
        widths: tuple[int, ...] = WIDTHS,
        chains: int = 64,
        sampler_steps: int = 5,
        l2: float = 0.01,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for option, value in (("beta", beta), ("energy_lr", energy_lr)):
            if not 0 < value < math.inf:
                raise ValueError(f"{option} is {value}; expected a number > 0")
        if estimator not in get_args(Estimator):
            raise ValueError(f"estimator is {estimator!r}; expected one of {', '.join(get_args(Estimator))}")
        if positions is not None and positions < 1:
            raise ValueError(f"positions is {positions}; expected a number >= 1, or None for all")
        self.layers: tuple[str, ...] = ()
        self.samples = 0
        self.metrics: dict[str, Tensor] = {}
        self.collapsed: list[str] = []
        self.nonfinite_skips = torch.zeros(())
        self.estimator, self.beta, self.positions, self.seed = estimator, beta, positions, seed
        self._model = (model,)  # in a tuple, so that it does not become a submodule
        self._wanted = layers
        options: dict[str, Any] = {"widths": tuple(widths), "chains": chains, "steps": sampler_steps, "l2": l2}
        if layers == 0 or layers == []:
            raise ValueError(f"layers is {layers}; expected names, n for the first n, -n for the last n, or None")
        GateEnergy((1,), **options)  # raises its errors now, and not with the first batch
        self._new_models = partial(LayerModels, energy_lr, seed, options if estimator == "energy" else None)
        self._models = self._new_models()
        self._calls = 0
        self._restored: dict[str, Any] = {}  # a state that waits for the first batch

    @contextmanager
    def watch(self, parts_of: nn.Module | None = None, relative_to: nn.Module | None = None) -> Iterator[SoftGates]:
        """Collects the gates of the model's forward passes in the block.

        Args:
            parts_of: Part of the model; each call of it, or of a module in it, then counts as a forward pass.
            relative_to: Part of the model as seen from which its layers are named.

        Yields:
            The soft gates, for one call of this loss after the block.
        """
        (model,) = self._model
        gradients = self.training or torch.is_grad_enabled()
        with watch_soft_gates(
            model,
            self.beta,
            chosen=self.layers,
            gradients=gradients,
            parts_of=parts_of,
            relative_to=relative_to,
            draw=self._drawn_positions,
        ) as seen:
            yield seen
        if seen.passes and self.training and not self.layers:
            self.layers = seen.select_layers(self._wanted)

    def forward(self, seen: SoftGates) -> Tensor:
        """Fits the models of the gates, unless in eval mode, and returns the complexity of the gates, in nats.

        Args:
            seen: What `watch` has yielded; its gates are consumed.
        """
        gates = self._popped(seen)
        first = next(iter(gates.values())).gates
        self.samples = len(first)
        with torch.autocast(first.device.type, enabled=False):
            models = self._prepared(gates)
            if self.training:
                self.metrics |= self._models.fit(gates)
            terms, finite = zip(
                *(_frozen_term(models.get(name), g, self.beta) for name, g in gates.items()), strict=True
            )
        if self.training:
            self._check(torch.stack(finite))
        complexity = torch.stack(terms).sum()
        self.metrics["complexity"] = complexity.detach()
        self.metrics |= {f"complexity/{name}": term.detach() for name, term in zip(gates, terms, strict=True)}
        return complexity

    @torch.no_grad()
    def entropy_bounds(self) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Returns what bounds the entropy of each layer's gates from above: mean -log p with log Z, in nats.

        It is taken over the gates of the last batches, about 1024 samples times positions, and is a mean over
        positions; with `torch.distributed` the sums over ranks make the mean of all.

        Returns:
            Layer by layer: the sum of -log p over this rank's samples, their number, and the standard error of log Z.
            Empty but for energy models: for `prior` the complexity itself is the bound, and the kernel is none.
        """
        return self._models.entropy_bounds()

    def get_extra_state(self) -> dict[str, Any]:
        """Weights, rates and chains of the models of the gates, their Adam, and the gates of the last batches."""
        if not self._calls:
            return self._restored
        return {"calls": self._calls, "nonfinite_skips": self._skipped.cpu(), **self._models.state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Keeps the state until the first batch, whose device is then known."""
        self._restored, self._models, self._calls = state, self._new_models(), 0

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Also loads a checkpoint of the same model without this loss; the energy models then start from scratch."""
        missing_keys: list[str] = args[2]
        super()._load_from_state_dict(state_dict, prefix, *args)
        key = f"{prefix}_extra_state"
        if key in missing_keys:
            missing_keys.remove(key)

    def _drawn_positions(self, count: int) -> Tensor | None:
        """Which positions of a map this call looks at; from a seed, so that no state is kept and all ranks agree."""
        if self.positions is None or count <= self.positions:
            return None
        calls = self._calls or self._restored.get("calls", 0)
        seed = int(np.random.SeedSequence([self.seed, calls, count]).generate_state(1)[0])
        return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[: self.positions]

    def _popped(self, seen: SoftGates) -> dict[str, LayerGates]:
        """The soft gates of all passes by layer."""
        if not seen.passes:
            raise RuntimeError("no forward pass with gradients was seen: call the model inside watch(), once per call")
        # In eval mode before any training: those of the checkpoint, otherwise as chosen; training may choose others.
        return seen.pop(self.layers or tuple(self._restored.get("energies", ())) or seen.select_layers(self._wanted))

    def _prepared(self, gates: Mapping[str, LayerGates]) -> dict[str, GatePrior]:
        """The models: made at the first batch, or again where the gates have moved to another device."""
        device = next(iter(gates.values())).gates.device
        if self._calls and device != self._skipped.device:
            self.set_extra_state(self.get_extra_state())
        self._models.check_shapes(gates)
        if self._calls:
            return self._models.by_layer
        shapes = {} if self.estimator == "kernel" else {name: g.shape for name, g in gates.items()}
        models = self._models.made(shapes, device, self._restored)
        if self.training:
            self._start(models, len(gates), device)
        return models

    def _start(self, models: dict[str, GatePrior], layers: int, device: torch.device) -> None:
        """Takes the models to be fitted, and continues where a restored state was."""
        restored, self._restored = self._restored, {}
        self._models.start(models, device, restored)
        self._skipped = torch.zeros(layers, dtype=torch.long, device=device)
        self._in_a_row = torch.zeros_like(self._skipped)
        self._calls = restored.get("calls", 0)
        if restored:
            self._skipped += restored["nonfinite_skips"].to(device)

    def _check(self, finite: Tensor) -> None:
        """Counts the layers that were left out, and raises after too many steps in a row; looks for dead chains."""
        self._skipped += ~finite
        self._in_a_row = (self._in_a_row + 1) * ~finite
        self.nonfinite_skips = self._skipped.sum().float()
        self._calls += 1
        if self._calls % PATIENCE == 0:
            for name, number in zip(self.layers, self._in_a_row.tolist(), strict=True):
                if number >= PATIENCE:
                    raise FloatingPointError(
                        f"complexity loss: gates or energies of layer {name!r} were not finite {number} times in a "
                        "row; lower energy_lr or the weight of the loss, and look for NaN in the network itself"
                    )
        if self._calls % LOOKS == 0:
            for name in self._models.collapsed():
                self.collapsed.append(name)
                warnings.warn(
                    f"complexity loss: the sampler of layer {name!r} has stopped moving; the layer goes on with the "
                    "prior alone",
                    stacklevel=3,
                )


class _WithSlope(torch.autograd.Function):
    """A value whose gradient with respect to the gates is known already."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, value: Tensor, slope: Tensor) -> Tensor:  # noqa: ANN401 - torch's signature
        ctx.save_for_backward(slope)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401 - torch's signature
        (slope,) = ctx.saved_tensors
        return gradients[0] * slope, None, None


def _frozen_term(energy: GatePrior | None, layer: LayerGates, beta: float) -> tuple[Tensor, Tensor]:
    """The complexity of one layer's soft gates, and whether it is finite; if not, it is 0.

    The gradient is taken here, as far as the inputs of the gates, which is what the gates' backward pass expects. So
    the activations of f need not wait for it, and a gradient that is not finite can be left out without waiting for a
    GPU to say so.
    """
    gates = layer.gates
    learns = gates.requires_grad
    with torch.set_grad_enabled(learns):
        leaf = gates.detach().requires_grad_(learns)
        if energy is None:
            value = soft_kernel_entropy(leaf, LINEAR_ALPHA if layer.behind_linear else CONV_ALPHA)
            finite = value.detach().isfinite()
        else:
            value, greatest = energy.surprise(leaf, layer.positions)
            finite = (greatest < EXPLODED * leaf.shape[2]) & value.detach().isfinite()
    if not learns:
        return torch.where(finite, value, 0.0), finite
    (slope,) = torch.autograd.grad(value, leaf)
    leaf = leaf.detach()
    slope *= beta * leaf * (1 - leaf)
    finite = finite & slope.abs().amax().isfinite()
    if energy is not None:
        finite = finite & energy.finite.to(slope.device)
    term: Tensor = _WithSlope.apply(gates, torch.where(finite, value.detach(), 0.0), torch.where(finite, slope, 0.0))
    return term, finite

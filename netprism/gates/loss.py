"""The complexity loss: it penalises the entropy of a network's gates while the network trains.

    L = L_task + weight * sum_l E[-log p_l(sigma_l)]

with p_l an energy model of the gates of layer l (`GateEnergy`), fitted beside the network on the same batches. The
gradient reaches the network through soft gates sigmoid(beta * input); log Z, which the network cannot change, is left
out, so the value can be negative, and values of different steps compare only roughly.

Source: Ren et al. 2022, section 4.3 and appendix J of the first version, https://arxiv.org/abs/2205.01940.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from netprism.gates.energy import GateEnergy
from netprism.gates.soft_gates import SoftGates, changed_shape, watch_soft_gates

EXPLODED = 1e3  # nats of f per gate; a well-fitted layer stays below 100 in all
PATIENCE = 10  # steps in a row that a layer may be left out, and steps between checks, which wait for a GPU


class ComplexityLoss(nn.Module):
    """The complexity of the gates of a model's layers, with energy models that learn while it is used.

        self.complexity = ComplexityLoss(self.net, layers=-4)            # in __init__

        with self.complexity.watch() as gates:                           # in training_step
            logits = self.net(x)
        loss = cross_entropy(logits, y) + 1e-3 * self.complexity(gates)

    A call first fits the energy models to the gates seen, with an Adam of their own, then returns the loss for those
    gates. The energy models appear with the first batch, whose gates have the shapes. They are not in `parameters()`:
    no optimiser, gradient clipping, DDP or weight averaging of the network sees them. They are in the state dict,
    with their Adam, rates and chains, and a training that continues from it is bitwise the same.

    With `torch.distributed` their gradients and rates are averaged over all processes, so all must call this equally
    often. Everything here is float32, also under autocast, and no global random number is drawn.

    Several forward passes in one `watch` count as one with all their samples. Calls without gradients (a teacher) do
    not count. In eval mode nothing is fitted, and `watch` in a block without gradients gives the value alone; before
    the first training batch it is that of untrained energy models, or of the checkpoint's.

    Non-reentrant activation checkpointing works; layers in reentrant checkpointing run without gradients. Compiled
    models run eagerly inside `watch`.

    Cost: that of `GateEnergy` per layer, and a float32 per gate and sample until the backward pass. The first block
    keeps the gates of all layers until it knows the last four.

    Args:
        model: The network; its own `forward` has to be called in `watch`. It does not become a submodule.
        layers: Names of gating layers or of modules that hold them, or -4 for the last four; None for all.
        beta: Steepness of the soft gates.
        prior_only: Whether to leave out f; the loss is then -log q, the surprise of gates taken to be independent.
        energy_lr: Learning rate of the energy models' Adam.
        widths: Widths of the layers of f.
        chains: Number of negatives per layer.
        sampler_steps: Number of sampler steps per batch.
        l2: Penalty on the energies, see `GateEnergy`.
        seed: Seed of the energy models.

    Attributes:
        layers: Names of the chosen gating layers; empty before the first batch.
        samples: Number of samples of the last call, on this rank.
        metrics: What the last call measured, detached: `complexity` and, per layer, `energy/<layer>`,
            `energy_gap/<layer>` and `acceptance/<layer>`.
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
        beta: float = 100.0,
        prior_only: bool = False,
        energy_lr: float = 1e-3,
        widths: tuple[int, ...] = (32, 64, 128, 256, 512, 512),
        chains: int = 64,
        sampler_steps: int = 5,
        l2: float = 0.01,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for option, value in (("beta", beta), ("energy_lr", energy_lr)):
            if not 0 < value < math.inf:
                raise ValueError(f"{option} is {value}; expected a number > 0")
        self.layers: tuple[str, ...] = ()
        self.samples = 0
        self.metrics: dict[str, Tensor] = {}
        self.nonfinite_skips = torch.zeros(())
        self.beta, self.energy_lr, self.seed = beta, energy_lr, seed
        self._model = (model,)  # in a tuple, so that it does not become a submodule
        self._wanted = layers
        self._options: dict[str, Any] = {
            "prior_only": prior_only, "widths": tuple(widths), "chains": chains, "steps": sampler_steps, "l2": l2,
        }  # fmt: skip
        if layers == 0 or layers == []:
            raise ValueError(f"layers is {layers}; expected names, n for the first n, -n for the last n, or None")
        GateEnergy((1,), **self._options)  # raises its errors now, and not with the first batch
        self._energies: dict[str, GateEnergy] = {}
        self._optimizer: torch.optim.Optimizer | None = None
        self._restored: dict[str, Any] = {}

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
            model, self.beta, chosen=self.layers, gradients=gradients, parts_of=parts_of, relative_to=relative_to
        ) as seen:
            yield seen
        if seen.passes and self.training and not self.layers:
            self.layers = seen.select_layers(self._wanted)

    def forward(self, seen: SoftGates) -> Tensor:
        """Fits the energy models, unless in eval mode, and returns the complexity of the gates, in nats.

        Args:
            seen: What `watch` has yielded; its gates are consumed.
        """
        gates = self._popped(seen)
        self.samples = len(next(iter(gates.values())))
        with torch.autocast(next(iter(gates.values())).device.type, enabled=False):
            energies = self._prepared(gates)
            if self.training:
                self._fit(gates)
            terms, finite = zip(*(_frozen_term(energies[name], g, self.beta) for name, g in gates.items()), strict=True)
        if self.training:
            self._check_finite(torch.stack(finite))
        complexity = torch.stack(terms).sum()
        self.metrics["complexity"] = complexity.detach()
        self.metrics |= {f"energy/{name}": term.detach() for name, term in zip(gates, terms, strict=True)}
        return complexity

    def get_extra_state(self) -> dict[str, Any]:
        """Weights, rates and chains of the energy models, and their Adam."""
        if not self._energies:
            return self._restored
        return {
            "energies": {name: energy.state_dict() for name, energy in self._energies.items()},
            "optimizer": None if self._optimizer is None else self._optimizer.state_dict(),
            "nonfinite_skips": self._skipped.cpu(),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Keeps the state until the first batch, whose device is then known."""
        self._restored, self._energies = state, {}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Also loads a checkpoint of the same model without this loss; the energy models then start from scratch."""
        missing_keys: list[str] = args[2]
        super()._load_from_state_dict(state_dict, prefix, *args)
        key = f"{prefix}_extra_state"
        if key in missing_keys:
            missing_keys.remove(key)

    def _popped(self, seen: SoftGates) -> dict[str, Tensor]:
        """The soft gates of all passes by layer."""
        if not seen.passes:
            raise RuntimeError("no forward pass with gradients was seen: call the model inside watch(), once per call")
        # In eval mode before any training: those of the checkpoint, otherwise as chosen; training may choose others.
        return seen.pop(self.layers or tuple(self._restored.get("energies", ())) or seen.select_layers(self._wanted))

    def _prepared(self, gates: Mapping[str, Tensor]) -> dict[str, GateEnergy]:
        """The energy models: made at the first batch, or again where the gates have moved to another device."""
        device = next(iter(gates.values())).device
        if self._energies and device != self._skipped.device:
            self._restored, self._energies = self.get_extra_state(), {}
        energies = self._energies or self._made({name: tuple(g.shape[1:]) for name, g in gates.items()}, device)
        for name, energy in energies.items():
            if gates[name].shape[1:] != energy.shape:
                raise changed_shape(name, energy.shape, tuple(gates[name].shape[1:]))
        if self.training and not self._energies:
            self._start(energies, device)
        return energies

    def _made(self, shapes: Mapping[str, tuple[int, ...]], device: torch.device) -> dict[str, GateEnergy]:
        energies = {
            name: GateEnergy(shape, seed=self.seed + number, **self._options).to(device)
            for number, (name, shape) in enumerate(shapes.items())
        }
        if self._restored:
            self._restore(energies)
        return energies

    def _restore(self, energies: dict[str, GateEnergy]) -> None:
        restored = self._restored["energies"]
        if list(restored) != list(energies):
            found, chosen = ", ".join(restored), ", ".join(energies)
            raise ValueError(f"the checkpoint has energy models of the layers {found}; those chosen are {chosen}")
        for name, energy in energies.items():
            try:
                energy.load_state_dict(restored[name])
            except RuntimeError as error:
                raise ValueError(
                    f"the checkpoint's energy model of layer {name!r} does not fit: give the widths, prior_only, "
                    "chains and size of inputs that it was made with"
                ) from error

    def _start(self, energies: dict[str, GateEnergy], device: torch.device) -> None:
        restored, self._restored, self._energies = self._restored, {}, energies
        parameters = self._parameters_of_energies()
        self._optimizer = torch.optim.Adam(parameters, lr=self.energy_lr) if parameters else None
        self._skipped = torch.zeros(len(energies), dtype=torch.long, device=device)
        self._in_a_row = torch.zeros_like(self._skipped)
        self._calls = 0
        if not restored:
            return
        self._skipped += restored["nonfinite_skips"].to(device)
        if self._optimizer is not None:
            self._optimizer.load_state_dict(restored["optimizer"])
            for group in self._optimizer.param_groups:
                group["lr"] = self.energy_lr  # and not the checkpoint's

    def _parameters_of_energies(self) -> list[nn.Parameter]:
        return [parameter for energy in self._energies.values() for parameter in energy.parameters()]

    def _fit(self, gates: Mapping[str, Tensor]) -> None:
        """One contrastive step of all energy models, the network frozen."""
        with torch.enable_grad():
            losses = [energy.contrastive_step(gates[name].detach()) for name, energy in self._energies.items()]
        if self._optimizer is None:
            return
        parameters = self._parameters_of_energies()
        gradients = _mean_over_ranks(torch.autograd.grad(torch.stack(losses).sum(), parameters))
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self._optimizer.step()
        self._optimizer.zero_grad()
        for name, energy in self._energies.items():
            self.metrics |= {f"energy_gap/{name}": energy.energy_gap, f"acceptance/{name}": energy.acceptance}

    def _check_finite(self, finite: Tensor) -> None:
        """Counts the layers that were left out, and raises after too many steps in a row."""
        self._skipped += ~finite
        self._in_a_row = (self._in_a_row + 1) * ~finite
        self.nonfinite_skips = self._skipped.sum().float()
        self._calls += 1
        if self._calls % PATIENCE == 0:
            for name, number in zip(self._energies, self._in_a_row.tolist(), strict=True):
                if number >= PATIENCE:
                    raise FloatingPointError(
                        f"complexity loss: gates or energies of layer {name!r} were not finite {number} times in a "
                        "row; lower energy_lr or the weight of the loss, and look for NaN in the network itself"
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


def _frozen_term(energy: GateEnergy, gates: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """-log p of soft gates, averaged over samples and without log Z, and whether it is finite; if not, it is 0.

    The gradient is taken here, as far as the inputs of the gates, which is what the gates' backward pass expects. So
    the activations of f need not wait for it, and a gradient that is not finite can be left out without waiting for a
    GPU to say so.
    """
    learns = gates.requires_grad
    with torch.set_grad_enabled(learns):
        leaf = gates.detach().requires_grad_(learns)
        f = energy.f(leaf)
        value = -(f + energy.log_prior(leaf)).mean()
    finite = (f.detach().abs().amax() < EXPLODED * leaf[0].numel()) & value.detach().isfinite()
    if not learns:
        return torch.where(finite, value, 0.0), finite
    (slope,) = torch.autograd.grad(value, leaf)
    leaf = leaf.detach()
    slope *= beta * leaf * (1 - leaf)
    finite = finite & slope.abs().amax().isfinite() & energy.finite.to(f.device)
    term: Tensor = _WithSlope.apply(gates, torch.where(finite, value.detach(), 0.0), torch.where(finite, slope, 0.0))
    return term, finite


def _mean_over_ranks(gradients: Sequence[Tensor]) -> Sequence[Tensor]:
    """Their mean, in one message."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return gradients
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    parts = flat.split([gradient.numel() for gradient in gradients])
    return [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]

"""The complexity loss: a network pays for the entropy of its gates while it trains.

    L = L_task + lambda * sum_l E[-log p_l(sigma_l)]

with p_l an energy model of the gates of layer l (`netprism.energy`), fitted beside the network on the same batches. The
gradient reaches the network through soft gates sigmoid(beta * input); log Z, which the network cannot change, is left
out, so the value can be negative, and values of different steps compare only roughly.

Source: "Understanding, Analyzing, and Optimizing the Complexity of Deep Models", section 4.3 and appendix J.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from netprism.energy import GateEnergy, Sampler
from netprism.gate_calls import GateCall, watch_gates
from netprism.gates import select_layers

Forward = Literal["relu", "swish"]
EXPLODED = 1e6  # nats of f; those of well-fitted layers stay below 100
PATIENCE = 10  # steps in a row that a layer may be left out, and steps between two looks, each of which waits for a GPU


class ComplexityLoss(nn.Module):
    """The complexity of the gates of a model's layers, with energy models that learn while it is used.

        self.complexity = ComplexityLoss(self.net, layers=-4)            # in __init__

        with self.complexity.watch():                                    # in training_step
            logits = self.net(x)
        loss = cross_entropy(logits, y) + 1e-3 * self.complexity()

    A call first fits the energy models to the gates seen, with an Adam of their own, then returns the loss for those
    gates. The energy models appear with the first batch, whose gates have the shapes. They are not in `parameters()`:
    no optimiser, gradient clipping, DDP or weight averaging of the network's meets them. They are in the state dict,
    with their Adam, rates and chains; training goes on from it to the bit.

    With `torch.distributed` their gradients and rates are averaged over all processes, so all must call this equally
    often. Everything here is float32, also under autocast, and no global random number is drawn.

    Several forward passes in one `watch` count as one with all their samples; passes without gradients (validation, a
    teacher) do not count. Non-reentrant activation checkpointing works; its soft gates are kept, not recomputed.
    Compiled models run eagerly inside `watch`.

    Cost: `netprism.energy.GateEnergy`, for each layer; a float32 a gate and sample until the backward pass. The first
    pass keeps those of all layers until it knows the last four.

    Args:
        model: its own `forward` has to be called in `watch`. It does not become a submodule.
        layers: names of gating layers or of modules that hold them, or -4 for the last four; None for all.
        beta: steepness of the soft gates.
        forward: "relu" leaves the network as it is; "swish" replaces every ReLU in `watch` by input * sigmoid(beta *
            input), as the paper does.
        prior_only: leave out f: the loss is then -log q, the surprise of gates taken to be independent.
        energy_lr: of the energy models' Adam.
        widths: of the layers of f.
        sampler: of the negatives, "discrete_langevin", or "langevin" for the paper's.
        chains: negatives a layer.
        sampler_steps: for each of them and batch.
        l2: on the energies, see `netprism.energy.GateEnergy`.
        seed: of the energy models.

    Attributes:
        layers: the names of the chosen gating layers; empty before the first batch.
        samples: how many the last call had, of this process.
        report: what the last call measured, detached: `complexity`, `skipped` (calls so far in which a layer was left
            out) and, per layer, `energy/<layer>`, `energy_gap/<layer>` and `acceptance/<layer>`.

    Raises:
        ValueError: an impossible option; a layer that does not exist, changes its shape between batches, runs without
            gradients or in one pass only; no layer depends on a parameter that trains.
        RuntimeError: no gate was seen, or no pass with gradients.
        FloatingPointError: a layer's gates or energies were not finite ten times in a row. Until then the layer is
            left out, and counted.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str] | int | None = -4,
        *,
        beta: float = 100.0,
        forward: Forward = "relu",
        prior_only: bool = False,
        energy_lr: float = 1e-3,
        widths: tuple[int, ...] = (32, 64, 128, 256, 512, 512),
        sampler: Sampler = "discrete_langevin",
        chains: int = 64,
        sampler_steps: int = 5,
        l2: float = 0.01,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for option, value in (("beta", beta), ("energy_lr", energy_lr)):
            if not value > 0:
                raise ValueError(f"{option} is {value}; expected a number > 0")
        if forward not in get_args(Forward):
            raise ValueError(f"unknown forward {forward!r}; allowed: {', '.join(get_args(Forward))}")
        self.layers: tuple[str, ...] = ()
        self.samples = 0
        self.report: dict[str, Tensor] = {}
        self.beta, self.swish, self.energy_lr, self.seed = beta, forward == "swish", energy_lr, seed
        self._model = (model,)  # in a tuple, so that it does not become a submodule
        self._wanted = layers
        self._options: dict[str, Any] = {
            "prior_only": prior_only, "widths": tuple(widths), "sampler": sampler, "chains": chains,
            "steps": sampler_steps, "l2": l2,
        }  # fmt: skip
        GateEnergy((1,), **self._options)  # its errors now, and not with the first batch
        self._energies: dict[str, GateEnergy] = {}
        self._optimizer: torch.optim.Optimizer | None = None
        self._restored: dict[str, Any] = {}
        self._pass: dict[str, Tensor | None] = {}
        self._passes: list[dict[str, Tensor]] = []

    @contextmanager
    def watch(self, relative_to: nn.Module | None = None) -> Iterator[None]:
        """Collects the gates of the model's forward passes in the block, for the call that follows.

        Args:
            relative_to: a part of the model as seen from which its layers are named.
        """
        (model,) = self._model
        self._passes = []
        with ExitStack() as stack:
            if self.swish:  # outside the watcher, which sees the ReLU first
                stack.enter_context(_SwishForReLU(self.beta))
            stack.enter_context(watch_gates(model, self._visit, relative_to=relative_to, end_of_pass=self._end_of_pass))
            yield

    def forward(self) -> Tensor:
        """Fits the energy models, unless in eval mode, and returns the complexity of the gates seen, in nats."""
        gates = self._collected()
        self.samples = len(next(iter(gates.values())))
        with torch.autocast(next(iter(gates.values())).device.type, enabled=False):
            self._prepare(gates)
            if self.training:
                self._fit(gates)
            terms, sound = zip(
                *(_frozen_term(energy, gates[name]) for name, energy in self._energies.items()), strict=True
            )
        self._look_for_trouble(torch.stack(sound))
        complexity = torch.stack(terms).sum()
        self.report["complexity"] = complexity.detach()
        self.report |= {f"energy/{name}": term.detach() for name, term in zip(gates, terms, strict=True)}
        return complexity

    def get_extra_state(self) -> dict[str, Any]:
        """Weights, rates and chains of the energy models, and their Adam."""
        if not self._energies:
            return self._restored
        return {
            "energies": {name: energy.state_dict() for name, energy in self._energies.items()},
            "optimizer": None if self._optimizer is None else self._optimizer.state_dict(),
            "skipped": self._skipped.cpu(),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Keeps the state for the first batch, which brings the device."""
        self._restored, self._energies = state, {}

    def _visit(self, call: GateCall) -> None:
        if self.layers and call.layer not in self.layers:
            return
        if not torch.is_grad_enabled():
            self._pass[call.layer] = None
            return
        # Identity hooks keep what is saved here out of the books of activation checkpointing, which would miss it in
        # its recomputation. The sigmoid saves its output, so that an in-place ReLU may overwrite the input.
        with saved_tensors_hooks(lambda saved: saved, lambda saved: saved):
            self._pass[call.layer] = torch.sigmoid(call.input.float() * self.beta)

    def _end_of_pass(self, completed: bool) -> None:
        seen, self._pass = self._pass, {}
        if not completed or not torch.is_grad_enabled():
            return
        self.layers = self.layers or tuple(select_layers(list(seen), self._wanted))
        for name in self.layers:
            if name not in seen:
                raise ValueError(f"gating layer {name!r} was called in one forward pass and not in another")
        soft = {name: gates for name in self.layers if (gates := seen[name]) is not None}
        if len(soft) < len(self.layers):
            name = next(name for name in self.layers if name not in soft)
            raise ValueError(
                f"gating layer {name!r} runs without gradients: choose others with layers=, and checkpoint activations "
                "with use_reentrant=False"
            )
        if not any(gates.requires_grad for gates in soft.values()):
            raise ValueError(f"no parameter that trains is before the gating layers {', '.join(soft)}")
        self._passes.append(soft)

    def _collected(self) -> dict[str, Tensor]:
        """The soft gates of all passes by layer, `(N, d)` or `(N, C, ...)`; they are forgotten here."""
        passes, self._passes = self._passes, []
        if not passes:
            raise RuntimeError("no forward pass with gradients was seen: call the model inside watch(), once per call")
        gates = {name: [soft[name] for soft in passes] for name in self.layers}
        return {name: _as_maps_or_flat(g[0] if len(g) == 1 else torch.cat(g)) for name, g in gates.items()}

    def _prepare(self, gates: Mapping[str, Tensor]) -> None:
        """Makes the energy models at the first batch, or again where the gates have moved to another device."""
        device = next(iter(gates.values())).device
        if not self._energies or device != self._skipped.device:
            self._restored = self.get_extra_state()
            self._make_energies({name: tuple(g.shape[1:]) for name, g in gates.items()}, device)
        for name, energy in self._energies.items():
            if gates[name].shape[1:] != energy.shape:
                raise ValueError(
                    f"gating layer {name!r} changed its shape from {energy.shape} to {tuple(gates[name].shape[1:])}: "
                    "give inputs of one size, or choose other layers"
                )

    def _make_energies(self, shapes: Mapping[str, tuple[int, ...]], device: torch.device) -> None:
        self._energies = {
            name: GateEnergy(shape, seed=self.seed + number, **self._options).to(device)
            for number, (name, shape) in enumerate(shapes.items())
        }
        parameters = self._parameters_of_energies()
        self._optimizer = torch.optim.Adam(parameters, lr=self.energy_lr) if parameters else None
        self._skipped = torch.zeros(len(shapes), dtype=torch.long, device=device)
        self._in_a_row = torch.zeros_like(self._skipped)
        self._calls = 0
        if self._restored:
            self._restore()

    def _restore(self) -> None:
        restored, self._restored = self._restored, {}
        if list(restored["energies"]) != list(self._energies):
            found, chosen = ", ".join(restored["energies"]), ", ".join(self._energies)
            raise ValueError(f"the checkpoint has energy models of the layers {found}; those chosen are {chosen}")
        for name, state in restored["energies"].items():
            self._energies[name].load_state_dict(state)
        if self._optimizer is not None:
            self._optimizer.load_state_dict(restored["optimizer"])
        self._skipped += restored["skipped"].to(self._skipped.device)

    def _parameters_of_energies(self) -> list[nn.Parameter]:
        return [parameter for energy in self._energies.values() for parameter in energy.parameters()]

    def _fit(self, gates: Mapping[str, Tensor]) -> None:
        """One contrastive step of all energy models, the network frozen."""
        with torch.enable_grad():
            losses = [energy.fit_loss(gates[name].detach()) for name, energy in self._energies.items()]
        if self._optimizer is None:
            return
        parameters = self._parameters_of_energies()
        gradients = _average_over_processes(torch.autograd.grad(torch.stack(losses).sum(), parameters))
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self._optimizer.step()
        self._optimizer.zero_grad()
        for name, energy in self._energies.items():
            self.report |= {f"energy_gap/{name}": energy.gap, f"acceptance/{name}": energy.acceptance}

    def _look_for_trouble(self, sound: Tensor) -> None:
        """Counts the layers that were left out, and stops after too many steps in a row."""
        self._skipped += ~sound
        self._in_a_row = (self._in_a_row + 1) * ~sound
        self.report["skipped"] = self._skipped.sum().float()
        self._calls += 1
        if self._calls % PATIENCE == 0:
            for name, number in zip(self._energies, self._in_a_row.tolist(), strict=True):
                if number >= PATIENCE:
                    raise FloatingPointError(
                        f"complexity loss: gates or energies of layer {name!r} were not finite {number} times in a "
                        "row; lower energy_lr or the weight of the loss, and look for NaN in the network itself"
                    )


class _SwishForReLU(TorchFunctionMode):
    """Every ReLU becomes input * sigmoid(beta * input), also one in place."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self._beta = beta

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name not in ("relu", "relu_"):
            return func(*args, **kwargs)
        x = args[0] if args else kwargs["input"]
        if name == "relu" and not kwargs.get("inplace", len(args) > 1 and args[1]):
            return x * torch.sigmoid(x * self._beta)
        before = x.clone()
        return x.copy_(before * torch.sigmoid(before * self._beta))


class _WithSlope(torch.autograd.Function):
    """A value whose gradient with respect to the gates is known already."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, value: Tensor, slope: Tensor) -> Tensor:  # noqa: ANN401 - torch's signature
        ctx.save_for_backward(slope)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401 - torch's signature
        (slope,) = ctx.saved_tensors
        return gradients[0] * slope, None, None


def _frozen_term(energy: GateEnergy, gates: Tensor) -> tuple[Tensor, Tensor]:
    """-log p of soft gates, averaged over samples and without log Z, and whether it is finite; if not, it is 0.

    The gradient is taken here, so that the activations of f need not wait for the backward pass, and a gradient that
    is not finite can be left out without waiting for a GPU to say so.
    """
    with torch.enable_grad():
        leaf = gates.detach().requires_grad_()
        f = energy.f(leaf)
        value = -(f + energy.log_prior(leaf)).mean()
        (slope,) = torch.autograd.grad(value, leaf)
    sound = (f.detach().abs().amax() < EXPLODED) & slope.abs().amax().isfinite() & energy.sound.to(f.device)
    term: Tensor = _WithSlope.apply(gates, torch.where(sound, value.detach(), 0.0), torch.where(sound, slope, 0.0))
    return term, sound


def _as_maps_or_flat(gates: Tensor) -> Tensor:
    """(N, d), or (N, C, H, W) and the like; what is neither, such as (N, tokens, features), becomes flat."""
    return gates if gates.dim() == 2 or gates.dim() > 3 else gates.view(len(gates), -1)


def _average_over_processes(gradients: Sequence[Tensor]) -> Sequence[Tensor]:
    """Their mean, in one message."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return gradients
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    parts = flat.split([gradient.numel() for gradient in gradients])
    return [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]

"""The models of the gates of several layers, which the complexity loss fits while the network trains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from netprism.gates.energy import GateEnergy, GatePrior
from netprism.gates.soft_gates import LayerGates, changed_shape

RECENT_ROWS = 1024  # gates of the last batches that the entropy bound is taken over: samples times positions


class LayerModels:
    """A `GatePrior` or a `GateEnergy` for each layer, the Adam of their weights, and the gates of the last batches.

    `made` makes them when the shapes of the gates and their device are known; `start` takes them to be fitted.

    Args:
        energy_lr: Learning rate of the Adam.
        seed: Seed of the first layer's model; each next layer has the next one.
        options: Options of `GateEnergy`; None for priors.

    Attributes:
        by_layer: The models that are fitted; empty before `start`.
    """

    def __init__(self, energy_lr: float, seed: int, options: Mapping[str, Any] | None) -> None:
        self.by_layer: dict[str, GatePrior] = {}
        self._lr, self._seed, self._options = energy_lr, seed, options
        self._optimizer: torch.optim.Optimizer | None = None
        self._recent: dict[str, list[tuple[Tensor, Tensor | None]]] = {}

    def made(
        self, shapes: Mapping[str, tuple[int, ...]], device: torch.device, state: Mapping[str, Any]
    ) -> dict[str, GatePrior]:
        """Returns new models of gates of these shapes, with the weights of a `state` if it is not empty.

        Raises:
            ValueError: The state is of other layers or options.
        """
        models: dict[str, GatePrior] = {}
        for number, (name, shape) in enumerate(shapes.items()):
            made = (
                GatePrior(shape)
                if self._options is None
                else GateEnergy(shape, seed=self._seed + number, **self._options)
            )
            models[name] = made.to(device)
        if state:
            _load(models, state["energies"])
        return models

    def start(self, models: dict[str, GatePrior], device: torch.device, state: Mapping[str, Any]) -> None:
        """Takes models to be fitted, and continues the Adam and the last batches of a `state` if it is not empty."""
        self.by_layer = models
        parameters = self._parameters()
        self._optimizer = torch.optim.Adam(parameters, lr=self._lr) if parameters else None
        if not state:
            return
        self._recent = {
            name: [(states.to(device), None if drawn is None else drawn.to(device)) for states, drawn in batches]
            for name, batches in state["recent"].items()
        }
        if self._optimizer is not None:
            self._optimizer.load_state_dict(state["optimizer"])
            for group in self._optimizer.param_groups:
                group["lr"] = self._lr  # and not the checkpoint's

    def state(self) -> dict[str, Any]:
        """Weights, rates and chains of the models, their Adam, and the gates of the last batches."""
        return {
            "energies": {name: model.state_dict() for name, model in self.by_layer.items()},
            "optimizer": None if self._optimizer is None else self._optimizer.state_dict(),
            "recent": self._recent,
        }

    def check_shapes(self, gates: Mapping[str, LayerGates]) -> None:
        """Raises a ValueError unless the gates have the shapes that the models were made for."""
        for name, model in self.by_layer.items():
            if gates[name].shape != model.shape:
                raise changed_shape(name, model.shape, gates[name].shape)

    def fit(self, gates: Mapping[str, LayerGates]) -> dict[str, Tensor]:
        """Adds gates to the rates and takes one contrastive step of all energy models, the network frozen.

        Returns:
            `energy_gap/<layer>` and `acceptance/<layer>` of the energy models.
        """
        losses = []
        for name, model in self.by_layer.items():
            layer = gates[name]
            with torch.enable_grad():
                losses.append(model.fit_rows(layer.gates.detach(), layer.positions))
            if isinstance(model, GateEnergy):
                self._keep(name, layer)
        if self._optimizer is None:
            return {}
        parameters = self._parameters()
        with torch.enable_grad():
            total = torch.stack(losses).sum()
        # A model that has collapsed has a gradient for its readout alone.
        found = torch.autograd.grad(total, parameters, allow_unused=True)
        gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
        for parameter, gradient in zip(parameters, _mean_over_ranks(gradients), strict=True):
            parameter.grad = gradient
        self._optimizer.step()
        self._optimizer.zero_grad()
        measured: dict[str, Tensor] = {}
        for name, energy in self._energy_models():
            measured |= {f"energy_gap/{name}": energy.energy_gap, f"acceptance/{name}": energy.acceptance}
        return measured

    def collapsed(self) -> list[str]:
        """Returns the layers whose chains have stopped moving since the last look; they go on with the prior alone."""
        return [name for name, energy in self._energy_models() if energy.check_collapse()]

    def entropy_bounds(self) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """See `netprism.gates.ComplexityLoss.entropy_bounds`."""
        bounds = {}
        for name, energy in self._energy_models():
            batches = self._recent.get(name, [])
            if not batches:
                continue
            total, count = torch.zeros_like(energy.rates[0, 0]), 0
            errors = []
            for states, positions in batches:
                rows = states.float()
                surprise = -(energy.f(rows, positions) + energy.log_prior(rows, positions)).mean()
                log_z, error = energy.log_z(positions)
                total += (surprise + log_z) * len(rows)
                count += len(rows)
                errors.append(error)
            bounds[name] = (total, total.new_tensor(count), torch.stack(errors).square().sum().sqrt() / len(errors))
        return bounds

    def _energy_models(self) -> Iterable[tuple[str, GateEnergy]]:
        return ((name, model) for name, model in self.by_layer.items() if isinstance(model, GateEnergy))

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for model in self.by_layer.values() for parameter in model.parameters()]

    def _keep(self, name: str, layer: LayerGates) -> None:
        """Keeps the gates for the entropy bound, and drops the oldest that are not needed."""
        batches, states = self._recent.setdefault(name, []), layer.gates.detach() > 0.5
        if layer.positions is None:  # all of one distribution
            batches[:] = [(torch.cat([*(before for before, _ in batches), states])[-RECENT_ROWS:], None)]
            return
        batches.append((states, layer.positions))
        kept = -(-RECENT_ROWS // (states.shape[0] * states.shape[1]))
        del batches[:-kept]


def _load(models: Mapping[str, GatePrior], states: Mapping[str, Any]) -> None:
    if list(states) != list(models):
        found, chosen = (", ".join(names) or "none" for names in (states, models))
        raise ValueError(f"the checkpoint has models of the gates of layers {found}; those chosen are {chosen}")
    for name, model in models.items():
        try:
            model.load_state_dict(states[name])
        except (RuntimeError, KeyError) as error:
            raise ValueError(
                f"the checkpoint's energy model of layer {name!r} does not fit: give the estimator, widths, chains "
                "and size of inputs that it was made with"
            ) from error


def _mean_over_ranks(gradients: Sequence[Tensor]) -> Sequence[Tensor]:
    """Their mean, in one message."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return gradients
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    parts = flat.split([gradient.numel() for gradient in gradients])
    return [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]

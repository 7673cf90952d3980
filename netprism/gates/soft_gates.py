"""Soft gates sigmoid(beta * input) of a model's forward passes, through which a gradient can reach the network.

Of a feature map they can be those at a few positions only: then the rest of the map is neither kept nor computed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from netprism.gates.calls import GateCall, watch_gates
from netprism.gates.record import select_layers

OUTSIDE = "training_step"  # name of calls outside of all modules


@dataclass(frozen=True)
class LayerGates:
    """Soft gates of one layer.

    Attributes:
        gates: `(N, m, C)`, C channels at m positions; flat gates have one position.
        shape: Shape of one sample's gates with the channels first, `(C,)` or `(C, H, W)` or the like.
        positions: Numbers of the positions on the map, `(m,)`; None for all.
        behind_linear: Whether a linear layer precedes the gates, and not a convolution.
    """

    gates: Tensor
    shape: tuple[int, ...]
    positions: Tensor | None
    behind_linear: bool


class SoftGates:
    """The soft gates of the forward passes in a `watch_soft_gates` block, by layer.

    A layer that several passes call has the gates of all of them. With `gradients`, calls without (a teacher, a look
    at the network in between) are neither counted nor numbered.

    Attributes:
        passes: Number of forward passes so far.
    """

    def __init__(
        self, beta: float, chosen: Sequence[str], gradients: bool, draw: Callable[[int], Tensor | None]
    ) -> None:
        self._beta, self._chosen, self._gradients, self._draw = beta, tuple(chosen), gradients, draw
        self._inside: dict[str, list[LayerGates]] = {}
        self._outside: dict[str, list[LayerGates]] = {}
        self._without: list[str] = []  # calls without gradients
        self.passes = 0
        self._depth = 0
        self._calls: Counter[str] = Counter()
        self._calls_outside: Counter[str] = Counter()
        self._pass: list[tuple[str, LayerGates]] = []

    def select_layers(self, wanted: Sequence[str] | int | None) -> tuple[str, ...]:
        """Returns the layers to penalise: by number those in modules that train, by name also others.

        Raises:
            RuntimeError: No gate was seen.
            ValueError: A layer does not exist or runs without gradients, or none is behind a parameter that trains.
        """
        if isinstance(wanted, int) or wanted is None:
            return tuple(select_layers(self._available(), wanted))
        gates = self._inside | self._outside
        names = [*gates, *(name for name in dict.fromkeys(self._without) if name not in gates)]
        named = select_layers(names, wanted)
        for name in wanted:
            if not any(self._learns(gates.get(layer, [])) for layer in select_layers(names, [name])):
                raise ValueError(
                    f"gating layer {name!r} runs without gradients: choose others with layers=, and checkpoint "
                    "activations with use_reentrant=False"
                )
        return tuple(layer for layer in named if self._learns(gates.get(layer, [])))

    def pop(self, layers: Sequence[str]) -> dict[str, LayerGates]:
        """Returns and removes the gates of these layers, all passes together.

        Raises:
            ValueError: A layer was not called, or in several shapes.
        """
        gates, self._inside, self._outside, self.passes = self._inside | self._outside, {}, {}, 0
        for name in layers:
            if name not in gates:
                raise ValueError(f"gating layer {name!r} was called in one forward pass and not in another")
            shapes = list(dict.fromkeys(g.shape for g in gates[name]))
            if len(shapes) > 1:
                raise changed_shape(name, shapes[0], shapes[1])
        return {name: _joined(gates[name]) for name in layers}

    def _available(self) -> list[str]:
        available = [name for name, gates in self._inside.items() if self._learns(gates)]
        seen = [*self._inside, *self._without]
        if seen and not available:
            raise ValueError(f"no parameter that trains is before the gating layers {', '.join(dict.fromkeys(seen))}")
        if self._outside and not available:
            raise ValueError(
                f"all gates are in the {OUTSIDE} itself; name some with layers=: {', '.join(self._outside)}"
            )
        return available

    def _learns(self, gates: list[LayerGates]) -> bool:
        return bool(gates) and (not self._gradients or any(g.gates.requires_grad for g in gates))

    def _enter(self, module: nn.Module, args: Any) -> None:  # noqa: ANN401 - torch's signature
        if self._depth == 0:
            self._calls, self._pass = Counter(), []
        self._depth += 1

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:  # noqa: ANN401 - torch's signature
        self._depth -= 1
        if self._depth == 0 and output is not None:  # None: it raised
            if torch.is_grad_enabled() or not self._gradients:
                self.passes += 1
            for name, gates in self._pass:
                self._inside.setdefault(name, []).append(gates)

    def _visit(self, call: GateCall) -> None:
        if self._gradients and not torch.is_grad_enabled():
            self._without.append(call.layer)
            return
        name = self._name(call)
        if self._chosen and name not in self._chosen:
            return
        if not call.input.numel():
            raise ValueError(f"gating layer {name!r} met an empty batch, of shape {tuple(call.input.shape)}")
        gates = self._gates_of(call)
        if self._depth:
            self._pass.append((name, gates))
        else:
            self._outside.setdefault(name, []).append(gates)

    def _gates_of(self, call: GateCall) -> LayerGates:
        """Channels are dimension 1, as a convolution has them, or behind a linear layer (tokens) the last one."""
        x, behind_linear = (
            call.input,
            call.preceded_by == "linear" or (call.preceded_by is None and call.input.dim() < 3),
        )
        channels = 0 if x.dim() == 1 else x.dim() - 1 if behind_linear else 1
        spatial = [size for axis, size in enumerate(x.shape[1:], 1) if axis != channels]
        shape = (1 if x.dim() == 1 else x.shape[channels], *spatial)
        positions = self._draw(math.prod(spatial))
        if positions is not None:
            positions = positions.to(x.device)
        gates: Tensor = _SoftGate.apply(x.float(), self._beta, behind_linear, positions)
        return LayerGates(gates, shape, positions, behind_linear)

    def _name(self, call: GateCall) -> str:
        """The call's name, numbered here, since the watcher also counts calls without gradients."""
        base, _, _ = call.layer.partition("#")
        functional = base.endswith(f":{call.operation}")
        if not self._depth and base.startswith(":"):
            base = OUTSIDE + base
        calls = self._calls if self._depth else self._calls_outside
        calls[base] += 1
        return f"{base}#{calls[base] - 1}" if functional or calls[base] > 1 else base


@contextmanager
def watch_soft_gates(
    model: nn.Module,
    beta: float,
    *,
    chosen: Sequence[str] = (),
    gradients: bool = True,
    parts_of: nn.Module | None = None,
    relative_to: nn.Module | None = None,
    draw: Callable[[int], Tensor | None] = lambda count: None,
) -> Iterator[SoftGates]:
    """Collects the soft gates of `model` in the block.

    Cost: a float32 per gate at the positions drawn, and sample; nothing is saved for the backward pass.

    Args:
        model: The network; its own `forward` has to be called.
        beta: Steepness of the soft gates.
        chosen: Names of the layers to keep; empty for all.
        gradients: Whether only calls with gradients count.
        parts_of: Part of the model; a forward pass is then each call of it, or of a module in it that has
            parameters, from outside. Gates elsewhere are named `training_step:relu#0`. Without it a pass is a call of
            the model.
        relative_to: See `netprism.gates.record_gates`.
        draw: Function from a map's number of positions to those to look at, None for all.

    Yields:
        The soft gates that were seen.
    """
    seen = SoftGates(beta, chosen, gradients, draw)
    entered = [model]
    if parts_of is not None:
        entered = [module for module in parts_of.modules() if any(True for _ in module.parameters())]
    with ExitStack() as stack:
        stack.enter_context(watch_gates(model, seen._visit, relative_to=relative_to))
        for module in entered:
            stack.callback(module.register_forward_pre_hook(seen._enter).remove)
            stack.callback(module.register_forward_hook(seen._leave, always_call=True).remove)
        yield seen


def changed_shape(layer: str, before: tuple[int, ...], now: tuple[int, ...]) -> ValueError:
    """Returns the error for a layer whose gates have another shape than before."""
    return ValueError(
        f"gating layer {layer!r} changed its shape from {before} to {now}: give inputs of one size, or choose other "
        "layers"
    )


class _SoftGate(torch.autograd.Function):
    """sigmoid(beta * input) as `(N, m, C)`, at some positions; backward expects the gradient of the input there.

    `netprism.gates.loss` has already multiplied by the sigmoid's slope. So nothing is saved here: no tensor that holds
    itself, none that activation checkpointing would miss in its recomputation, none that an in-place ReLU overwrites.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, beta: float, channels_last: bool, positions: Tensor | None) -> Tensor:  # noqa: ANN401
        ctx.shape, ctx.channels_last, ctx.positions = x.shape, channels_last, positions
        rows = _rows(x, channels_last)
        return torch.sigmoid((rows if positions is None else rows[:, positions]) * beta)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: ANN401 - torch's signature
        (rows,) = gradients
        whole = rows.new_zeros(ctx.shape) if ctx.positions is not None else rows.new_empty(ctx.shape)
        _rows(whole, ctx.channels_last)[:, slice(None) if ctx.positions is None else ctx.positions] = rows
        return whole, None, None, None


def _rows(x: Tensor, channels_last: bool) -> Tensor:
    """(N, d), (N, ..., C) or (N, C, ...) as (N, positions, C); a view if x is contiguous."""
    if x.dim() <= 2:
        return x.reshape(len(x), 1, -1)
    return x.flatten(1, -2) if channels_last else x.flatten(2).transpose(1, 2)


def _joined(passes: list[LayerGates]) -> LayerGates:
    if len(passes) == 1:
        return passes[0]
    return replace(passes[0], gates=torch.cat([each.gates for each in passes]))

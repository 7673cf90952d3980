"""Gating states of any model: which activations were on, which input won a max-pool, what dropout kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from zlib import crc32

import torch
from torch import Tensor, nn

from netprism.gates.calls import GateCall, PrecedingOp, watch_gates
from netprism.gates.packing import PackedGates, some_positions


@dataclass(frozen=True)
class GatingLayer:
    """What is known of a recorded layer: its kind (of `KINDS`), what feeds it, and the shape of one sample's gates."""

    kind: str
    preceded_by: PrecedingOp | None
    shape: tuple[int, ...]


class GateRecord:
    """The gates of all forward passes in a `record_gates` block, in the order of the calls: one bit per gate.

    Attributes:
        layers: What is known of each recorded layer, by its name.
    """

    def __init__(self, layers: Sequence[str] | int | None, max_gates: int | None = None, seed: int = 0) -> None:
        self.layers: dict[str, GatingLayer] = {}
        self._wanted, self._max_gates, self._seed = layers, max_gates, seed
        self._positions: dict[str, Tensor] = {}
        self._passes = 0
        self._parts: dict[str, list[PackedGates]] = {}
        self._pass: dict[str, tuple[GatingLayer, PackedGates, Tensor]] = {}

    @property
    def packed(self) -> dict[str, PackedGates]:
        """Every layer's gates, packed: `PackedGates` of all samples since the last `take`."""
        for name, parts in self._parts.items():
            if len(parts) > 1:
                self._parts[name] = [PackedGates.concatenate(parts)]
        return {name: parts[0] for name, parts in self._parts.items() if parts}

    @property
    def states(self) -> Mapping[str, Tensor]:
        """Every layer's gates, bool `(samples, ...)`, unpacked one layer at a time on access.

        They have their natural shape, or `(samples, max_gates)` where a layer has more gates than `max_gates`.
        """
        return _Unpacked(self.packed)

    def take(self) -> dict[str, PackedGates]:
        """Returns what `packed` is, and forgets it: a batch's gates, for those who keep them elsewhere."""
        taken = self.packed
        self._parts = {name: [] for name in self._parts}
        return taken

    def _visit(self, call: GateCall) -> None:
        if self._passes and call.layer not in self.layers:
            return
        states = call.gates()
        gates = PackedGates.pack(states, self._positions_in(call.layer, states))
        layer = GatingLayer(call.kind, call.preceded_by, gates.shape)
        # amin passes NaN on, and takes a 20th of the time of isnan().any()
        x = call.input.detach()
        self._pass[call.layer] = (layer, gates, (x.amin() if x.numel() else x.sum()).isnan())

    def _positions_in(self, layer: str, gates: Tensor) -> Tensor | None:
        """The positions that are kept, which follow from the seed and the name of the layer alone; None for all."""
        count = prod(gates.shape[1:])
        if self._max_gates is None or count <= self._max_gates:
            return None
        if layer not in self._positions:
            seed = crc32(layer.encode(), self._seed)
            self._positions[layer] = some_positions(count, self._max_gates, seed).to(gates.device)
        return self._positions[layer]

    def _end_of_pass(self, completed: bool) -> None:
        seen, self._pass = self._pass, {}
        if not completed:
            return
        if not self._passes:
            names = select_layers(list(seen), self._wanted)
            self.layers = {name: seen[name][0] for name in names}
            self._parts = {name: [] for name in names}
        self._passes += 1
        _check_pass(self.layers, {name: seen[name] for name in self.layers if name in seen})
        for name, parts in self._parts.items():
            parts.append(replace(seen[name][1], preceded_by=self.layers[name].preceded_by))

    def _check_complete(self) -> None:
        if not self._passes:
            raise RuntimeError("the model was not called inside record_gates; call the model itself, not a part of it")


@contextmanager
def record_gates(
    model: nn.Module,
    kinds: Sequence[str] = ("relu",),
    layers: Sequence[str] | int | None = None,
    *,
    relative_to: nn.Module | None = None,
    max_gates: int | None = None,
    seed: int = 0,
) -> Iterator[GateRecord]:
    """Records the gating states of every call of `model` inside the block.

    The gate of an activation (ReLU, GELU, SiLU, LeakyReLU, ELU, PReLU, ReLU6, Hardswish and relatives) is `input > 0`,
    that of a max-pool the one-hot argmax of each window, that of dropout its mask (all true where it is switched off).
    The model's outputs, gradients and random numbers stay bitwise the same; only nn.TransformerEncoder leaves its
    fused fast path, and rounds differently. Compiled parts run eagerly inside the block.

    Cost: 3 % of the forward pass (ViT-B/16) to 31 % (MobileNet-V2) on CPU, see `benchmarks/gates.py`; memory one bit
    per gate and sample, plus one batch; with `max_gates`, at most so many bits per layer and sample.

    Args:
        model: Any module; its own `forward` has to be called, in any mode, once per batch.
        kinds: Kinds of gates, out of `KINDS`.
        layers: Names of gating layers, or of modules that contain them; or a number, `-4` for the last four, `4` for
            the first four; None for all.
        relative_to: Part of the model as seen from which its modules are named (so that a wrapper leaves no prefix).
        max_gates: Most gates that are kept of a layer, at positions that are the same for all samples, one at random
            out of each of `max_gates` equal stretches; None for all. Each then stands for several in
            `transformation_complexity`, which says how far the entropies are from those of all gates.
        seed: Seed of the positions.

    Yields:
        The record: `.states` maps layer names to bool gates `(N, ...)`; `.packed` and `.layers` have the same names.

    Raises:
        ValueError: A kind or layer is unknown, an activation is NaN, `max_gates` is below 1, or layers disagree on the
            number of samples.
        RuntimeError: No gate was seen, or the model was not called.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> with record_gates(net) as gates:
        ...     out = net(torch.randn(5, 2))
        >>> {name: tuple(states.shape) for name, states in gates.states.items()}
        {'1': (5, 3)}

    Source: Ren et al. 2022, section 3, https://arxiv.org/abs/2205.01940.
    """
    check_max_gates(max_gates)
    record = GateRecord(layers, max_gates, seed)
    with watch_gates(model, record._visit, kinds, relative_to=relative_to, end_of_pass=record._end_of_pass):
        yield record
    record._check_complete()


def check_max_gates(max_gates: int | None) -> None:
    """Raises a ValueError unless it is None or at least 1."""
    if max_gates is not None and max_gates < 1:
        raise ValueError(f"max_gates is {max_gates}; expected a number >= 1, or None for all gates")


def select_layers(available: Sequence[str], layers: Sequence[str] | int | None) -> list[str]:
    """Returns the chosen ones of the available gating layers, in their order; see `record_gates` for `layers`.

    Raises:
        RuntimeError: No layer is available.
        ValueError: A name fits no layer, or `layers` is 0.
    """
    if not available:
        raise RuntimeError("saw no gate: the model calls no activation of the kinds asked for, or only in torchscript")
    if layers is None:
        return list(available)
    if isinstance(layers, int):
        if layers == 0:
            raise ValueError("layers is 0; expected n for the first n gating layers, -n for the last n")
        return list(available[layers:] if layers < 0 else available[:layers])
    wanted = [layers] if isinstance(layers, str) else layers
    if not wanted:
        raise ValueError(f"layers is {list(wanted)}; expected one or more of {', '.join(available)}")
    for name in wanted:
        if not any(_is_in(gate, name) for gate in available):
            raise ValueError(f"no gating layer {name!r}; there are: {', '.join(available)}")
    return [gate for gate in available if any(_is_in(gate, name) for name in wanted)]


class _Unpacked(Mapping[str, Tensor]):
    """Unpacks a layer when it is asked for."""

    def __init__(self, packed: dict[str, PackedGates]) -> None:
        self._packed = packed

    def __getitem__(self, layer: str) -> Tensor:
        if layer not in self._packed:
            raise KeyError(f"no gating layer {layer!r}; there are: {', '.join(self._packed)}")
        return self._packed[layer].unpack()

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)


def _is_in(gate: str, name: str) -> bool:
    """Whether a gating layer is the named one, or one in the named module."""
    return gate == name or gate.startswith((f"{name}.", f"{name}:", f"{name}#"))


def _check_pass(layers: dict[str, GatingLayer], seen: dict[str, tuple[GatingLayer, PackedGates, Tensor]]) -> None:
    """Every layer was called, without NaN, on as many samples as the others, in the shape of the passes before."""
    missing = [name for name in layers if name not in seen]
    if missing:
        raise ValueError(f"gating layer {missing[0]!r} was called in one forward pass and not in another")
    nan = torch.stack([flag for _, _, flag in seen.values()]).tolist()
    first = next(iter(seen))
    for is_nan, (name, (layer, gates, _)) in zip(nan, seen.items(), strict=True):
        if is_nan:
            raise ValueError(f"NaN at the input of gating layer {name!r}")
        if layer.shape != layers[name].shape:
            raise ValueError(f"gating layer {name!r} changed its shape from {layers[name].shape} to {layer.shape}")
        if len(gates) != len(seen[first][1]):
            counts = f"{first!r} {len(seen[first][1])}, {name!r} {len(gates)}"
            raise ValueError(f"gating layers disagree on the number of samples ({counts}); choose some with layers=")

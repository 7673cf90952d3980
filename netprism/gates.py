"""Gating states of any model: which activations were on, which input won a max-pool, what dropout kept.

A `TorchFunctionMode` sees every call of an activation, whether it comes from a module, from `torch.nn.functional` or
from a method of a tensor, in place or not; forward hooks say in which module it happened. Module hooks alone miss
functional calls (all 57 ReLUs of torchvision's GoogLeNet), fx stops at control flow, and the autograd graph has no
names.

Not seen: calls inside torchscript and the dropout inside fused attention (a warning says so), and calls inside a custom
`autograd.Function`.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from netprism.packing import PackedGates
from netprism.pooling import max_pool_gates

KINDS = ("relu", "max_pool", "dropout")
Feeder = Literal["conv", "linear"]

# By name and not by function: F.relu, torch.relu, torch.relu_ and Tensor.relu_ are four functions and one operation.
_CLAMPS = {"hardtanh", "clamp", "clamp_min"}  # a ReLU where the lower bound is 0; nn.ReLU6 calls F.hardtanh
_RELUS = {
    "relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish",
    *_CLAMPS,
}  # fmt: skip
_MAX_POOLS = {f"{adaptive}max_pool{dims}d" for adaptive in ("", "adaptive_") for dims in (1, 2, 3)}
_DROPOUTS = {
    "dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "alpha_dropout", "feature_alpha_dropout",
}  # fmt: skip
_KIND_OF = {
    **dict.fromkeys(_RELUS, "relu"),
    **dict.fromkeys(_MAX_POOLS, "max_pool"),
    **dict.fromkeys(_DROPOUTS, "dropout"),
}
_FEEDER_OF: dict[str, Feeder] = {
    **dict.fromkeys((f"conv{transposed}{dims}d" for transposed in ("", "_transpose") for dims in (1, 2, 3)), "conv"),
    **dict.fromkeys(("linear", "matmul", "addmm", "mm"), "linear"),
}
# Modules whose forward pass is one gating call: their gates carry the module's name alone.
_GATING_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Hardtanh, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
    nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip


@dataclass(frozen=True)
class GateCall:
    """One call of a gating operation, seen just before it runs.

    Attributes:
        layer: `layer1.0.relu` for a module's call, `layer1.0.relu#1` for its second one in the same forward pass,
            `layer1.0:relu#0` for the first functional call in `layer1.0` itself.
        kind: one of `KINDS`.
        operation: torch's name of the call, `relu`, `gelu`, `max_pool2d`, ...
        input: the operation's input with its autograd history, not yet overwritten by an in-place form.
        fed_by: the kind of the last weighted operation before the call in this forward pass, None if there was none.
        rerun: the same call on another input.
    """

    layer: str
    kind: str
    operation: str
    input: Tensor
    fed_by: Feeder | None
    rerun: Callable[[Tensor], Tensor]
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    @torch.no_grad()
    def gates(self) -> Tensor:
        """Computes the gates: bool `(N, ...)` like the input; of a max-pool `(N, C, *output, elements of a window)`."""
        x = self.input.detach()
        if self.kind == "relu":
            return x > 0
        if self.kind == "max_pool":
            return max_pool_gates(x, self.operation.startswith("adaptive"), *self.arguments, **self.options)
        # The random numbers are drawn ahead and put back, so that the call itself draws the same ones. On ones, since a
        # zero of the output may be one of the input; alpha dropout sends what it drops below zero.
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            return self.rerun(torch.ones_like(x)) > 0


@dataclass(frozen=True)
class GatingLayer:
    """What is known of a recorded layer: its kind (of `KINDS`), what feeds it, and the shape of one sample's gates."""

    kind: str
    fed_by: Feeder | None
    shape: tuple[int, ...]


class GateRecord:
    """The gates of all forward passes in a `record_gates` block, in the order of the calls, one bit a gate and sample.

    Attributes:
        layers: what is known of each recorded layer, by its name.
    """

    def __init__(self, layers: Sequence[str] | int | None) -> None:
        self.layers: dict[str, GatingLayer] = {}
        self._wanted = layers
        self._passes = 0
        self._parts: dict[str, list[PackedGates]] = {}
        self._pass: dict[str, tuple[GatingLayer, PackedGates, Tensor]] = {}

    @property
    def packed(self) -> dict[str, PackedGates]:
        """Every layer's gates, packed: `PackedGates` of all samples."""
        for name, parts in self._parts.items():
            if len(parts) > 1:
                self._parts[name] = [PackedGates.concatenate(parts)]
        return {name: parts[0] for name, parts in self._parts.items()}

    @property
    def states(self) -> Mapping[str, Tensor]:
        """Every layer's gates, bool `(samples, ...)` in their natural shape, unpacked one layer at a time on access."""
        return _Unpacked(self.packed)

    def _visit(self, call: GateCall) -> None:
        if self._passes and call.layer not in self.layers:
            return
        gates = PackedGates.pack(call.gates())
        layer = GatingLayer(call.kind, call.fed_by, gates.shape)
        # amin passes NaN on, and takes a 20th of the time of isnan().any()
        self._pass[call.layer] = (layer, gates, call.input.detach().amin().isnan())

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
            parts.append(seen[name][1])

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
) -> Iterator[GateRecord]:
    """Records the gating states of every call of `model` inside the block.

    The gate of an activation (ReLU, GELU, SiLU, LeakyReLU, ELU, PReLU, ReLU6, Hardswish and relatives) is `input > 0`,
    that of a max-pool the one-hot argmax of each window, that of dropout its mask (all true where it is switched off).
    The model's outputs, gradients and random numbers stay the same to the bit; compiled parts run eagerly inside the
    block.

    Cost: 3 % of the forward pass (ViT-B/16) to 31 % (MobileNet-V2) on CPU, see `benchmarks/gates.py`; memory one bit a
    gate and sample, plus one batch.

    Args:
        model: any module; its own `forward` has to be called, in any mode, as often as there are batches.
        kinds: which gates, out of `KINDS`.
        layers: names of gating layers, or of modules that contain them; or a number, `-4` for the last four, `4` for
            the first four; None for all.
        relative_to: a part of the model as seen from which its modules are named (so that a wrapper leaves no prefix).

    Yields:
        The record: `.states` maps layer names to bool gates `(N, ...)`; `.packed` and `.layers` likewise.

    Raises:
        ValueError: an unknown kind or layer, NaN in an activation, or layers that disagree on the number of samples.
        RuntimeError: no gate was seen, or the model was not called.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> with record_gates(net) as gates:
        ...     out = net(torch.randn(5, 2))
        >>> {name: tuple(states.shape) for name, states in gates.states.items()}
        {'1': (5, 3)}

    Source: "Understanding, Analyzing, and Optimizing the Complexity of Deep Models", section 3.
    """
    record = GateRecord(layers)
    with watch_gates(model, record._visit, kinds, relative_to=relative_to, end_of_pass=record._end_of_pass):
        yield record
    record._check_complete()


@contextmanager
def watch_gates(
    model: nn.Module,
    visit: Callable[[GateCall], None],
    kinds: Sequence[str] = ("relu",),
    *,
    relative_to: nn.Module | None = None,
    end_of_pass: Callable[[bool], None] | None = None,
) -> Iterator[None]:
    """Calls `visit` before every gating operation in a forward pass of `model`: what `record_gates` is made of.

    Args:
        model: any module.
        visit: receives each `GateCall`.
        kinds: which gates, out of `KINDS`.
        relative_to: as in `record_gates`.
        end_of_pass: called after each forward pass of `model`, with False if it raised (or returned None).

    Raises:
        ValueError: an unknown kind.
    """
    check_kinds(kinds)
    names = _module_names(model, relative_to)
    watcher = _GateWatcher(model, names, kinds, visit, end_of_pass)
    scripted = [module for module in names if isinstance(module, torch.jit.ScriptModule)]
    if scripted:
        warnings.warn(f"gates inside torchscript are not recorded: {names[scripted[0]] or 'the model'}", stacklevel=5)
    with ExitStack() as stack:
        # Hooks registered after the first compiled call never fire. Loaded dynamo: somebody may have compiled
        # something.
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for module in names.keys() - set(scripted):
            stack.callback(module.register_forward_pre_hook(watcher.enter).remove)
            stack.callback(module.register_forward_hook(watcher.leave, always_call=True).remove)
        stack.enter_context(watcher)
        yield


def check_kinds(kinds: Sequence[str]) -> None:
    """Raises a ValueError unless there are kinds, all of them in `KINDS`."""
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise ValueError(f"unknown kind of gate {unknown[0] if unknown else None!r}; allowed: {', '.join(KINDS)}")


def select_layers(available: Sequence[str], layers: Sequence[str] | int | None) -> list[str]:
    """The chosen ones of the available gating layers, in their order; see `record_gates` for the forms of `layers`.

    Raises:
        RuntimeError: there is none available.
        ValueError: a name that fits none, or 0.
    """
    if not available:
        raise RuntimeError("saw no gate: the model calls no activation of the kinds asked for, or only in torchscript")
    if layers is None:
        return list(available)
    if isinstance(layers, int):
        if layers == 0:
            raise ValueError("layers=0 chooses none; give n for the first n gating layers, -n for the last n")
        return list(available[layers:] if layers < 0 else available[:layers])
    wanted = [layers] if isinstance(layers, str) else layers
    for name in wanted:
        if not any(_is_in(gate, name) for gate in available):
            raise ValueError(f"no gating layer {name!r}; there are: {', '.join(available)}")
    return [gate for gate in available if any(_is_in(gate, name) for name in wanted)]


class _GateWatcher(TorchFunctionMode):
    """Knows in which module the forward pass is, and names the gating calls there."""

    def __init__(
        self,
        model: nn.Module,
        names: Mapping[nn.Module, str],
        kinds: Sequence[str],
        visit: Callable[[GateCall], None],
        end_of_pass: Callable[[bool], None] | None,
    ) -> None:
        super().__init__()
        self._model, self._names, self._kinds = model, names, frozenset(kinds)
        self._visit, self._end_of_pass = visit, end_of_pass
        self._modules: list[nn.Module] = []
        self._start_of_pass()

    def _start_of_pass(self) -> None:
        self._calls: Counter[str] = Counter()
        self._fed_by: Feeder | None = None

    def enter(self, module: nn.Module, args: Any) -> None:  # noqa: ANN401 - torch's signature
        if module is self._model and not self._modules:
            self._start_of_pass()
        if module is self._model or self._modules:
            self._modules.append(module)

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:  # noqa: ANN401 - torch's signature
        if self._modules:
            self._modules.pop()
            if not self._modules and self._end_of_pass is not None:
                self._end_of_pass(output is not None)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        if self._modules:
            operation = getattr(func, "__name__", "").strip("_").removesuffix("_with_indices")
            self._fed_by = _FEEDER_OF.get(operation, self._fed_by)
            if _KIND_OF.get(operation) in self._kinds and _is_gating(operation, args, kwargs):
                self._visit(self._gate_call(func, operation, args, kwargs))
            elif operation == "scaled_dot_product_attention" and "dropout" in self._kinds:
                self._warn_of_fused_dropout(args, kwargs)
        return func(*args, **kwargs)

    def _gate_call(self, func: Any, operation: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> GateCall:  # noqa: ANN401
        x = args[0] if args else kwargs["input"]
        arguments = args[1:]
        options = {key: value for key, value in kwargs.items() if key != "input"}
        return GateCall(
            layer=self._layer_name(operation),
            kind=_KIND_OF[operation],
            operation=operation,
            input=x,
            fed_by=self._fed_by,
            rerun=lambda other: func(other, *arguments, **options),
            arguments=arguments,
            options=options,
        )

    def _layer_name(self, operation: str) -> str:
        module = self._modules[-1]
        path = self._names[module]
        if not isinstance(module, _GATING_MODULES):
            key = f"{path}:{operation}"
            self._calls[key] += 1
            return f"{key}#{self._calls[key] - 1}"
        path = path or type(module).__name__
        self._calls[path] += 1
        return path if self._calls[path] == 1 else f"{path}#{self._calls[path] - 1}"

    def _warn_of_fused_dropout(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if (args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0)) > 0:
            path = self._names[self._modules[-1]]
            warnings.warn(f"the dropout inside fused attention is not recorded: {path}", stacklevel=3)


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


def _module_names(model: nn.Module, relative_to: nn.Module | None) -> dict[nn.Module, str]:
    """Every module with its path, without the prefixes that wrappers (DDP, torch.compile) add."""
    names = {module: path for path, module in model.named_modules()}
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else relative_to
    if inner is not None:
        names.update({module: path for path, module in inner.named_modules()})
    return {module: ".".join(part for part in path.split(".") if part != "_orig_mod") for module, path in names.items()}


def _is_gating(operation: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the call gates at zero: every one does but a clamp with another lower bound."""
    if operation not in _CLAMPS:
        return True
    lower = args[1] if len(args) > 1 else kwargs.get("min_val", kwargs.get("min"))
    return isinstance(lower, int | float) and lower == 0


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

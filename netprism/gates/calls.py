"""Sees every gating operation in a model's forward pass, and names it by the module that it happens in.

A `TorchFunctionMode` sees every call of an activation, whether it comes from a module, from `torch.nn.functional` or
from a method of a tensor, in place or not; forward hooks say in which module it happened. Module hooks alone miss
functional calls (all 57 ReLUs of torchvision's GoogLeNet), fx stops at control flow, and the autograd graph has no
names.

Not seen: calls inside torchscript and the dropout inside fused attention (a warning says so); calls inside a custom
`autograd.Function`, nn.LSTM and nn.RNN; `torch.maximum(x, 0)` and clamps whose bound is a tensor.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from netprism.gates.pooling import max_pool_gates
from netprism.module_names import module_names, run_eagerly

KINDS = ("relu", "max_pool", "dropout")
PrecedingOp = Literal["conv", "linear"]

# By name and not by function: F.relu, torch.relu, torch.relu_ and Tensor.relu_ are four functions and one operation.
_CLAMPS = {"hardtanh", "clamp", "clip", "clamp_min", "threshold"}  # a ReLU at lower bound 0; nn.ReLU6 is F.hardtanh
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
_ATTENTION = {"scaled_dot_product_attention": 4, "multi_head_attention_forward": 10}  # where dropout_p is
_FEEDER_OF: dict[str, PrecedingOp] = {
    **dict.fromkeys((f"conv{transposed}{dims}d" for transposed in ("", "_transpose") for dims in (1, 2, 3)), "conv"),
    **dict.fromkeys(("linear", "matmul", "addmm", "mm"), "linear"),
}
# Modules whose forward pass is one gating call: their gates carry the module's name alone.
_GATING_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Hardtanh, nn.Threshold, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
    nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip


@dataclass(frozen=True)
class GateCall:
    """One call of a gating operation, seen just before it runs.

    Attributes:
        layer: Name: `layer1.0.relu` for a module's call, `layer1.0.relu#1` for its second one in the same forward pass,
            `layer1.0:relu#0` for the first functional call in `layer1.0` itself.
        kind: One of `KINDS`.
        operation: Torch's name of the call, `relu`, `gelu`, `max_pool2d`, ...
        input: The operation's input with its autograd history, not yet overwritten by an in-place form.
        preceded_by: Kind of the last weighted operation before the call in this forward pass; None without one.
        rerun: Function that makes the same call on another input.
    """

    layer: str
    kind: str
    operation: str
    input: Tensor
    preceded_by: PrecedingOp | None
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
            return max_pool_gates(x, self.operation, *self.arguments, **self.options)
        # The random numbers are drawn ahead and put back, so that the call itself draws the same ones. On ones, since a
        # zero of the output may be one of the input; alpha dropout sends what it drops below zero.
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            return self.rerun(torch.ones_like(x)) > 0


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
        model: Any module.
        visit: Function that receives each `GateCall`.
        kinds: Kinds of gates, out of `KINDS`.
        relative_to: See `record_gates`.
        end_of_pass: called after each forward pass of `model`, with False if it raised (or returned None).

    Raises:
        ValueError: an unknown kind.
    """
    check_kinds(kinds)
    names = module_names(model, relative_to)
    watcher = _GateWatcher(model, names, kinds, visit, end_of_pass)
    scripted = [module for module in names if isinstance(module, torch.jit.ScriptModule)]
    if scripted:
        warnings.warn(f"gates inside torchscript are not recorded: {names[scripted[0]] or 'the model'}", stacklevel=5)
    with ExitStack() as stack:
        stack.enter_context(run_eagerly())
        for module in names.keys() - set(scripted):
            stack.callback(module.register_forward_pre_hook(watcher.enter).remove)
            stack.callback(module.register_forward_hook(watcher.leave, always_call=True).remove)
        stack.enter_context(watcher)
        yield


def check_kinds(kinds: Sequence[str]) -> None:
    """Raises a ValueError unless there are kinds, all of them in `KINDS`."""
    if isinstance(kinds, str):
        raise ValueError(f"kinds is the text {kinds!r}; give a list, such as [{kinds!r}]")
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise ValueError(f"unknown kind of gate {unknown[0] if unknown else None!r}; allowed: {', '.join(KINDS)}")


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
        self._preceded_by: PrecedingOp | None = None

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
            self._preceded_by = _FEEDER_OF.get(operation, self._preceded_by)
            if _KIND_OF.get(operation) in self._kinds and _is_gating(operation, args, kwargs):
                with torch._C.DisableTorchFunction():  # a recorder around this one must not see what is tried here
                    self._visit(self._gate_call(func, operation, args, kwargs))
            elif operation in _ATTENTION and "dropout" in self._kinds:
                self._warn_of_fused_dropout(operation, args, kwargs)
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
            preceded_by=self._preceded_by,
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

    def _warn_of_fused_dropout(self, operation: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        place = _ATTENTION[operation]
        probability = args[place] if len(args) > place else kwargs.get("dropout_p", 0.0)
        if probability > 0 and kwargs.get("training", True):
            path = self._names[self._modules[-1]]
            warnings.warn(f"the dropout inside fused attention is not recorded: {path}", stacklevel=3)


def _is_gating(operation: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the call gates at zero: every one does but a clamp of numbers, or one with another lower bound."""
    if operation not in _CLAMPS:
        return True
    x = args[0] if args else kwargs["input"]
    names = ("min_val", "min", "threshold")
    lower = args[1] if len(args) > 1 else next((kwargs[name] for name in names if name in kwargs), None)
    return x.is_floating_point() and x.dim() > 1 and isinstance(lower, int | float) and lower == 0

"""Read the features of named layers while a model runs."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from netprism.module_names import match_name, module_names, no_such_layer, run_eagerly


def layer_names(model: nn.Module, relative_to: nn.Module | None = None) -> list[str]:
    """Names of all layers of `model` that can be tapped, in the order of their registration.

    The names are those of `model.named_modules()`, without the prefixes that DDP and `torch.compile` add, and without
    the path of `relative_to`, a part of `model`, for the layers in it.

    Example:
        >>> layer_names(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
        ['0', '1']
    """
    return list(_layers(model, relative_to))


@contextmanager
def tap(
    model: nn.Module,
    layers: Iterable[str],
    *,
    detach: bool = False,
    inputs: bool = False,
    relative_to: nn.Module | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Collects the outputs of the named layers when the model runs inside the block.

    A layer that runs several times in one pass gives `name`, `name#1`, `name#2`, ..., as gates are named; asking for
    `name` gives all of them, asking for `name#1` that one. A pass begins with each call of `model`, and only the last
    pass is kept. Where only parts of `model` are called (`model.encoder(x)`), all calls in the block are one pass.

    Gradients flow through the features: they are tensors of the graph itself, and the model continues with copies,
    so that an in-place ReLU behind a layer does not overwrite what was read. Compiled models run eagerly inside the
    block, since hooks registered after the first compiled call never fire. Nothing stays behind, also after an
    exception.

    Args:
        model: Any module, in train or eval mode.
        layers: Names out of `layer_names(model)`, with or without `#1`; one alone may be a plain string.
        detach: Keep copies without gradient instead; the model continues with its own tensors.
        inputs: Collect the inputs of the layers instead of their outputs.
        relative_to: Part of `model`; layers may then be named as seen from there, as well as from `model`.

    Yields:
        {name: tensor} in the order of the calls, filled by each pass; it may be used after the block.

    Raises:
        ValueError: `model` has no layer of that name.
        TypeError: A layer takes something other than one tensor, or returns no tensor, see `first_tensor`; raised
            where the model is called.
        RuntimeError: A layer did not run in the last pass; raised at the end of the block.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
        >>> with tap(model, ["0"]) as features:
        ...     out = model(torch.ones(2, 4))
        >>> torch.equal(features["0"].relu(), out)
        True
    """
    wanted = [layers] if isinstance(layers, str) else list(layers)
    recorder = _Recorder(wanted, detach=detach, inputs=inputs)
    modules = {name: find_layer(model, name, relative_to) for name in map(_without_call, wanted)}
    with ExitStack() as stack:
        stack.enter_context(run_eagerly())
        stack.callback(model.register_forward_pre_hook(recorder.start_pass).remove)
        stack.callback(model.register_forward_hook(recorder.end_pass, always_call=True).remove)
        for name, module in modules.items():
            stack.callback(recorder.attach(name, module).remove)
        yield recorder.features
    silent = [name for name in wanted if name not in recorder.features]
    if silent:
        raise RuntimeError(f"layer {silent[0]!r} did not run in the last pass of {type(model).__name__}")


class _Recorder:
    """Hooks that keep what flows through layers, and the names under which they keep it."""

    def __init__(self, wanted: list[str], *, detach: bool, inputs: bool) -> None:
        self.features: dict[str, Tensor] = {}
        self._wanted = frozenset(wanted)
        self._detach, self._inputs = detach, inputs
        self._calls: Counter[str] = Counter()
        self._recording = True

    def start_pass(self, *_: object) -> None:
        self.features.clear()
        self._calls.clear()
        self._recording = True

    def end_pass(self, *_: object) -> None:
        self._recording = False  # activation checkpointing runs layers again in the backward pass

    def attach(self, name: str, module: nn.Module) -> RemovableHandle:
        def after(_: nn.Module, args: Any, output: Any) -> Any:  # noqa: ANN401 - torch's signature
            return self._keep(name, output)

        def before(_: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:  # noqa: ANN401 - torch's signature
            values = (*args, *kwargs.values())
            value = self._keep(name, values[0] if len(values) == 1 else values)
            return ((value,), {}) if args else ((), dict.fromkeys(kwargs, value))

        if self._inputs:
            return module.register_forward_pre_hook(before, with_kwargs=True)
        return module.register_forward_hook(after)

    def _keep(self, name: str, value: object) -> Any:  # noqa: ANN401 - a layer's output
        """Keeps `value` if it is wanted; returns what the model continues with."""
        feature = value if self._inputs else first_tensor(value)
        if not isinstance(feature, Tensor):
            verb = "takes" if self._inputs else "returns"
            raise TypeError(f"layer {name!r} {verb} {_describe(value)}, not one tensor")
        key = f"{name}#{self._calls[name]}" if self._calls[name] else name
        self._calls[name] += 1
        if not self._recording or self._wanted.isdisjoint((name, key)):
            return value
        self.features[key] = feature.detach().clone() if self._detach else feature
        return value if self._detach else _with_first(value, feature.clone())


def first_tensor(value: object) -> object:
    """Returns the feature in a layer's output: the tensor, or the first one of a tuple or a dict; otherwise None.

    An `nn.LSTM` returns its outputs and then its state, a transformer of Hugging Face a `ModelOutput`. A list has
    features of several layers.
    """
    if isinstance(value, Mapping):
        return next((item for item in value.values() if isinstance(item, Tensor)), None)
    if isinstance(value, tuple):
        return value[0] if value and isinstance(value[0], Tensor) else None
    return value if isinstance(value, Tensor) else None


def _with_first(value: Any, feature: Tensor) -> Any:  # noqa: ANN401 - a layer's output
    """A copy of an output with its feature replaced."""
    if isinstance(value, Mapping):
        changed: Any = copy.copy(value)
        changed[next(key for key, item in value.items() if isinstance(item, Tensor))] = feature
        return changed
    if isinstance(value, tuple):
        items = (feature, *value[1:])
        return type(value)(*items) if hasattr(value, "_fields") else items
    return feature


def _layers(model: nn.Module, relative_to: nn.Module | None) -> dict[str, nn.Module]:
    names = {module: name for module, name in module_names(model, relative_to).items() if name}
    within = set() if relative_to is None else set(relative_to.modules())
    own = {name: module for module, name in names.items() if module in within}
    return own | {name: module for module, name in names.items() if name not in own}


def find_layer(model: nn.Module, name: str, relative_to: nn.Module | None = None) -> nn.Module:
    """Returns the layer of `model` with a name out of `layer_names(model, relative_to)` or `layer_names(model)`.

    The end of a name is enough where only one ends so: `layer1` of `encoder.layer1`.

    Raises:
        ValueError: There is none; the message lists the layers by the names that may be typed.
    """
    layers = _layers(model, relative_to)
    known = layers if name in layers else _layers(model, None) | layers
    if (found := match_name(name, list(known), _owner(model, relative_to))) is None:
        raise ValueError(no_such_layer(type(relative_to or model).__name__, name, layers))
    return known[found]


def _owner(model: nn.Module, relative_to: nn.Module | None) -> str:
    return next((name for name, module in model.named_modules() if module is relative_to), "")


def last_linear(model: nn.Module) -> str:
    """Returns the name of the last fully connected layer, without the prefixes that DDP and `torch.compile` add.

    Raises:
        ValueError: There is none.
    """
    names = [name for name, layer in _layers(model, None).items() if isinstance(layer, nn.Linear)]
    if not names:
        raise ValueError(f"{type(model).__name__} has no fully connected layer; expected one, or the name of a layer")
    return names[-1]


def _without_call(name: str) -> str:
    """`layer1.0.relu` of `layer1.0.relu#1`."""
    return name.partition("#")[0]


def _describe(value: object) -> str:
    """Describes what a layer gave: `tuple of (Tensor, NoneType)`, `dict of (Tensor)`, `NoneType`."""
    kind = type(value).__name__
    if not isinstance(value, tuple | list | dict):
        return kind
    items = value.values() if isinstance(value, dict) else value
    return f"{kind} of ({', '.join(type(item).__name__ for item in items)})"

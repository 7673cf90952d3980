"""How a monitor calls anybody's model: which part of a batch the network gets, found by trying it once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

T = TypeVar("T")
Call = Callable[[pl.LightningModule, Any], Any]
Unpack = Callable[[Any], Any]

INPUT_KEYS = ("image", "images", "pixel_values", "input", "inputs", "x", "input_ids")
LABEL_KEYS = ("label", "labels", "target", "targets", "y")
NETWORKS = ("net", "network", "model", "module", "backbone")  # what most people call the attribute


@dataclass(frozen=True)
class Arguments:
    """What a network gets, where that is not one positional argument."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Way:
    """A way from a batch to what the network gets.

    Attributes:
        text: The same in Python, for the user: `batch[0]`.
        inputs: Function from a batch to the one positional argument, or to `Arguments`.
        is_usual: Whether anybody would expect it; the others are said.
    """

    text: str
    inputs: Callable[[Any], Any]
    is_usual: bool = True


class Called(nn.Module):
    """A model that also takes `Arguments`, or whole batches through a user's `call`; its modules keep their names.

    Args:
        target: The module that is called.
        pl_module: The module in training, the first argument of `call`.
        call: Function from it and a batch to an output, or None.
    """

    def __init__(self, target: nn.Module, pl_module: pl.LightningModule, call: Call | None) -> None:
        super().__init__()
        self._modules[""] = target if call is None else pl_module  # no name of its own: no prefix before the others'
        self._call = call

    def forward(self, inputs: Any) -> Any:  # noqa: ANN401 - a model's own
        target: Any = self._modules[""]
        if self._call is not None:
            return self._call(target, inputs)
        return target(*inputs.args, **inputs.kwargs) if isinstance(inputs, Arguments) else target(inputs)


class FunctionOfOne(nn.Module):
    """A model as a function of one of the tensors that it gets, or of what a layer (an embedding) makes of them.

    The other tensors with one row are expanded to the rows of the argument.

    Args:
        model: The model.
        inputs: What it gets, of one row where there are several tensors.
        layer: The layer whose output is the argument; None for the first floating tensor of the inputs.

    Raises:
        TypeError: There is no floating tensor.
    """

    def __init__(self, model: nn.Module, inputs: Any, layer: nn.Module | None = None) -> None:  # noqa: ANN401
        super().__init__()
        self._modules[""] = model
        self._inputs, self._layer = inputs, layer
        self._argument = None if layer is not None else first_floating(inputs)
        if layer is None and self._argument is None:
            raise TypeError(f"inputs are {describe(inputs)}; expected a floating tensor, or input_layer='an embedding'")

    def start(self) -> Tensor:
        """Returns the argument at which the model is looked at."""
        if self._argument is not None:
            return self._argument
        found: list[Tensor] = []
        assert self._layer is not None
        hook = self._layer.register_forward_hook(lambda _, __, output: found.append(output))
        try:
            with torch.no_grad():
                self._modules[""](self._inputs)  # type: ignore[misc]
        finally:
            hook.remove()
        if len(found) != 1 or not isinstance(found[0], Tensor):
            raise TypeError(f"input_layer ran {len(found)} times, giving {describe(found)}; expected one tensor")
        return found[0].detach()

    def forward(self, x: Tensor) -> Any:  # noqa: ANN401 - a model's own
        def fit(value: Tensor) -> Tensor:
            if value is self._argument:
                return x
            return value.expand(len(x), *value.shape[1:]) if value.dim() and len(value) == 1 else value

        inputs = map_tensors(self._inputs, fit)
        if self._layer is None:
            return self._modules[""](inputs)  # type: ignore[misc]
        hook = self._layer.register_forward_hook(lambda _, __, output: x)
        try:
            return self._modules[""](inputs)  # type: ignore[misc]
        finally:
            hook.remove()


def ways(batch: Any, forward: Callable[..., Any]) -> Iterator[Way]:  # noqa: ANN401 - a user's batch
    """Yields the ways in which `forward` may be meant to take a batch, the likeliest first."""
    parameters = inspect.signature(forward).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = sum(p.default is p.empty for p in positional)
    if isinstance(batch, Mapping):
        yield from _ways_of_a_dict(batch, "batch", lambda batch: batch, forward)
    elif isinstance(batch, tuple | list) and batch:
        if required <= 1:
            yield Way("batch[0]", lambda batch: batch[0])
        elif required <= len(batch):
            text = ", ".join(f"batch[{i}]" for i in range(required))
            yield Way(text, lambda batch: Arguments(tuple(batch[:required])))
        first = batch[0]
        if isinstance(first, Mapping):
            yield from _ways_of_a_dict(first, "batch[0]", lambda batch: batch[0], forward)
        if isinstance(first, tuple | list) and first:
            if required == len(first):
                yield Way("*batch[0]", lambda batch: Arguments(tuple(batch[0])))
            yield Way("batch[0][0]", lambda batch: batch[0][0], is_usual=False)
        if isinstance(first, Tensor) and first.dim() > 2:
            yield Way("batch[0].flatten(1)", lambda batch: batch[0].flatten(1), is_usual=False)
    if not isinstance(batch, Mapping):
        yield Way("batch", lambda batch: batch, is_usual=isinstance(batch, Tensor))
        if isinstance(batch, Tensor) and batch.dim() > 2:
            yield Way("batch.flatten(1)", lambda batch: batch.flatten(1), is_usual=False)


def _ways_of_a_dict(
    content: Mapping[Any, Any], text: str, get: Callable[[Any], Any], forward: Callable[..., Any]
) -> Iterator[Way]:
    parameters = inspect.signature(forward).parameters.values()
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    taken = [key for key in content if isinstance(key, str) and (takes_all or key in named)]
    without_labels = [key for key in taken if key not in LABEL_KEYS]
    for keys in [without_labels] if without_labels == taken else [without_labels, taken]:
        if keys:
            listed = ", ".join(f"{key}={text}[{key!r}]" for key in keys)
            yield Way(listed, lambda batch, keys=keys: Arguments((), {key: get(batch)[key] for key in keys}))  # type: ignore[misc]
    for key in (key for key in INPUT_KEYS if key in content):
        yield Way(f"{text}[{key!r}]", lambda batch, key=key: get(batch)[key])  # type: ignore[misc]
    yield Way(text, get, is_usual=False)


def unpacked(result: Any, forward: Callable[..., Any]) -> tuple[Any, Any]:  # noqa: ANN401 - a user's
    """Returns inputs and labels of what a user's `unpack` returned.

    That is `(inputs, labels)`, `(args, kwargs, labels)`, or the inputs alone. Inputs that are a tuple are positional
    arguments; a dict gives keywords where `forward` takes such.
    """
    if not isinstance(result, tuple):
        inputs, labels = result, None
    elif len(result) == 3 and isinstance(result[0], tuple | list) and isinstance(result[1], Mapping):
        return Arguments(tuple(result[0]), dict(result[1])), result[2]
    elif len(result) == 2:
        inputs, labels = result
    else:
        raise ValueError(f"unpack returns {describe(result)}; expected (inputs, labels) or (args, kwargs, labels)")
    if isinstance(inputs, tuple) and type(inputs) is tuple:
        return Arguments(inputs), labels
    if isinstance(inputs, Mapping):
        parameters = inspect.signature(forward).parameters
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()) or inputs.keys() <= parameters.keys():
            return Arguments((), dict(inputs)), labels
    return inputs, labels


def labels_of(batch: Any) -> object:  # noqa: ANN401 - a user's batch
    """Returns the labels of a batch or an item, of whatever kind: its second part, or the usual keys of a dict."""
    if isinstance(batch, tuple | list):
        if len(batch) > 1:
            return labels_of(batch[1]) if isinstance(batch[1], Mapping) else batch[1]
        return labels_of(batch[0]) if batch and isinstance(batch[0], Mapping) else None
    if isinstance(batch, Mapping):
        return next((batch[key] for key in LABEL_KEYS if key in batch), None)
    return None


def map_tensors(tree: Any, function: Callable[[Tensor], Any]) -> Any:  # noqa: ANN401 - a user's batch
    """Returns a copy of nested tuples, lists, dicts and `Arguments` with the function's result for each tensor."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Arguments):
        return Arguments(map_tensors(tree.args, function), map_tensors(tree.kwargs, function))
    if isinstance(tree, Mapping):
        return {key: map_tensors(value, function) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        items = [map_tensors(value, function) for value in tree]
        return items if isinstance(tree, list) else type(tree)(*items) if hasattr(tree, "_fields") else tuple(items)
    return tree


def tensors_of(tree: Any) -> list[Tensor]:  # noqa: ANN401 - a user's batch
    """Returns all tensors of nested tuples, lists, dicts and `Arguments`, in order."""
    found: list[Tensor] = []
    map_tensors(tree, found.append)
    return found


def first_floating(tree: Any) -> Tensor | None:  # noqa: ANN401 - a user's batch
    """Returns the first floating tensor, or None."""
    return next((value for value in tensors_of(tree) if value.is_floating_point()), None)


def one_by_one(inputs: Any, rows: int) -> list[Any]:  # noqa: ANN401 - a user's batch
    """Returns the inputs of each row: the rows of all tensors that have as many."""

    def row(i: int) -> Callable[[Tensor], Tensor]:
        return lambda value: value[i : i + 1] if value.dim() and len(value) == rows else value

    return [map_tensors(inputs, row(i)) for i in range(rows)]


def describe(value: object) -> str:
    """Describes a batch: `list of (Tensor 64x1x28x28, Tensor 64)`, `dict of (input_ids: Tensor 8x16)`."""
    if isinstance(value, Tensor):
        return f"Tensor {'x'.join(map(str, value.shape)) or 'scalar'}"
    if isinstance(value, Arguments):
        return describe((*value.args, value.kwargs) if value.kwargs else value.args)
    if isinstance(value, Mapping):
        return f"dict of ({', '.join(f'{key}: {describe(item)}' for key, item in value.items())})"
    if isinstance(value, tuple | list):
        return f"{type(value).__name__} of ({', '.join(map(describe, value[:4]))}{', ...' if len(value) > 4 else ''})"
    return type(value).__name__


def callable_and_network(pl_module: pl.LightningModule, chosen: str | None = None) -> tuple[nn.Module, nn.Module]:
    """Returns what a monitor calls, and the network from which layers are named.

    Args:
        pl_module: The module in training.
        chosen: Name of one of its networks, which is then called itself.

    Raises:
        ValueError: There is no such network; or the module has no `forward`, and no single network to call instead.
    """
    if chosen is not None:
        modules = dict(pl_module.named_modules())
        if chosen not in modules or not chosen:
            raise ValueError(
                f"network is {chosen!r}; expected a part of {type(pl_module).__name__}: {_networks_text(pl_module)}"
            )
        return modules[chosen], modules[chosen]
    network = network_of(pl_module)
    if type(pl_module).forward.__qualname__ != "LightningModule.forward":
        return pl_module, network
    if len(_networks(pl_module)) != 1:
        raise ValueError(
            f"{type(pl_module).__name__} has no forward, and not one network to call instead "
            f"({_networks_text(pl_module)}); write network= with one of them, or call=lambda pl_module, batch: ..."
        )
    return network, network


def network_of(pl_module: nn.Module) -> nn.Module:
    """Returns the part from which layers are named: `layer1.0.relu` and not `net.layer1.0.relu`.

    It is the network called net, network, model, module or backbone; otherwise the first one, if it has more than half
    of all parameters and is no bare `nn.Sequential`; otherwise the module itself. So a head that is
    added later renames no layer.
    """
    networks = _networks(pl_module)
    if len(networks) == 1:
        return next(iter(networks.values()))
    candidates = [networks[name] for name in NETWORKS if name in networks]
    first = next(iter(networks.values()), pl_module)
    if 2 * _size(first) > _size(pl_module) and not isinstance(first, nn.Sequential):
        candidates.append(first)
    return next((network for network in candidates if any(True for _ in network.children())), pl_module)


def own_name(pl_module: nn.Module, network: nn.Module) -> str:
    """Returns the name of a network within its module, `net`; "" for the module itself."""
    return next((name for name, module in pl_module.named_modules() if module is network), "")


def short_names(layers: list[str] | int | None, pl_module: nn.Module) -> list[str] | int | None:
    """Returns names of layers as seen from the network, `0` for `net.0`; a number of layers and None are kept."""
    owner = own_name(pl_module, network_of(pl_module))
    return [name.removeprefix(f"{owner}.") for name in layers] if owner and isinstance(layers, list) else layers


def _networks(pl_module: nn.Module) -> dict[str, nn.Module]:
    return {name: child for name, child in pl_module.named_children() if _size(child)}


def _networks_text(pl_module: nn.Module) -> str:
    return ", ".join(_networks(pl_module)) or "none"


def _size(module: nn.Module) -> int:
    return sum(1 if isinstance(p, nn.UninitializedParameter) else p.numel() for p in module.parameters())

"""The layers of a network as a table: what each gives, and which measures can look at it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from netprism.components.network_split import SplitNetwork
from netprism.gates.record import record_gates
from netprism.module_names import module_names
from netprism.nets import tap_points
from netprism.outline import RanLayer, outermost_blocks, ran_layers

TRIED_SIZES = ((3, 224, 224), (3, 32, 32), (1, 28, 28), (1, 32, 32), (1, 8, 8), (64,), (784,))


@dataclass(frozen=True)
class LayerRow:
    """A module that ran, or a functional activation.

    Attributes:
        name: Its name, as every `layers=` takes it.
        depth: How deep it is nested; 0 for the parts of the network.
        kind: Name of its class, or of the function.
        shape: Shape of the output of one sample; None where it returns no tensor.
        gates: Number of gates in it for one sample: of its own and of its parts.
        discarding: Whether `InformationDiscarding` can look at it.
        knowledge: Whether `KnowledgePoints` can: it gives maps.
        components: Whether `FeatureComponents` can: it gives maps from which alone the network makes its output.
    """

    name: str
    depth: int
    kind: str
    shape: tuple[int, ...] | None
    gates: int
    discarding: bool
    knowledge: bool
    components: bool


@dataclass(frozen=True)
class LayerTable:
    """The layers of a network.

    Attributes:
        rows: One per module and functional activation, in the order of the network's parts.
        defaults: Layers that are taken where `layers` is None.
        default_maps: The same for the measures of maps.
    """

    rows: list[LayerRow]
    defaults: list[str]
    default_maps: list[str]


def layer_table(model: nn.Module, inputs: Any, network: nn.Module | None = None, depth: int = 2) -> LayerTable:  # noqa: ANN401
    """Returns the layers of a network, by running it on two samples.

    Whether `FeatureComponents` fits is tried for each layer with maps, at the cost of four passes each.

    Args:
        model: The network, in eval mode; it is called as `model(inputs)`.
        inputs: A tensor with two samples.
        network: Part of the model as seen from which layers are named.
        depth: How deep the parts of parts are listed; what is taken by default is listed at any depth.

    Raises:
        RuntimeError: Whatever the network raises for these inputs.
    """
    rows = len(inputs)
    with torch.no_grad():
        ran = ran_layers(model, lambda: model(inputs), network)
        gates = _gates(model, inputs, network)
        whole = network or model
        names = {module: name for module, name in module_names(model, network).items() if name and module in ran}
        listed, table = set(names.values()), list[LayerRow]()
        defaults, default_maps = _defaults(whole, ran, rows), _defaults(whole, ran, rows, dims=4)
        for module, name in names.items():
            nested = _depth(name, listed)
            if nested >= depth and name not in (*defaults, *default_maps):
                continue
            layer = ran[module]
            is_map = layer.is_floating and layer.shape is not None and len(layer.shape) == 4 and layer.shape[0] == rows
            table.append(
                LayerRow(
                    name,
                    nested,
                    type(module).__name__,
                    None if layer.shape is None else layer.shape[1:],
                    sum(count for gate, count in gates.items() if _holds(name, gate)),
                    layer.is_floating and layer.shape is not None and layer.shape[0] == rows,
                    is_map,
                    is_map and _splits(model, name, inputs, network),
                )
            )
        table += [
            LayerRow(gate, _depth(gate, listed), gate.partition(":")[2].partition("#")[0], None, count, *[False] * 3)
            for gate, count in gates.items()
            if ":" in gate and _depth(gate, listed) < depth
        ]  # fmt: skip
    return LayerTable(_in_order(table), defaults, default_maps)


def run_on_some(model: nn.Module, sizes: Sequence[tuple[int, ...]] = TRIED_SIZES, tokens: int | None = None) -> Tensor:
    """Returns two samples on which a network runs: of the first size that fits.

    Args:
        model: The network.
        sizes: Sizes of one sample.
        tokens: Length of a sequence of integers to take instead.

    Raises:
        ValueError: It runs on none of them; names the first error.
    """
    draws = torch.Generator().manual_seed(0)
    found: list[Exception] = []
    given = (
        [torch.ones(2, tokens, dtype=torch.long)] if tokens else [torch.randn(2, *s, generator=draws) for s in sizes]
    )
    for inputs in given:
        try:
            with torch.no_grad():
                model(inputs)
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError) as error:
            found.append(error)
            continue
        return inputs
    tried = ", ".join("x".join(map(str, inputs.shape[1:])) for inputs in given)
    said = " ".join(str(found[0]).split())[:200]
    raise ValueError(f"{type(model).__name__} runs on no input of size {tried} ({said}); expected --size or --tokens")


def _gates(model: nn.Module, inputs: Any, network: nn.Module | None) -> dict[str, int]:  # noqa: ANN401
    try:
        with record_gates(model, relative_to=network) as record:
            model(inputs)
    except (RuntimeError, ValueError):  # a network without an activation
        return {}
    return {name: int(torch.Size(layer.shape).numel()) for name, layer in record.layers.items()}


def _splits(model: nn.Module, name: str, inputs: Any, network: nn.Module | None) -> bool:  # noqa: ANN401
    try:
        SplitNetwork(model, name, relative_to=network).find_head(inputs)
    except Exception:  # whatever the network makes of a feature that it does not expect
        return False
    return True


def _defaults(network: nn.Module, ran: dict[nn.Module, RanLayer], rows: int, dims: int | None = None) -> list[str]:
    return list(tap_points(network)) or outermost_blocks(network, ran, rows, dims=dims)


def _holds(name: str, gate: str) -> bool:
    return gate == name or gate.startswith((f"{name}.", f"{name}:", f"{name}#"))


def _depth(name: str, known: Collection[str]) -> int:
    """The number of listed modules around one."""
    owner = name.partition(":")[0] if ":" in name else name.rpartition(".")[0]
    parts = owner.split(".") if owner else []
    return sum(".".join(parts[: i + 1]) in known for i in range(len(parts)))


def _in_order(rows: list[LayerRow]) -> list[LayerRow]:
    """Functional activations behind the module that they are in."""
    found = [row for row in rows if ":" not in row.name]
    for row in rows:
        owner, functional, _ = row.name.partition(":")
        if functional:
            behind = [i + 1 for i, other in enumerate(found) if not owner or _holds(owner, other.name)]
            found.insert(max(behind, default=len(found)), row)
    return found

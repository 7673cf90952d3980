"""Layers of a trained network are replaced, or new ones put behind them."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from netprism.module_names import module_names
from netprism.taps import find_layer


def replace_layer(model: nn.Module, name: str, new: nn.Module | Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Puts another module in the place of a layer, in place; returns the layer that was there.

    Args:
        model: Any network.
        name: A name out of `netprism.taps.layer_names(model)`.
        new: The module, or a function from the layer to it.

    Raises:
        ValueError: There is no such layer, or the network has it in several places.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> replace_layer(model, "1", nn.Tanh())
        ReLU()
        >>> model[1]
        Tanh()
    """
    old = find_layer(model, name)
    places = [(parent, key) for parent in model.modules() for key, child in parent._modules.items() if child is old]
    if len(places) != 1:
        names = module_names(model)
        where = ", ".join(f"{names[parent]}.{key}".lstrip(".") for parent, key in places)
        raise ValueError(f"layer {name!r} is in {len(places)} places ({where}); expected one")
    parent, key = places[0]
    setattr(parent, key, new if isinstance(new, nn.Module) else new(old))
    return old


def insert_layer(model: nn.Module, name: str, new: nn.Module) -> None:
    """Puts a module behind a layer, in place: an extra max-pool, a normalisation, noise.

    Args:
        model: Any network.
        name: A name out of `netprism.taps.layer_names(model)`; the layer is then `name.0` and the new one `name.1`.
        new: The module; it gets what the layer returns.

    Raises:
        ValueError: There is no such layer, or the network has it in several places.
    """
    replace_layer(model, name, lambda old: nn.Sequential(old, new))

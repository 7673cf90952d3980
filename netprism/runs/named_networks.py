"""Networks by their names: torchvision's, timm's, or anybody's by class path."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from torch import nn
from torchvision.models import get_model, get_model_weights, list_models

TORCHVISION = "torchvision.models."
TIMM = "timm."


def named_network(name: str, weights: str | None = None, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """Returns a network by its name.

    Args:
        name: One of torchvision's models (`resnet18`, `torchvision.models.resnet18`), of timm's (`timm.resnet18`), or a
            path to a class or function that returns a module (`package.module.Net`).
        weights: The library's name of its own weights, such as "DEFAULT"; None for new ones. They are downloaded.
        arguments: What a class is called with, as far as it takes it: the hyperparameters of a checkpoint.

    Raises:
        ValueError: There is no such network, or it cannot be made without arguments.
    """
    if name.startswith(TIMM):
        return _of_timm(name.removeprefix(TIMM), weights)
    if name.removeprefix(TORCHVISION) in list_models():
        return _of_torchvision(name.removeprefix(TORCHVISION), weights)
    if name.startswith(TORCHVISION) or "." not in name:
        close = difflib.get_close_matches(name.removeprefix(TORCHVISION), list_models())
        listed = f"close: {', '.join(close)}" if close else f"torchvision's are {', '.join(list_models())}"
        raise ValueError(f"network is {name!r}; expected a model of torchvision, timm.NAME, or a class path; {listed}")
    if weights is not None:
        raise ValueError(f"weights is {weights!r}; expected a file, since {name} is not of torchvision or timm")
    return _made(name, _found(name), dict(arguments or {}))


def input_size(name: str | None, weights: str | None) -> tuple[tuple[int, int], list[float], list[float]] | None:
    """Returns height and width, mean and standard deviation with which torchvision's weights were trained, or None."""
    model = (name or "").removeprefix(TORCHVISION)
    if model not in list_models() or weights is None:
        return None
    choices = get_model_weights(model)
    if weights not in choices.__members__:
        return None
    prepare = choices[weights].transforms()
    side = getattr(prepare, "crop_size", [224])[0]
    return (side, side), list(prepare.mean), list(prepare.std)


def _of_torchvision(name: str, weights: str | None) -> nn.Module:
    known = list(get_model_weights(name).__members__)
    if weights is not None and weights not in (*known, "DEFAULT"):
        raise ValueError(f"weights is {weights!r}; expected a file, or one of {', '.join(dict.fromkeys(known))}")
    model: nn.Module = get_model(name, weights=weights)
    return model


def _of_timm(name: str, weights: str | None) -> nn.Module:
    try:
        timm = import_module("timm")
    except ModuleNotFoundError as error:
        raise ValueError(f"network is timm.{name}; expected timm to be installed: pip install timm") from error
    if name.partition(".")[0] not in timm.list_models():
        close = difflib.get_close_matches(name, timm.list_models())
        raise ValueError(f"network is timm.{name}; expected a model of timm, close: {', '.join(close) or 'none'}")
    model: nn.Module = timm.create_model(name, pretrained=weights is not None)
    return model


def _found(path: str) -> Any:  # noqa: ANN401 - a class or a function
    where, _, last = path.rpartition(".")
    try:
        module = import_module(where)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"network is {path!r}; expected a class path, but there is no module {error.name!r}"
        ) from error
    if not hasattr(module, last):
        close = difflib.get_close_matches(last, dir(module), n=1)
        hint = f", did you mean {close[0]}?" if close else ""
        raise ValueError(f"network is {path!r}; expected a class path, but {where} has no {last!r}{hint}")
    return getattr(module, last)


def _made(path: str, maker: Any, arguments: dict[str, Any]) -> nn.Module:  # noqa: ANN401 - a class or a function
    if isinstance(maker, nn.Module):
        return maker
    if not callable(maker):
        raise ValueError(f"network is {path!r}, a {type(maker).__name__}; expected a class or a function")
    parameters = inspect.signature(maker).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    taken = {key: value for key, value in arguments.items() if takes_all or key in parameters}
    missing = [
        p.name
        for p in parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in taken
    ]
    if missing:
        raise ValueError(
            f"{path} needs {', '.join(missing)}; expected a class that needs none, or a function that calls it"
        )
    made = maker(**taken)
    if not isinstance(made, nn.Module):
        raise ValueError(f"{path} makes a {type(made).__name__}; expected a module of torch")
    return made

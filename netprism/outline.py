"""What of a network runs, and which of its parts are worth looking at where nobody has named any."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from netprism.module_names import module_names, run_eagerly
from netprism.taps import first_tensor

MOST_LAYERS = 6
T = TypeVar("T")


@dataclass(frozen=True)
class RanLayer:
    """A module that ran.

    Attributes:
        name: Its name, as monitors log it.
        module: The module.
        shape: Shape of its output, or of the first tensor of several; None where it returns no tensor.
        is_floating: Whether these are floating numbers.
    """

    name: str
    module: nn.Module
    shape: tuple[int, ...] | None
    is_floating: bool


def ran_layers(
    model: nn.Module, run: Callable[[], object], relative_to: nn.Module | None = None
) -> dict[nn.Module, RanLayer]:
    """Runs a model once and returns every module that ran, in the order in which they ended; the last of its calls.

    Args:
        model: Any module.
        run: Function that calls it.
        relative_to: Part of the model as seen from which its modules are named.
    """
    names = module_names(model, relative_to)
    found: dict[nn.Module, RanLayer] = {}

    def after(module: nn.Module, args: object, output: object) -> None:
        feature = first_tensor(output)
        shape = tuple(feature.shape) if isinstance(feature, Tensor) else None
        found.pop(module, None)
        is_floating = isinstance(feature, Tensor) and feature.is_floating_point()
        found[module] = RanLayer(names[module], module, shape, is_floating)

    hooks = [module.register_forward_hook(after) for module in names if not isinstance(module, torch.jit.ScriptModule)]
    try:
        with run_eagerly():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def outermost_blocks(
    network: nn.Module, ran: dict[nn.Module, RanLayer], rows: int, most: int = MOST_LAYERS, dims: int | None = None
) -> list[str]:
    """Returns names of the blocks that a network consists of, at most six, in the order in which they run.

    A block is a part that has parts of its own and gives one feature per sample: maps or tokens where the network has
    such, otherwise vectors. Where there are fewer than three, the largest is looked into; where there are no blocks,
    the layers with parameters are taken, without the one that gives the output. Of more than six, those that divide the
    network evenly, the last one among them.

    Args:
        network: The network.
        ran: What ran, see `ran_layers`.
        rows: Number of samples it ran on.
        most: Largest number of blocks.
        dims: Take features with this number of dimensions only, the samples' among them: 4 for maps.
    """
    fitting = {m for m, layer in ran.items() if layer.is_floating and _fits(layer.shape, rows, dims)}
    rich = {m for m in fitting if len(ran[m].shape or ()) > 2}
    usable = rich or fitting
    level, found = _parts(network, ran), list[nn.Module]()
    while True:
        blocks = [m for m in level if m in usable and _parts(m, ran)]
        expandable = [m for m in level if _parts(m, ran)]
        found = blocks if len(blocks) > len(found) else found
        if len(found) >= 3 or not expandable:
            break
        largest = max(expandable, key=_size)
        at = level.index(largest)
        level = [*level[:at], *_parts(largest, ran), *level[at + 1 :]]
    order = list(ran)
    chosen = [m for m in order if m in set(found)]
    if len(chosen) < 2:
        last = order[-1] if order else None
        output = next((m for m in reversed(order) if m is not network and not _parts(m, ran)), last)
        inner = [m for m in order if m in usable and m is not network and not _parts(m, ran)]
        leaves = [m for m in inner if _size(m) and m is not output]
        chosen = chosen if len(chosen) > len(leaves) else leaves
    return [ran[m].name for m in evenly(chosen, most)]


def last_linear_that_ran(ran: dict[nn.Module, RanLayer]) -> str | None:
    """Returns the name of the last fully connected layer of a pass, or None; an auxiliary head ran before it."""
    names = [layer.name for module, layer in ran.items() if isinstance(module, nn.Linear)]
    return names[-1] if names else None


def evenly(items: Sequence[T], most: int) -> list[T]:
    """Returns at most `most` of the items at even distances, the last one among them."""
    if len(items) <= most:
        return list(items)
    return [items[round((i + 1) * len(items) / most) - 1] for i in range(most)]


def _parts(module: nn.Module, ran: dict[nn.Module, RanLayer]) -> list[nn.Module]:
    """The parts that ran; those of a container that is not called itself, such as a list, in its place."""
    found: list[nn.Module] = []
    for child in module.children():
        found += [child] if child in ran else _parts(child, ran)
    return found


def _fits(shape: tuple[int, ...] | None, rows: int, dims: int | None) -> bool:
    return shape is not None and len(shape) >= 2 and shape[0] == rows and dims in (None, len(shape))


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if not isinstance(p, nn.UninitializedParameter))

"""Compression of networks: magnitude pruning per layer, and weights that share a few values.

Source: Han et al. 2016, "Deep Compression", https://arxiv.org/abs/1510.00149, without its Huffman code.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from netprism.module_names import module_names
from netprism.taps import find_layer

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_ROUNDS = 1000  # most steps of k-means


@dataclass(frozen=True)
class LayerSize:
    """The size of the weights of one layer.

    Attributes:
        layer: Name of the layer.
        weights: Number of weights.
        kept: Number of weights that are not 0.
        values: Number of different values among the kept ones.
        bytes_before: Bytes of the plain tensor.
        bytes_after: Bytes of the smallest of three forms: the plain tensor; a bit per weight that tells which are
            kept, and their values; that, with a code of ceil(log2 values) bits per kept weight and a table of values.
    """

    layer: str
    weights: int
    kept: int
    values: int
    bytes_before: int
    bytes_after: int


def compressible_layers(model: nn.Module) -> list[str]:
    """Returns the names of all convolutions and fully connected layers."""
    kinds = (*CONVOLUTIONS, nn.Linear)
    return [name for module, name in module_names(model).items() if isinstance(module, kinds)]


def prune(model: nn.Module, s: float = 1.0, layers: Sequence[str] | None = None) -> dict[str, float]:
    """Sets the weights of each layer to 0 that are smaller than s times the standard deviation of all its weights.

    Of normally distributed weights the fraction erfc(s / sqrt 2) is left, .317 for s = 1. The weights that are 0
    already count in the deviation, and stay 0: pruning again after a retraining takes further weights. Masks are those
    of `torch.nn.utils.prune`, so a training goes on with the weights that are left; `make_permanent` removes the masks.

    Args:
        model: Any network; it is changed in place.
        s: Threshold in standard deviations, at least 0.
        layers: Names of convolutions and fully connected layers; None for all.

    Returns:
        {layer: fraction of the weights that is left}.

    Raises:
        ValueError: s is negative, a layer does not exist or has no weight, a weight is not finite, or a layer would be
            left without weights; nothing is changed then.

    Source: Han et al. 2015, section 3.1, https://arxiv.org/abs/1506.02626.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 1, bias=False))
        >>> with torch.no_grad():
        ...     _ = model[0].weight.copy_(torch.tensor([[3.0, -1.0, 0.1, -3.0]]))
        >>> prune(model), model[0].weight.tolist()
        ({'0': 0.5}, [[3.0, -0.0, 0.0, -3.0]])
    """
    if not 0 <= s < math.inf:
        raise ValueError(f"s is {s}; expected a number >= 0, in standard deviations of the weights of a layer")
    masks: dict[str, Tensor] = {}
    for name, module in _modules(model, layers).items():
        weight = plain_weight(module)
        threshold = s * weight.double().std(correction=0)
        masks[name] = (weight.double().abs() >= threshold) & (weight != 0)
        if not masks[name].any():
            raise ValueError(f"s is {s}, which leaves no weight of layer {name!r}; expected a smaller one")
    for name, mask in masks.items():
        _mask(find_layer(model, name), mask)
    return {name: float(mask.double().mean()) for name, mask in masks.items()}


def begin_pruning(model: nn.Module, layers: Sequence[str] | None = None) -> None:
    """Gives each layer a mask of ones: an optimiser made afterwards sees the same parameters whatever is pruned."""
    for module in _modules(model, layers).values():
        if not hasattr(module, "weight_mask"):
            torch_prune.identity(module, "weight")


def make_permanent(model: nn.Module) -> None:
    """Removes all masks of `prune`: what was pruned is 0, and the state dict is that of the plain network."""
    for module in model.modules():
        if hasattr(module, "weight_mask"):
            torch_prune.remove(module, "weight")


def share_weights(
    model: nn.Module, conv_bits: int = 8, linear_bits: int = 5, layers: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """Replaces the weights of each layer by 2^bits values, the centres of k-means; weights that are 0 stay 0.

    The centres start evenly between the smallest and the largest weight. A centre without weights moves to the weight
    that is farthest from its own, so that there are exactly 2^bits values (and 0, where the layer is pruned).

    Cost: one sort per layer, and then k log n per step of k-means, since cumulative sums give the means of n weights.
    (scikit-learn's `KMeans` takes n k.)

    Args:
        model: Any network, pruned or not; it is changed in place.
        conv_bits: Bits of a weight of a convolution.
        linear_bits: Bits of a weight of a fully connected layer.
        layers: Names of convolutions and fully connected layers; None for all that have as many different weights as
            centres: the others, such as the first convolution of a small network, stay as they are.

    Returns:
        {layer: the values, rising, `(2^bits,)`} of the layers that were changed.

    Raises:
        ValueError: A number of bits is below 1, a layer does not exist or has no weight, a weight is not finite, or a
            layer that is named, or every layer, has fewer different weights than centres; nothing is changed then.

    Source: Han et al. 2016, section 3, https://arxiv.org/abs/1510.00149.
    """
    for option, bits in (("conv_bits", conv_bits), ("linear_bits", linear_bits)):
        if not 1 <= bits <= 16:
            raise ValueError(f"{option} is {bits}; expected 1 to 16")
    found: dict[str, Tensor] = {}
    for name, module in _modules(model, layers).items():
        weight = plain_weight(module)
        kept = weight[weight != 0]
        centres = 2 ** (linear_bits if isinstance(module, nn.Linear) else conv_bits)
        if (different := len(kept.unique())) < centres:
            if layers is None:
                continue
            raise ValueError(
                f"layer {name!r} has {different} different weights; expected at least {centres}, the number of centres:"
                " give fewer bits, or leave the layer out"
            )
        found[name] = kmeans_of_numbers(kept, centres)
    if not found:
        raise ValueError(
            f"conv_bits is {conv_bits} and linear_bits is {linear_bits}; expected fewer, since no layer has as many "
            "different weights as centres"
        )
    with torch.no_grad():
        for name, values in found.items():
            module = find_layer(model, name)
            weight = plain_weight(module)
            shared = torch.where(weight == 0, weight, values[nearest(weight, values)])
            parameter = getattr(module, "weight_orig", None)
            target = module.weight if parameter is None else parameter
            assert isinstance(target, Tensor)
            target.copy_(shared)
            if parameter is not None:
                _mask(module, shared != 0)
    return found


def kmeans_of_numbers(values: Tensor, centres: int) -> Tensor:
    """Returns the centres of k-means of numbers, `(centres,)`, rising, in the type of `values`.

    Args:
        values: Numbers `(n,)`, with at least as many different ones as centres.
        centres: Number of centres; they start evenly between the least and the largest number.
    """
    points, counts = values.detach().double().flatten().unique(return_counts=True)
    zero = points.new_zeros(1)
    sums, numbers = torch.cat([zero, (points * counts).cumsum(0)]), torch.cat([zero, counts.double().cumsum(0)])
    found = torch.linspace(float(points[0]), float(points[-1]), centres, dtype=torch.float64, device=points.device)
    for _ in range(_ROUNDS):
        inner = torch.searchsorted(points, (found[1:] + found[:-1]) / 2)
        edges = torch.cat([inner.new_zeros(1), inner, inner.new_full((1,), len(points))])
        empty = edges.diff() == 0
        if empty.any():
            distance = (points - found.repeat_interleave(edges.diff())).abs()
            farthest = distance.topk(int(empty.sum())).indices
            found = torch.cat([found[~empty], points[farthest]]).sort().values
            continue
        means = sums[edges].diff() / numbers[edges].diff()
        if torch.equal(means, found):
            break
        found = means
    return found.to(values.dtype)


def nearest(values: Tensor, centres: Tensor) -> Tensor:
    """Returns the index of the centre that is nearest to each number; `centres` `(k,)` rise."""
    return torch.bucketize(values.detach(), (centres[1:] + centres[:-1]) / 2)


def layer_sizes(model: nn.Module, layers: Sequence[str] | None = None) -> list[LayerSize]:
    """Returns the sizes of the weights of layers, read from the weights themselves; None for all layers."""
    sizes = []
    for name, module in _modules(model, layers).items():
        weight = plain_weight(module)
        count, kept = weight.numel(), weight[weight != 0]
        values, bits = len(kept.unique()), 8 * weight.element_size()
        mask = count if len(kept) < count else 0
        coded = mask + len(kept) * math.ceil(math.log2(max(values, 2))) + bits * values
        after = min(count * bits, mask + len(kept) * bits, coded)
        sizes.append(LayerSize(name, count, len(kept), values, count * bits // 8, math.ceil(after / 8)))
    return sizes


def total_bytes(sizes: Iterable[LayerSize], model: nn.Module) -> tuple[int, int]:
    """Returns the bytes of all parameters of a network before and after, from the sizes of some of its layers."""
    before, after = 0, 0
    for size in sizes:
        before, after = before + size.bytes_before, after + size.bytes_after
    rest = sum(p.numel() * p.element_size() for p in model.parameters()) - before
    return before + rest, after + rest


def plain_weight(module: nn.Module) -> Tensor:
    """Returns the weight of a layer as its forward pass uses it, without gradient."""
    if hasattr(module, "weight_mask"):
        masked: Tensor = (module.weight_orig * module.weight_mask).detach()  # type: ignore[operator]
        return masked
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def _modules(model: nn.Module, layers: Sequence[str] | None) -> dict[str, nn.Module]:
    names = compressible_layers(model) if layers is None else list(layers)
    if not names:
        raise ValueError(f"layers is empty; expected convolutions or fully connected layers of {type(model).__name__}")
    found = {name: find_layer(model, name) if name else model for name in names}
    for name, module in found.items():
        if not isinstance(module, (*CONVOLUTIONS, nn.Linear)):
            kind = type(module).__name__
            raise ValueError(f"layer {name!r} is a {kind}; expected a convolution or a fully connected layer")
        if not plain_weight(module).isfinite().all():
            raise ValueError(f"layer {name!r} has weights that are NaN or infinite; expected finite ones")
    return found


def _mask(module: nn.Module, mask: Tensor) -> None:
    """Sets the mask of a layer, and its weight as the next forward pass would."""
    if not hasattr(module, "weight_mask"):
        torch_prune.custom_from_mask(module, "weight", mask)
        return
    with torch.no_grad():
        module.weight_mask.copy_(mask)  # type: ignore[operator]
    module.weight = module.weight_orig * module.weight_mask  # type: ignore[operator]

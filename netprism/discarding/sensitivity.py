"""How much the features of a layer move when each input unit does.

J is the Jacobian of the features f = h(x) of one layer at one image. Its columns' squared norms, one for each input
unit, come from vector-Jacobian products with random v ~ N(0, I): E_v[(J^T v)_i^2] = ||J_:,i||^2. No finite step is
taken: a step of 1 % of the images' standard deviation finds 6 to 12 % too little.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from netprism.taps import tap


def column_norms(
    model: nn.Module,
    layers: str | Sequence[str],
    x: Tensor,
    *,
    products: int = 64,
    groups: int = 1,
    seed: int = 0,
    chunk_size: int = 64,
) -> dict[str, Tensor]:
    """Estimates ||J_:,i||^2 of every input unit, for several layers with one forward pass.

    Each estimate has the law of ||J_:,i||^2 chi^2_S / S for S products. A unit that the features do not depend on gets
    0 exactly. The model is run in eval mode; its flags, buffers and gradients are left as they were.

    Args:
        model: called as `model(x)`.
        layers: names as `netprism.taps.tap` takes them; a layer that runs twice gives `name` and `name#1`.
        x: images `(N, ...)`, floating.
        products: S, vector-Jacobian products for each layer.
        groups: the products are dealt out to this many groups, each with an estimate of its own: for jackknife errors.
        seed: of the random v; the global random state is not used.
        chunk_size: images in a forward pass. The graph of one pass is what takes the memory; the v depend on it, too.

    Returns:
        {layer: float64 `(groups, N, ...)`}, in the order of the calls. Their mean over groups is the best estimate.

    Raises:
        ValueError: no such layer, images or features that are not finite, features that do not belong to the images
            row by row, fewer products than groups.
        TypeError: x or the features are not floating.

    Cost: one forward pass, and for each layer S backward passes to x.

    Source: "Quantifying Layerwise Information Discarding of Neural Networks and Beyond", section 3.1, to first order.
    """
    if not 1 <= groups <= products:
        raise ValueError(f"products is {products} and groups {groups}; expected 1 <= groups <= products")
    found: dict[str, list[Tensor]] = {}
    with evaluating(model):
        for start, images in _chunks(as_images(x), chunk_size):
            generator = torch.Generator(x.device).manual_seed(seed + start)
            images.requires_grad_()
            features = features_of(model, layers, images)
            for name, squares in _products(features, images, products, groups, generator).items():
                found.setdefault(name, []).append(squares)
    return {name: torch.cat(parts, dim=1) for name, parts in found.items()}


def jacobian_norms(
    model: nn.Module,
    layers: str | Sequence[str],
    x: Tensor,
    *,
    products: int = 1,
    seed: int = 0,
    chunk_size: int = 64,
) -> dict[str, Tensor]:
    """Estimates ||J||_F^2 of every image, {layer: float64 `(N,)`}; arguments and errors of :func:`column_norms`."""
    norms = column_norms(model, layers, x, products=products, seed=seed, chunk_size=chunk_size)
    return {name: norm.mean(0).flatten(1).sum(1) for name, norm in norms.items()}


def feature_scale(
    model: nn.Module,
    layers: str | Sequence[str],
    batches: Iterable[Any],
    *,
    products: int = 1,
    seed: int = 0,
    chunk_size: int = 64,
) -> dict[str, float]:
    """delta_f^2 = E_x ||J||_F^2 of each layer over a data set: how far features move for a small noise on the input.

    delta_f^2 = lim_(tau -> 0) E ||h(x + tau delta) - h(x)||^2 / tau^2 with delta ~ N(0, I). The images are streamed.

    Args:
        model: called as `model(images)`.
        layers: names, see :func:`column_norms`.
        batches: images `(N, ...)`, or tuples that begin with them, as a `DataLoader` of images and labels gives.
        products: vector-Jacobian products for each image and layer; one is enough where there are many images.
        seed: of the random v.
        chunk_size: images in a forward pass.

    Raises:
        ValueError: there are no images; else see :func:`column_norms`.

    Source: "Quantifying Layerwise Information Discarding of Neural Networks and Beyond", section 3.1.
    """
    total: dict[str, float] = {}
    count = 0
    for batch in batches:
        images = batch[0] if isinstance(batch, tuple | list) else batch
        norms = jacobian_norms(model, layers, images, products=products, seed=seed + count, chunk_size=chunk_size)
        total = {name: total.get(name, 0.0) + float(norm.sum()) for name, norm in norms.items()}
        count += len(images)
    if not count:
        raise ValueError("no images to take the feature scale of")
    return {name: value / count for name, value in total.items()}


def features_of(model: nn.Module, layers: str | Sequence[str], x: Tensor) -> dict[str, Tensor]:
    """Features {layer: `(N, ...)`} of images `(N, ...)`, part of the graph.

    Raises:
        TypeError: features that are not floating.
        ValueError: features that are not finite, or not one row for each image.
    """
    with tap(model, layers) as features:
        model(x)
    for name, feature in features.items():
        if not feature.is_floating_point():
            raise TypeError(f"layer {name!r} gives {feature.dtype}; expected floating features")
        if feature.dim() == 0 or len(feature) != len(x):
            raise ValueError(f"layer {name!r} gives {tuple(feature.shape)} for {len(x)} images; expected one row each")
        if not feature.isfinite().all():
            raise ValueError(f"layer {name!r} gives features that are not finite")
    return dict(features)


def as_images(x: Tensor) -> Tensor:
    """`x` itself, checked; inside `torch.inference_mode` a copy that takes part in autograd.

    Raises:
        TypeError: not a floating tensor.
        ValueError: no rows or no units, or values that are not finite.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"images are {kind}; expected float images as the network gets them: normalised, not bytes")
    if x.dim() < 2 or not x.numel():
        raise ValueError(f"images have shape {tuple(x.shape)}; expected (N, ...) with at least one image")
    if not x.isfinite().all():
        raise ValueError("images hold NaN or infinity")
    with torch.inference_mode(False):
        return x.clone() if x.is_inference() else x.detach()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode with gradients, in full precision and outside inference mode; then each flag as it was.

    Autocast is off because bfloat16 rounds features by as much as the noise that is looked for moves them (1 %).
    """
    flags = [(module, module.training) for module in model.modules()]
    device = next((parameter.device.type for parameter in model.parameters()), "cpu")
    try:
        model.eval()
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device, enabled=False):
            yield
    finally:
        for module, training in flags:
            module.training = training


def _chunks(x: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    """Rows of x in parts, with the number of the first row; each part is a tensor of its own."""
    if size < 1:
        raise ValueError(f"chunk_size is {size}; expected a number >= 1")
    for start in range(0, len(x), size):
        yield start, x[start : start + size].detach().clone()


def _products(
    features: dict[str, Tensor], x: Tensor, products: int, groups: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Mean of (J^T v)_i^2 in each group, {layer: float64 `(groups, N, ...)`}."""
    squares = {name: x.new_zeros(groups, *x.shape, dtype=torch.float64) for name in features}
    for number in range(products):
        for name, feature in features.items():
            if not feature.requires_grad:  # nothing on the way from x: its Jacobian is zero
                continue
            v = torch.randn(feature.shape, generator=generator, device=feature.device, dtype=feature.dtype)
            (product,) = torch.autograd.grad(feature, x, v, retain_graph=True, allow_unused=True)
            if product is not None:
                squares[name][number % groups] += product.double().square()
    for group in range(groups):
        for square in squares.values():
            square[group] /= len(range(group, products, groups))
    return squares

"""How much the features of a layer move when an input unit does.

J is the Jacobian of the features f = h(x) of one layer at one image. Its columns' squared norms, one per input
unit, come from vector-Jacobian products with random v ~ N(0, I): E_v[(J^T v)_i^2] = ||J_:,i||^2. No finite step is
taken: a step of 1 % of the images' standard deviation finds 6 to 12 % too little.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from netprism.discarding.layer_view import LayerView, as_images

# Noise on the images, in their units. Behind a constant ground the inputs of a max-pool tie, and the gradient goes
# to the first of them or, in a network that differs by 1e-9, to any other: mean entropies differed by .005 nats.
_AGAINST_TIES = 1e-4


def column_norms(
    view: LayerView, x: Tensor, *, num_vjps: int = 64, groups: int = 1, seed: int = 0
) -> dict[str, Tensor]:
    """Estimates ||J_:,i||^2 of every input unit, for several layers with one forward pass (Hutchinson's estimator).

    Each estimate is distributed as ||J_:,i||^2 chi^2_S / S for S products. A unit that the features do not depend on
    gets 0 exactly. J is that at the image with noise of 1e-4 on it, which decides between inputs of a max-pool that
    tie. The model is run in eval mode; its flags, buffers and gradients are left as they were.

    Args:
        view: Layers of a model; a layer that runs twice gives `name` and `name#1`. The graph of `chunk_size` images
            takes the memory; the v depend on `chunk_size`, too.
        x: Images `(N, ...)`, floating.
        num_vjps: Number S of vector-Jacobian products per layer.
        groups: Number of groups to which the products are dealt, each with an estimate of its own: for jackknife
            errors.
        seed: Seed of the random v; the global random state is not used.

    Returns:
        {layer: float64 `(groups, N, ...)`}, in the order of the calls. Their mean over groups is the best estimate.

    Raises:
        ValueError: There is no such layer, images or features are not finite, features do not belong to the images row
            by row, or there are fewer products than groups.
        TypeError: x or the features are not floating.

    Cost: one forward pass, and S backward passes to x per layer.

    Source: Ma et al. 2019, section 3.1, to first order, https://openreview.net/forum?id=BygG3hEYvB.
    """
    if not 1 <= groups <= num_vjps:
        raise ValueError(f"num_vjps is {num_vjps} and groups {groups}; expected 1 <= groups <= num_vjps")
    found: dict[str, list[Tensor]] = {}
    with view.evaluating():
        for start, images in _chunks(as_images(x), view.chunk_size):
            generator = torch.Generator(x.device).manual_seed(seed + start)
            images += _AGAINST_TIES * _noise_like(images, seed + start)
            images.requires_grad_()
            features = view.features(images)
            for name, squares in _products(features, images, num_vjps, groups, generator).items():
                found.setdefault(name, []).append(squares)
    return {name: torch.cat(parts, dim=1) for name, parts in found.items()}


def jacobian_norms(view: LayerView, x: Tensor, *, num_vjps: int = 1, seed: int = 0) -> dict[str, Tensor]:
    """Estimates ||J||_F^2 of every image, {layer: float64 `(N,)`}; arguments and errors of :func:`column_norms`."""
    norms = column_norms(view, x, num_vjps=num_vjps, seed=seed)
    return {name: norm.mean(0).flatten(1).sum(1) for name, norm in norms.items()}


def feature_scale(view: LayerView, batches: Iterable[Any], *, num_vjps: int = 1, seed: int = 0) -> dict[str, float]:
    """Returns delta_f^2 = E_x ||J||_F^2 of each layer over a data set: how far features move for small input noise.

    delta_f^2 = lim_(tau -> 0) E ||h(x + tau delta) - h(x)||^2 / tau^2 with delta ~ N(0, I). The images are streamed.

    Args:
        view: Layers of a model.
        batches: Images `(N, ...)`, or tuples that begin with them, as a `DataLoader` of images and labels gives.
        num_vjps: Number of vector-Jacobian products per image and layer; one is enough where there are many images.
        seed: Seed of the random v.

    Raises:
        ValueError: There are no images; otherwise see :func:`column_norms`.

    Source: Ma et al. 2019, section 3.1, https://openreview.net/forum?id=BygG3hEYvB.
    """
    total: dict[str, float] = {}
    count = 0
    for batch in batches:
        images = batch[0] if isinstance(batch, tuple | list) else batch
        norms = jacobian_norms(view, images, num_vjps=num_vjps, seed=seed + count)
        total = {name: total.get(name, 0.0) + float(norm.sum()) for name, norm in norms.items()}
        count += len(images)
    if not count:
        raise ValueError("batches hold no image; expected at least one")
    return {name: value / count for name, value in total.items()}


def _chunks(x: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    """Parts of the rows of x, with the index of the first row; each part is a tensor of its own."""
    for start in range(0, len(x), size):
        yield start, x[start : start + size].detach().clone()


def _noise_like(x: Tensor, seed: int) -> Tensor:
    """Returns N(0, I) of the shape of x; the global random state is not used."""
    generator = torch.Generator(x.device).manual_seed(seed)
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def _products(
    features: dict[str, Tensor], x: Tensor, num_vjps: int, groups: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Mean of (J^T v)_i^2 in each group, {layer: float64 `(groups, N, ...)`}."""
    squares = {name: x.new_zeros(groups, *x.shape, dtype=torch.float64) for name in features}
    for number in range(num_vjps):
        for name, feature in features.items():
            if not feature.requires_grad:  # nothing on the way from x: its Jacobian is zero
                continue
            v = torch.randn(feature.shape, generator=generator, device=feature.device, dtype=feature.dtype)
            (product,) = torch.autograd.grad(feature, x, v, retain_graph=True, allow_unused=True)
            if product is not None:
                squares[name][number % groups] += product.double().square()
    for group in range(groups):
        for square in squares.values():
            square[group] /= len(range(group, num_vjps, groups))
    return squares

"""What the loss of a head becomes when parts of its feature are left out, for many choices of parts at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Head = Callable[[Tensor], Tensor]

_ELEMENTS = 2**24  # numbers in the features of the coalitions that are evaluated at a time: 64 MiB in float32


def coalition_losses(
    head: Head, parts: Sequence[Tensor], rest: Tensor, labels: Tensor, members: Tensor, additive: bool | None = None
) -> Tensor:
    """Returns the cross-entropy of the head on `rest + sum of the parts in a coalition`, for many coalitions.

    Where the head is affine, as pooling and a linear layer are, it is run once per part, and coalitions add up logits:
    L + 1 runs instead of 2^L, and 4 to find out. A head that starts with a ReLU is not affine.

    Args:
        head: Function from features `(k, ...)` to logits `(k, classes)`.
        parts: L tensors `(N, ...)`.
        rest: Tensor `(N, ...)` that is in every coalition.
        labels: Integer classes `(N,)`.
        members: Bool `(m, L)`, the members of each coalition.
        additive: Whether the head is affine; None to try it.

    Returns:
        `(m,)` in float64, nats, sums over the N samples. Memory: 2^24 numbers, or one coalition's features.
    """
    if additive is None:
        additive = is_affine(head, rest + torch.stack(list(parts)).sum(0))
    if additive:
        base = head(rest)
        effects = torch.stack([head(rest + part) - base for part in parts])
        return summed_losses(base + torch.einsum("ml,lnc->mnc", members.to(effects), effects), labels)
    stacked = torch.stack(list(parts)).flatten(1)
    losses = []
    for some in members.to(stacked).split(max(1, _ELEMENTS // rest.numel())):
        features = torch.addmm(rest.flatten(), some, stacked).view(-1, *rest.shape[1:])
        losses.append(summed_losses(head(features).unflatten(0, (len(some), len(rest))), labels))
    return torch.cat(losses)


def is_affine(head: Head, features: Tensor) -> bool:
    """Tells whether a head is affine, from features `(N, ...)` and differences of them, which have other signs."""
    others = features.roll(1, dims=0)
    zero = head(torch.zeros_like(features))
    expected = head(features) - 2 * (head(others) - zero)
    found = head(features - 2 * others)
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def summed_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Maps logits (m, N, classes) to cross-entropies (m,) in float64, summed over samples."""
    losses = F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)), reduction="none")
    return losses.view(len(logits), -1).double().sum(dim=1)

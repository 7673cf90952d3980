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
    """Summed cross-entropy of the head on `rest + sum of the parts in a coalition`, for many coalitions.

    Where the head is affine, as pooling and a linear layer are, it is run once for each part, and coalitions add up
    logits: L + 1 runs in place of 2^L, and 4 to see it. (A head that starts with a ReLU is not.)

    Args:
        head: features `(k, ...)` to logits `(k, classes)`.
        parts: L tensors `(N, ...)`.
        rest: `(N, ...)`, in every coalition.
        labels: `(N,)` integer classes.
        members: bool `(m, L)`.
        additive: whether the head is affine; None: it is tried.

    Returns:
        `(m,)` float64, nats, sums over the N samples. Memory: 2^24 numbers, or one coalition's features.
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
    """Whether a head is affine, tried on features `(N, ...)` and on differences of them, which have other signs."""
    others = features.roll(1, dims=0)
    zero = head(torch.zeros_like(features))
    expected = head(features) - 2 * (head(others) - zero)
    found = head(features - 2 * others)
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def summed_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits (m, N, classes) to (m,) float64: cross-entropies, summed over samples."""
    losses = F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)), reduction="none")
    return losses.view(len(logits), -1).double().sum(dim=1)

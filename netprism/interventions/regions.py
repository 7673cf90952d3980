"""What an attack does to the regions of images: how their features turn and shrink, and what they then decide for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from netprism.knowledge.mixture import log_posterior
from netprism.knowledge.points import check_tau

KINDS = ("redirected", "damaged", "created", "lost")


@dataclass(frozen=True)
class RegionChanges:
    """The regions of one layer on N images of R regions, in the images of S steps of an attack and before it.

    Attributes:
        cosine: Cosine between a region's feature before the attack and in each step, mean over regions, `(S + 1,)`.
        strength: Mean strength in each step, divided by that before the attack, minus 1, `(S + 1,)`.
        kinds: 0 for a region whose role does not change, otherwise 1 + the place in `KINDS`, int64 `(N, R)`.
    """

    cosine: Tensor
    strength: Tensor
    kinds: Tensor

    def counts(self) -> dict[str, float]:
        """Returns {kind: mean number of such regions per image}."""
        return {name: float((self.kinds == 1 + i).sum()) / len(self.kinds) for i, name in enumerate(KINDS)}


def region_changes(
    path: Tensor, directions: Tensor, priors: Tensor, *, tau: float = 0.4, kappa_max: float = 1000.0
) -> RegionChanges:
    """Returns how regions change along an attack. A region is important for class c if p(c | h) > tau.

    The four kinds: an important region becomes important for another class directly ("redirected"), or after a step in
    which it was not important ("damaged"); an unimportant one becomes important ("created"); an important one becomes
    unimportant ("lost").

    Args:
        path: Projected regional features h of the images before the attack and after each step, `(N, S + 1, R, d)`.
        directions: Directions mu of the classes, unit vectors `(C, d)`.
        priors: Priors pi of the classes, `(C,)`.
        tau: The least confidence of an important region, see `netprism.knowledge.knowledge_points`.
        kappa_max: Concentration of a region without noise.

    Raises:
        ValueError: There is no step, shapes do not fit, or tau is out of range.

    Source: Li et al. 2021, figures 7 and 8, https://arxiv.org/abs/2111.03505.

    Example:
        >>> path = torch.tensor([[[[9.0, 0.0]], [[0.0, 9.0]]]])  # one image, one region, one step
        >>> region_changes(path, torch.eye(2), torch.tensor([0.5, 0.5]), tau=0.6).counts()
        {'redirected': 1.0, 'damaged': 0.0, 'created': 0.0, 'lost': 0.0}
    """
    if path.dim() != 4 or path.shape[1] < 2 or path.shape[3:] != directions.shape[1:]:
        shapes = f"{tuple(path.shape)} and {tuple(directions.shape)}"
        raise ValueError(f"shapes of path and directions are {shapes}; expected (N, S + 1, R, d) with S >= 1, (C, d)")
    check_tau(tau, len(directions))
    count, steps, regions = path.shape[:3]
    confidence, classes = log_posterior(
        path.reshape(count * steps, regions, -1), directions, priors, kappa_max=kappa_max
    ).max(dim=2)
    important = (confidence.exp() > tau).view(count, steps, regions)
    classes = classes.view(count, steps, regions)
    first, last = important[:, 0], important[:, -1]
    other = first & last & (classes[:, 0] != classes[:, -1])
    throughout = important.all(dim=1)
    kinds = torch.stack([other & throughout, other & ~throughout, ~first & last, first & ~last])
    strength = path.norm(dim=3).mean(dim=(0, 2))
    return RegionChanges(
        F.cosine_similarity(path[:, :1], path, dim=3).mean(dim=(0, 2)),
        strength / strength[0].clamp(min=1e-12) - 1,
        (kinds * torch.arange(1, 5, device=path.device)[:, None, None]).sum(0),
    )

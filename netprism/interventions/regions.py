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
        utilities: Of the n regions that are important for the wrong class after the attack, the confidence p(true class
            | h) before it, `(n,)`; none where `classes` were not given.
        tau: The least confidence of an important region.
    """

    cosine: Tensor
    strength: Tensor
    kinds: Tensor
    utilities: Tensor
    tau: float

    def counts(self) -> dict[str, float]:
        """Returns {kind: mean number of such regions per image}."""
        return {name: float((self.kinds == 1 + i).sum()) / len(self.kinds) for i, name in enumerate(KINDS)}

    def before(self) -> dict[str, float]:
        """Returns of `utilities` the mean ("utility") and the fraction that is at most tau ("new"); NaN without any."""
        utilities = self.utilities.double()
        return {"utility": float(utilities.mean()), "new": float((utilities <= self.tau).double().mean())}


def region_changes(
    path: Tensor,
    directions: Tensor,
    priors: Tensor,
    *,
    classes: tuple[Tensor, Tensor] | None = None,
    tau: float = 0.4,
    kappa_max: float = 1000.0,
) -> RegionChanges:
    """Returns how regions change along an attack. A region is important for class c if p(c | h) > tau.

    The four kinds: an important region becomes important for another class directly ("redirected"), or after a step in
    which it was not important ("damaged"); an unimportant one becomes important ("created"); an important one becomes
    unimportant ("lost").

    Args:
        path: Projected regional features h of the images before the attack and after each step, `(N, S + 1, R, d)`.
        directions: Directions mu of the classes, unit vectors `(C, d)`.
        priors: Priors pi of the classes, `(C,)`.
        classes: The true class of each image, and the wrong one that it is taken for after the attack, `(N,)` each;
            below 0 where there is no wrong one. None leaves `utilities` empty.
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
    posterior = log_posterior(path.reshape(count * steps, regions, -1), directions, priors, kappa_max=kappa_max)
    confidence, decided = posterior.max(dim=2)
    important = (confidence.exp() > tau).view(count, steps, regions)
    decided = decided.view(count, steps, regions)
    first, last = important[:, 0], important[:, -1]
    other = first & last & (decided[:, 0] != decided[:, -1])
    throughout = important.all(dim=1)
    kinds = torch.stack([other & throughout, other & ~throughout, ~first & last, first & ~last])
    strength = path.norm(dim=3).mean(dim=(0, 2))
    utilities = path.new_zeros(0)
    if classes is not None:
        true, wrong = (of_images.clamp(min=0)[:, None, None].expand(count, regions, 1) for of_images in classes)
        ends = posterior.view(count, steps, regions, -1)[:, [0, -1]].exp()
        for_wrong = ends[:, 1].gather(2, wrong)[..., 0] > tau
        utilities = ends[:, 0].gather(2, true)[..., 0][for_wrong & (classes[1] >= 0)[:, None]]
    return RegionChanges(
        F.cosine_similarity(path[:, :1], path, dim=3).mean(dim=(0, 2)),
        strength / strength[0].clamp(min=1e-12) - 1,
        (kinds * torch.arange(1, 5, device=path.device)[:, None, None]).sum(0),
        utilities,
        tau,
    )

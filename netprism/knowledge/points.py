"""Knowledge points: the regions of images that decide for a category by themselves.

Source: "Visualizing the Emergence of Intermediate Visual Patterns in DNNs", section 3.4.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from netprism.knowledge.mixture import log_posterior


@dataclass(frozen=True)
class KnowledgePoints:
    """Knowledge points of one layer on N images.

    Attributes:
        mask: bool `(N, R)`, which regions are knowledge points.
        reliable: bool `(N, R)`, which of them decide for the true class.
        classes: int64 `(N, R)`, the class that each region decides for, knowledge point or not.
        confidence: `(N, R)`, max_c p(c | h), in [1 / C, 1].
    """

    mask: Tensor
    reliable: Tensor
    classes: Tensor
    confidence: Tensor

    @property
    def points(self) -> int:
        """How many knowledge points there are on all images."""
        return int(self.mask.sum())

    @property
    def reliable_points(self) -> int:
        """How many of them are reliable."""
        return int(self.reliable.sum())

    @property
    def ratio(self) -> float:
        """Reliable knowledge points / knowledge points, in [0, 1]; NaN where there are none."""
        return self.reliable_points / self.points if self.points else float("nan")


def knowledge_points(
    regions: Tensor,
    directions: Tensor,
    priors: Tensor,
    labels: Tensor,
    *,
    strength: float | None = None,
    tau: float = 0.4,
    kappa_max: float = 1000.0,
) -> KnowledgePoints:
    """The regions that decide for a category by themselves, and which of them decide rightly.

    p(c | h) ~ pi_c exp(kappa(||h||) cos(h, mu_c)); a region is a knowledge point if max_c p(c | h) > tau, and reliable
    if that c is the true class. The strengths of the layer are first scaled so that their mean is that of a reference
    layer, which makes layers comparable. Layers whose features are all 0 have strength 0 and stay so.

    Args:
        regions: projected regional features h, `(N, R, d)`.
        directions: mu, unit vectors `(C, d)`.
        priors: pi, `(C,)`.
        labels: the true classes `(N,)`, in 0 to C - 1.
        strength: mean strength after scaling: the reference layer's; None: as they are.
        tau: the least confidence, in [1 / C, 1).
        kappa_max: concentration of a region without noise.

    Raises:
        ValueError: tau or strength out of range, labels out of range, shapes that do not match, NaN.

    Source: "Visualizing the Emergence of Intermediate Visual Patterns in DNNs", section 3.4.

    Example:
        >>> import torch
        >>> h = torch.tensor([[[9.0, 0.0], [0.1, 0.1]], [[0.0, -9.0], [9.0, 0.0]]])
        >>> found = knowledge_points(h, torch.eye(2), torch.tensor([0.5, 0.5]), torch.tensor([0, 1]), tau=0.6)
        >>> found.mask.tolist(), found.reliable.tolist()
        ([[True, False], [True, True]], [[True, False], [False, False]])
    """
    _check_points(regions, directions, priors, labels, strength, tau)
    if strength is not None:
        mean = regions.norm(dim=2).mean()
        regions = regions * (strength / mean if mean > 0 else 1.0)
    confidence, classes = log_posterior(regions, directions, priors, kappa_max=kappa_max).max(dim=2)
    confidence = confidence.exp()
    mask = confidence > tau
    return KnowledgePoints(mask, mask & (classes == labels[:, None]), classes, confidence)


def _check_points(
    regions: Tensor, directions: Tensor, priors: Tensor, labels: Tensor, strength: float | None, tau: float
) -> None:
    classes = len(directions)
    if regions.ndim != 3 or directions.shape[1:] != regions.shape[2:] or priors.shape != (classes,):
        shapes = f"{tuple(regions.shape)}, {tuple(directions.shape)}, {tuple(priors.shape)}"
        raise ValueError(f"regions, directions and priors are {shapes}; expected (N, R, d), (C, d), (C,)")
    if len(labels) != len(regions) or (len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes):
        raise ValueError(
            f"expected {len(regions)} labels in 0 to {classes - 1}, got {len(labels)}: {labels.unique().tolist()}"
        )
    if not 1 / classes <= tau < 1:
        raise ValueError(f"tau is {tau}; expected at least 1 / C = {1 / classes:.3g} and less than 1")
    if strength is not None and not 0 < strength < float("inf"):
        raise ValueError(f"strength is {strength}; expected a positive number")

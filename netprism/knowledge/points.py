"""Knowledge points: the regions of images that decide for a category by themselves.

Source: Li et al. 2021, section 3.4, https://arxiv.org/abs/2111.03505.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from netprism.checks import check_labels, check_number
from netprism.knowledge.mixture import log_posterior

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class KnowledgePointCounts:
    """Knowledge points of one layer on N images of R regions.

    Attributes:
        mask: Which regions are knowledge points, bool `(N, R)`.
        reliable: Which knowledge points decide for the true class, bool `(N, R)`.
        classes: The class that each region decides for, knowledge point or not, int64 `(N, R)`.
        confidence: max_c p(c | h) of each region, in [1 / C, 1], `(N, R)`.
    """

    mask: Tensor
    reliable: Tensor
    classes: Tensor
    confidence: Tensor

    @property
    def points(self) -> int:
        """Number of knowledge points on all images."""
        return int(self.mask.sum())

    @property
    def reliable_points(self) -> int:
        """Number of reliable ones among them."""
        return int(self.reliable.sum())

    @property
    def ratio(self) -> float:
        """Reliable knowledge points / knowledge points, in [0, 1]; NaN where there are none."""
        return self.reliable_points / self.points if self.points else float("nan")

    def plot(self) -> tuple[Figure, list[Axes]]:
        """Draws which regions of the first eight images are knowledge points, and for which class they decide.

        Regions lie in a square where their number is one, otherwise in a row.

        Returns:
            The figure, and one panel per image.
        """
        from netprism.plots import COLOURS, plot_states

        images, regions = self.mask.shape
        side = math.isqrt(regions)
        grid = (side, side) if side**2 == regions else (1, regions)
        states = (self.mask.int() + self.reliable.int()).view(images, *grid)
        names = ("none", "for a wrong class", "for the right class")
        return plot_states(states, names, ("#E5E5E5", COLOURS[1], COLOURS[0]))


def knowledge_points(
    regions: Tensor,
    directions: Tensor,
    priors: Tensor,
    labels: Tensor,
    *,
    strength: float | None = None,
    tau: float = 0.4,
    kappa_max: float = 1000.0,
) -> KnowledgePointCounts:
    """The regions that decide for a category by themselves, and which of them decide correctly.

    p(c | h) ~ pi_c exp(kappa(||h||) cos(h, mu_c)); a region is a knowledge point if max_c p(c | h) > tau, and reliable
    if that c is the true class. The strengths of the layer are first scaled to the mean strength of a reference layer,
    which makes layers comparable. A layer whose features are all 0 keeps strength 0.

    Args:
        regions: Projected regional features h, `(N, R, d)`.
        directions: Directions mu of the categories, unit vectors `(C, d)`.
        priors: Priors pi of the categories, `(C,)`.
        labels: The true classes `(N,)`, in 0 to C - 1.
        strength: Mean strength after scaling: that of the reference layer; None leaves the strengths unscaled.
        tau: The least confidence of a knowledge point, in [1 / C, 1).
        kappa_max: Concentration of a region without noise.

    Raises:
        TypeError: Labels are not integers, or another tensor is not floating.
        ValueError: tau, strength, a prior or a label is out of range, shapes do not match, or a region or a direction
            is not finite.

    Source: Li et al. 2021, section 3.4, https://arxiv.org/abs/2111.03505.

    Example:
        >>> import torch
        >>> h = torch.tensor([[[9.0, 0.0], [0.1, 0.1]], [[0.0, -9.0], [9.0, 0.0]]])
        >>> found = knowledge_points(h, torch.eye(2), torch.tensor([0.5, 0.5]), torch.tensor([0, 1]), tau=0.6)
        >>> found.mask.tolist(), found.reliable.tolist()
        ([[True, False], [True, True]], [[True, False], [False, False]])
    """
    _check_points(regions, directions, priors, labels, strength)
    check_tau(tau, len(directions))
    if strength is not None:
        mean = regions.norm(dim=2).mean()
        regions = regions * (strength / mean if mean > 0 else 1.0)
    confidence, classes = log_posterior(regions, directions, priors, kappa_max=kappa_max).max(dim=2)
    confidence = confidence.exp()
    mask = confidence > tau
    return KnowledgePointCounts(mask, mask & (classes == labels[:, None]), classes, confidence)


def usual_tau(categories: int) -> float:
    """Returns the paper's least confidence of a knowledge point, .4, where it is above chance; .6 of two categories."""
    return max(0.4, 1.2 / categories)


def check_tau(tau: float, categories: int | None = None) -> None:
    """Refuses a confidence that no region or every region exceeds.

    Args:
        tau: The least confidence of a knowledge point.
        categories: C, if it is known already; the most likely of C categories has a probability of at least 1 / C.

    Raises:
        ValueError: tau is not below 1, or below 1 / C; without C, not above 0.
    """
    least, allowed = (0.0, "> 0") if categories is None else (1 / categories, f">= 1 / C = {1 / categories:.3g}")
    if not (0 < tau < 1 and tau >= least):
        raise ValueError(f"tau is {tau}; expected {allowed} and < 1")


def _check_points(regions: Tensor, directions: Tensor, priors: Tensor, labels: Tensor, strength: float | None) -> None:
    classes = len(directions)
    if regions.ndim != 3 or directions.shape[1:] != regions.shape[2:] or priors.shape != (classes,):
        shapes = f"{tuple(regions.shape)}, {tuple(directions.shape)}, {tuple(priors.shape)}"
        raise ValueError(f"shapes of regions, directions and priors are {shapes}; expected (N, R, d), (C, d), (C,)")
    check_labels(labels, len(regions), classes)
    if strength is not None:
        check_number("strength", strength, above=0)

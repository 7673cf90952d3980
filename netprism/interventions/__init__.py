"""Interventions: networks and images are changed, and every measure can look at the result."""

from netprism.interventions.attack import (
    MinimalAttack,
    adversarial_distances,
    minimal_attack,
    pgd,
    pgd_steps,
    top_wrong_classes,
)
from netprism.interventions.pixels import Pixels

__all__ = [
    "MinimalAttack",
    "Pixels",
    "adversarial_distances",
    "minimal_attack",
    "pgd",
    "pgd_steps",
    "top_wrong_classes",
]

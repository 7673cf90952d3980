"""Interventions: networks and images are changed, and every measure can look at the result."""

from netprism.interventions.attack import (
    MinimalAttack,
    adversarial_distances,
    minimal_attack,
    pgd,
    pgd_steps,
    top_wrong_classes,
)
from netprism.interventions.compress import (
    LayerSize,
    begin_pruning,
    compressible_layers,
    layer_sizes,
    make_permanent,
    prune,
    share_weights,
    total_bytes,
)
from netprism.interventions.damage import cut_shortcut, damaged, insert_layer, narrow_layer, replace_layer
from netprism.interventions.distil import UnderHead, output_loss
from netprism.interventions.pixels import Pixels
from netprism.interventions.regions import RegionChanges, region_changes

__all__ = [
    "LayerSize",
    "MinimalAttack",
    "Pixels",
    "RegionChanges",
    "UnderHead",
    "adversarial_distances",
    "begin_pruning",
    "compressible_layers",
    "cut_shortcut",
    "damaged",
    "insert_layer",
    "layer_sizes",
    "make_permanent",
    "minimal_attack",
    "narrow_layer",
    "output_loss",
    "pgd",
    "pgd_steps",
    "prune",
    "region_changes",
    "replace_layer",
    "share_weights",
    "top_wrong_classes",
    "total_bytes",
]

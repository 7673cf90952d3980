"""What a network knows: von Mises-Fisher projections of its features, and knowledge points.

Paper: M. Li, S. Wang, Q. Zhang, "Visualizing the Emergence of Intermediate Visual Patterns in DNNs", NeurIPS 2021,
https://arxiv.org/abs/2111.03505.
"""

from netprism.knowledge.importance import RegionalImportance, region_features, regional_importance
from netprism.knowledge.mixture import Mixture, fit_mixture, log_posterior
from netprism.knowledge.points import KnowledgePoints, knowledge_points
from netprism.knowledge.region_projection import RegionProjector, fit_region_projection
from netprism.knowledge.sample_projection import Projection, fit_projection, soft_targets, strength_correlation
from netprism.knowledge.vmf import fit_kappa, kappa_of_strength, log_normalizer, mean_resultant_length

__all__ = [  # in reading order
    "KnowledgePoints",
    "Mixture",
    "Projection",
    "RegionProjector",
    "RegionalImportance",
    "fit_kappa",
    "fit_mixture",
    "fit_projection",
    "fit_region_projection",
    "kappa_of_strength",
    "knowledge_points",
    "log_normalizer",
    "log_posterior",
    "mean_resultant_length",
    "region_features",
    "regional_importance",
    "soft_targets",
    "strength_correlation",
]

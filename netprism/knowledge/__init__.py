"""What a network knows: von Mises-Fisher projections of its features, and knowledge points.

Paper: M. Li, S. Wang, Q. Zhang, "Visualizing the Emergence of Intermediate Visual Patterns in DNNs", NeurIPS 2021,
https://arxiv.org/abs/2111.03505.
"""

# ruff: noqa: I001, RUF022 - in reading order
from netprism.knowledge.vmf import kappa_of_strength, log_normalizer, mean_resultant_length
from netprism.knowledge.vmf import concentration_from_resultant_length, fit_kappa
from netprism.knowledge.mixture import VMFMixture, fit_mixture, log_posterior
from netprism.knowledge.sample_projection import SampleProjector, fit_projection, projection_step
from netprism.knowledge.sample_projection import soft_targets, strength_correlation
from netprism.knowledge.importance import RegionalImportance, region_features, regional_importance
from netprism.knowledge.region_projection import RegionProjector, fit_region_projection
from netprism.knowledge.points import KnowledgePointCounts, knowledge_points
from netprism.knowledge.epoch_projection import EpochProjection, NetworkFeatures, network_features

__all__ = [
    "kappa_of_strength",
    "log_normalizer",
    "mean_resultant_length",
    "concentration_from_resultant_length",
    "fit_kappa",
    "VMFMixture",
    "fit_mixture",
    "log_posterior",
    "SampleProjector",
    "fit_projection",
    "projection_step",
    "soft_targets",
    "strength_correlation",
    "RegionalImportance",
    "region_features",
    "regional_importance",
    "RegionProjector",
    "fit_region_projection",
    "KnowledgePointCounts",
    "knowledge_points",
    "EpochProjection",
    "NetworkFeatures",
    "network_features",
]

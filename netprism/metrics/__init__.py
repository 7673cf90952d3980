"""The measures as torchmetrics: updated per batch, with any split over ranks."""

from netprism.metrics.components import ComponentMetric
from netprism.metrics.covariance import CovarianceMetric
from netprism.metrics.discarding import DiscardingMetric
from netprism.metrics.knowledge_points import KnowledgePointMetric
from netprism.metrics.projected_samples import ProjectedSamples
from netprism.metrics.reliability import ReliabilityMetric
from netprism.metrics.transformation_complexity import TransformationComplexity

__all__ = [
    "ComponentMetric",
    "CovarianceMetric",
    "DiscardingMetric",
    "KnowledgePointMetric",
    "ProjectedSamples",
    "ReliabilityMetric",
    "TransformationComplexity",
]

"""torchmetrics faces of the measures: update per batch, any split over ranks."""

from netprism.metrics.projected_samples import ProjectedSamples
from netprism.metrics.transformation_complexity import TransformationComplexity

__all__ = ["ProjectedSamples", "TransformationComplexity"]

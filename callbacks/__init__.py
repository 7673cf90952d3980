"""Per-epoch probes for any LightningModule, and what makes a run safe to interrupt and to read."""

from netprism.callbacks.complexity_penalty import ComplexityPenalty
from netprism.callbacks.even_ranks import EvenRanks
from netprism.callbacks.exact_resume import ExactResume
from netprism.callbacks.feature_components import FeatureComponents
from netprism.callbacks.gating_entropy import GatingEntropy
from netprism.callbacks.information_discarding import InformationDiscarding
from netprism.callbacks.knowledge_points import KnowledgePoints
from netprism.callbacks.requeue import Requeue
from netprism.callbacks.run_summary import RunSummary

__all__ = [
    "ComplexityPenalty",
    "EvenRanks",
    "ExactResume",
    "FeatureComponents",
    "GatingEntropy",
    "InformationDiscarding",
    "KnowledgePoints",
    "Requeue",
    "RunSummary",
]

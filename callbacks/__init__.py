"""Per-epoch monitors for any LightningModule, and what makes a run safe to interrupt and to read."""

from netprism.callbacks.attacked_regions import AttackedRegions
from netprism.callbacks.complexity_penalty import ComplexityPenalty
from netprism.callbacks.feature_components import FeatureComponents
from netprism.callbacks.gating_entropy import GatingEntropy
from netprism.callbacks.information_discarding import InformationDiscarding
from netprism.callbacks.knowledge_points import KnowledgePoints
from netprism.callbacks.training.best_checkpoint import BestCheckpoint
from netprism.callbacks.training.equal_batches import CheckEqualBatches
from netprism.callbacks.training.exact_resume import ExactResume
from netprism.callbacks.training.requeue import Requeue
from netprism.callbacks.training.run_summary import RunSummary

__all__ = [
    "AttackedRegions",
    "BestCheckpoint",
    "CheckEqualBatches",
    "ComplexityPenalty",
    "ExactResume",
    "FeatureComponents",
    "GatingEntropy",
    "InformationDiscarding",
    "KnowledgePoints",
    "Requeue",
    "RunSummary",
]

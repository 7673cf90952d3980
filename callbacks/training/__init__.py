"""Callbacks about the training, not about the network: resume, requeue, best checkpoint, equal batches, summary."""

from netprism.callbacks.training.best_checkpoint import BestCheckpoint
from netprism.callbacks.training.equal_batches import CheckEqualBatches
from netprism.callbacks.training.exact_resume import ExactResume
from netprism.callbacks.training.requeue import Requeue
from netprism.callbacks.training.run_summary import RunSummary

__all__ = ["BestCheckpoint", "CheckEqualBatches", "ExactResume", "Requeue", "RunSummary"]

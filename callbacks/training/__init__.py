"""Callbacks about the training itself, not about the network: resume, requeue, equal batches, summary."""

from netprism.callbacks.training.equal_batches import CheckEqualBatches
from netprism.callbacks.training.exact_resume import ExactResume
from netprism.callbacks.training.requeue import Requeue
from netprism.callbacks.training.run_summary import RunSummary

__all__ = ["CheckEqualBatches", "ExactResume", "Requeue", "RunSummary"]

"""Per-epoch probes for any LightningModule, and what a run prints at its end."""

from netprism.callbacks.gating_entropy import GatingEntropy
from netprism.callbacks.run_summary import RunSummary

__all__ = ["GatingEntropy", "RunSummary"]

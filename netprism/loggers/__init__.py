"""Where the curves of a run go: `metrics.csv`, always, and Weights & Biases, as far as it can be reached."""

from netprism.loggers.metrics_csv import MetricsCsv
from netprism.loggers.wandb import Wandb

__all__ = ["MetricsCsv", "Wandb"]

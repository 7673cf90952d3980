"""Where a run goes: curves to `metrics.csv`, pictures to its folder, and both to W&B as far as it can be reached."""

from netprism.loggers.metrics_csv import MetricsCsv
from netprism.loggers.pictures import is_dry_run, publish
from netprism.loggers.wandb import Wandb

__all__ = ["MetricsCsv", "Wandb", "is_dry_run", "publish"]

"""Where a run goes: curves to `metrics.csv`, pictures to its folder, and both to W&B as far as it can be reached."""

from netprism.loggers.offline_fallback_wandb import OfflineFallbackWandbLogger
from netprism.loggers.pictures import is_dry_run, publish
from netprism.loggers.resumable_csv import ResumableCSVLogger

__all__ = ["OfflineFallbackWandbLogger", "ResumableCSVLogger", "is_dry_run", "publish"]

"""Trained networks looked at once, without any training."""

from netprism.analysis.analyze import MONITORS, analyze
from netprism.analysis.result import Analysis

__all__ = ["MONITORS", "Analysis", "analyze"]

"""Analyses and trainings, one LightningModule each."""

from netprism.lightning_modules.classifier import Classifier

__all__ = ["Classifier"]

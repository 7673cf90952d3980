"""Analyses and trainings, one LightningModule each."""

from netprism.lightning_modules.classifier import Classifier
from netprism.lightning_modules.complexity_penalized_classifier import ComplexityPenalizedClassifier
from netprism.lightning_modules.compressed_classifier import CompressedClassifier
from netprism.lightning_modules.disentangler import Disentangler
from netprism.lightning_modules.distillation import Distillation
from netprism.lightning_modules.input_decoder import InputDecoder
from netprism.lightning_modules.region_projection import RegionProjection
from netprism.lightning_modules.reliable_disentangler import ReliableDisentangler
from netprism.lightning_modules.sample_projection import SampleProjection
from netprism.lightning_modules.variational_auto_encoder import VariationalAutoEncoder

__all__ = [
    "Classifier",
    "ComplexityPenalizedClassifier",
    "CompressedClassifier",
    "Disentangler",
    "Distillation",
    "InputDecoder",
    "RegionProjection",
    "ReliableDisentangler",
    "SampleProjection",
    "VariationalAutoEncoder",
]

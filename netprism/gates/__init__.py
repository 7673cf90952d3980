"""Gating states, and the complexity of the transformations that a network applies.

Paper: J. Ren, M. Li, M. Zhou, S.-H. Chan, Q. Zhang, "Towards Theoretical Analysis of Transformation Complexity of ReLU
DNNs", ICML 2022, https://arxiv.org/abs/2205.01940. Its first version (2020), whose equation numbers are cited here, was
called "Understanding, Analyzing, and Optimizing the Complexity of Deep Models".
"""

from netprism.gates.energy import GateEnergy, GatePrior
from netprism.gates.entropy import (
    GateComplexity,
    default_alpha,
    kde_entropy,
    pairwise_hamming,
    transformation_complexity,
)
from netprism.gates.loss import ComplexityLoss
from netprism.gates.packing import PackedGates
from netprism.gates.record import GateRecord, GatingLayer, record_gates
from netprism.gates.sampler import discrete_langevin, log_partition
from netprism.gates.soft_entropy import soft_kernel_entropy

__all__ = [  # noqa: RUF022 - in reading order
    "record_gates",
    "GateRecord",
    "GatingLayer",
    "PackedGates",
    "transformation_complexity",
    "GateComplexity",
    "default_alpha",
    "pairwise_hamming",
    "kde_entropy",
    "GatePrior",
    "GateEnergy",
    "discrete_langevin",
    "log_partition",
    "soft_kernel_entropy",
    "ComplexityLoss",
]

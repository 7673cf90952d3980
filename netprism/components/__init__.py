"""Feature components of rising complexity, and what each of them is worth.

Paper: J. Ren, M. Li, Z. Liu, Q. Zhang, "Interpreting and Disentangling Feature Components of Various Complexity from
DNNs", 2020, https://arxiv.org/abs/2006.15920; a later version, whose equation numbers are cited here, is called
"Disentanglement, Visualization and Analysis of Complex Features in DNNs" (2020).
"""

from netprism.components.disentangler import DisentanglerNet, Disentanglers
from netprism.components.distillation import DisentangledFeature, distil
from netprism.components.measures import Components, components, overfitting, significance
from netprism.components.network_split import SplitNetwork
from netprism.components.regressor import component_ratios, cross_validate, fit_plane, predict_performance
from netprism.components.reliability import reliable_part, round_trips
from netprism.components.reliable_nets import ReliableNets
from netprism.components.reliable_variance import Reliability
from netprism.components.shapley import sampled_shapley_values, shapley_values

__all__ = [  # noqa: RUF022 - in reading order
    "SplitNetwork",
    "DisentanglerNet",
    "Disentanglers",
    "distil",
    "DisentangledFeature",
    "components",
    "significance",
    "overfitting",
    "Components",
    "shapley_values",
    "sampled_shapley_values",
    "reliable_part",
    "round_trips",
    "ReliableNets",
    "Reliability",
    "component_ratios",
    "cross_validate",
    "predict_performance",
    "fit_plane",
]

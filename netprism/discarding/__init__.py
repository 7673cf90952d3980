"""What each layer of a network discards of its input.

Paper: H. Ma, Y. Zhang, F. Zhou, Q. Zhang, "Quantifying Layerwise Information Discarding of Neural Networks and Beyond",
2019, https://openreview.net/forum?id=BygG3hEYvB; published in revised form by H. Ma, H. Zhang, F. Zhou, Y. Zhang,
Q. Zhang as "Quantification and Analysis of Layer-wise and Pixel-wise Information Discarding", ICML 2022,
https://arxiv.org/abs/1906.04109.
"""

from netprism.discarding.auto_encoder import AutoEncoder
from netprism.discarding.baselines import class_activation_map, grad_cam, gradient_map, input_noise_entropy
from netprism.discarding.concentration import box_mask, concentration, segment_mask
from netprism.discarding.decoder import Decoder
from netprism.discarding.layer_view import LayerView
from netprism.discarding.reconstruction import ReconstructionUncertainty, reconstruction_uncertainty
from netprism.discarding.sensitivity import feature_scale
from netprism.discarding.sid import LayerDiscarding, strict_information_discarding

__all__ = [  # in reading order
    "AutoEncoder",
    "Decoder",
    "LayerDiscarding",
    "LayerView",
    "ReconstructionUncertainty",
    "box_mask",
    "class_activation_map",
    "concentration",
    "feature_scale",
    "grad_cam",
    "gradient_map",
    "input_noise_entropy",
    "reconstruction_uncertainty",
    "segment_mask",
    "strict_information_discarding",
]

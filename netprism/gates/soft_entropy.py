"""The kernel estimate of the entropy of gates, differentiable: what `GatingEntropy` measures, as a loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor

CONV_ALPHA, LINEAR_ALPHA = 0.04, 0.01  # as in `transformation_complexity`


def soft_kernel_entropy(gates: Tensor, alpha: float) -> Tensor:
    """Returns the leave-one-out kernel estimate of the entropy of soft gates, in nats.

        H = -(1/n) sum_j log[ 1/(n-1) sum_{k != j} exp(-||sigma_j - sigma_k||^2 / (2 alpha d)) ]

    Without leaving j out, the gradient vanishes where all samples of a batch differ. With it, each sample's gates are
    pulled to those of its neighbours. The value lies between 0 and 1 / (2 alpha), and a batch of one has 0.

    Args:
        gates: Gates in [0, 1], float `(n, ...)` with d elements per sample.
        alpha: Bandwidth; the variance of the kernel is alpha * d.

    Returns:
        A scalar. Cost: n^2 d multiply-adds, twice that for the gradient; memory n^2 and the gates.

    Source: A. Kolchinsky, B. Tracey, "Estimating mixture entropy with pairwise distances", 2017,
    https://arxiv.org/abs/1706.02419; the bandwidth of Ren et al. 2022, https://arxiv.org/abs/2205.01940.
    """
    flat = gates.flatten(1)
    count = len(flat)
    if count < 2:
        return flat.sum() * 0
    norms = flat.square().sum(1)
    distances = (norms[:, None] + norms - 2 * flat @ flat.T).clamp(min=0)
    own = torch.eye(count, dtype=torch.bool, device=flat.device)
    log_kernels = (-distances / (2 * alpha * flat.shape[1])).masked_fill(own, -math.inf)
    return math.log(count - 1) - log_kernels.logsumexp(1).mean()

"""Strict information discarding, typed anew: slow, obvious, in float64 and with NumPy."""

import math

import numpy as np
import torch


def column_norms(function, x):
    """||J_:,i||^2 of one image (no batch dimension), from the whole Jacobian."""
    jacobian = torch.autograd.functional.jacobian(lambda image: function(image[None])[0], x.double())
    return jacobian.reshape(-1, x.numel()).square().sum(0).reshape(x.shape).numpy()


def sigma(norms, budget, cap=math.inf):
    """Largest sum of log sigma_i at sum_i sigma_i^2 norms_i = budget, sigma_i <= cap, by bisection on the level."""
    norms = np.asarray(norms, dtype=np.float64).reshape(-1)

    def squared(level):
        return np.array([cap**2 if norm * cap**2 <= level else level / norm for norm in norms])

    low, high = 0.0, budget
    if sum(norms) * cap**2 <= budget:
        return np.full(len(norms), cap)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if squared(middle) @ norms < budget else (low, middle)
    return np.sqrt(squared(low))


def entropy(sigma):
    """Of a Gaussian, in nats."""
    return 0.5 * np.log(2 * np.pi * np.e * np.asarray(sigma, dtype=np.float64) ** 2)


def concentration(entropy_map, mask):
    """Of one image: (C, H, W) and (H, W)."""
    inside, outside = [], []
    for channel in entropy_map:
        for row, mask_row in zip(channel, mask, strict=True):
            for value, is_object in zip(row, mask_row, strict=True):
                (inside if is_object else outside).append(float(value))
    return sum(outside) / len(outside) - sum(inside) / len(inside)

"""Reconstruction uncertainty to first order, from whole Jacobian matrices, in float64; slow and obvious.

With the Jacobians J of h and B of g(h) at x, noise sigma moves the features by sum_j sigma_j^2 sum_k J_kj^2 and pixel i
of the reconstruction by sum_j B_ij^2 sigma_j^2.
"""

import math

import torch
from torch.autograd.functional import jacobian


def matrices(encode, decode, x):
    """J and B, one row a feature or a pixel, one column an input unit, at one image of any shape."""

    def flat(function):
        return lambda units: function(units.view(1, *x.shape)).flatten()

    whole = flat(lambda image: decode(encode(image)))
    return jacobian(flat(encode), x.flatten()), jacobian(whole, x.flatten())


def entropies(sigma, B, bias):
    """H_i of each pixel in nats."""
    errors = [bias[i] ** 2 + sum(B[i, j] ** 2 * sigma[j] ** 2 for j in range(len(sigma))) for i in range(len(B))]
    return torch.stack([0.5 * torch.log(2 * math.pi * math.e * error) for error in errors])


def largest(J, B, bias, budget, steps=2000):
    """The largest mean of H_i at sum_j sigma_j^2 ||J_:,j||^2 = budget, by gradient ascent on softmax shares.

    Returns:
        That mean, and a bound on how much more there can be: the mean is concave in the shares, so no shares are
        better than its tangent plane at the ones found.
    """
    costs = J.square().sum(0)
    logits = torch.zeros(len(costs), dtype=torch.float64, requires_grad=True)
    exact = {"tolerance_grad": 1e-12, "tolerance_change": 1e-15, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS([logits], max_iter=steps, **exact)

    def mean_entropy(shares):
        errors = bias**2 + (B**2) @ (shares * budget / costs)
        return 0.5 * torch.log(2 * math.pi * math.e * errors).mean()

    def closure():
        optimizer.zero_grad()
        loss = -mean_entropy(logits.softmax(0))
        loss.backward()
        return loss

    optimizer.step(closure)
    shares = logits.detach().softmax(0).requires_grad_()
    best = mean_entropy(shares)
    (slope,) = torch.autograd.grad(best, shares)
    return best.item(), (slope.max() - slope @ shares).item()

"""Importance of regions against a loop that builds the K x R x R array of a pair of samples.

    python benchmarks/regions.py

It times one gradient step for one sample compared with 100 others, K = 512 channels, R = 196 regions, in float32: the
similarities, the divergence, and its gradients with respect to w and v. Both run in one process by turns; the best of
three counts.
"""

import math
import time

import torch
from torch.nn import functional as F

from netprism.knowledge.importance import _Descent, on_simplex, regional_importance

CHANNELS, SIDE, PAIRS = 512, 14, 100


def seconds(function):
    start = time.perf_counter()
    result = function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def loop_step(units, target, w, v, kappa):
    """Autograd through one K x R x R array per pair."""
    w, v = w.clone().requires_grad_(), v.clone().requires_grad_()
    exponents, gradients = [], []
    for other in units[1:]:
        array = v[:, None, None] * units[0].T[:, :, None] * other.T[:, None, :]
        exponent = kappa * (w * array.sum(dim=0).amax(dim=1)).sum()
        gradients.append(torch.autograd.grad(exponent, (w, v)))  # pair by pair, since 100 graphs would take 24 GB
        exponents.append(exponent.detach())
    error = torch.stack(exponents).softmax(dim=0) - target
    return [sum(e * g[i] for e, g in zip(error, gradients, strict=True)) for i in (0, 1)]


def main():
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    draws = torch.Generator().manual_seed(0)
    features = torch.randn(PAIRS + 1, SIDE**2, CHANNELS, generator=draws).relu().to(device)
    units = F.normalize(features, dim=2)
    exponents = 5 * torch.rand(PAIRS + 1, PAIRS + 1, generator=draws).to(device)
    w = on_simplex(torch.rand(1, SIDE**2, generator=draws)).to(device)
    v = on_simplex(torch.rand(1, CHANNELS, generator=draws)).to(device)
    kappa = 2.0 * CHANNELS
    descent = _Descent(units, exponents, kappa, 0.05, 0.9, memory=2**24)
    sample, others = torch.zeros(1, dtype=torch.int64, device=device), torch.arange(1, PAIRS + 1, device=device)
    ours = loop = math.inf
    for _ in range(3):
        elapsed, found = seconds(lambda: descent.slopes(sample, others, w, v))
        ours = min(ours, elapsed)
        elapsed, expected = seconds(lambda: loop_step(units, exponents[0, 1:].softmax(dim=0), w[0], v[0], kappa))
        loop = min(loop, elapsed)
    steps = [on_simplex(x - 0.05 * slope) for x, slope in zip((w, v), found, strict=True)]
    steps_loop = [on_simplex(x - 0.05 * slope) for x, slope in zip((w, v), expected, strict=True)]
    difference = max((a - b).abs().max().item() for a, b in zip(steps, steps_loop, strict=True))
    print(f"K = {CHANNELS}, R = {SIDE**2}, {PAIRS} pairs, {device}, {torch.get_num_threads()} threads\n")
    print("| one step | seconds |\n| --- | --- |")
    print(f"| the loop over K x R x R arrays | {loop:.2f} |\n| netprism | {ours:.3f} |\n")
    print(f"ratio {loop / ours:.0f}; w and v after the step differ by {difference:.1e} at most")
    maps = features.transpose(1, 2).unflatten(2, (SIDE, SIDE))[:20]
    elapsed, _ = seconds(lambda: regional_importance(maps, torch.randn(20, 10, generator=draws).to(device) * 5))
    print(f"regional_importance of 20 samples, 20 steps of 19 others: {elapsed:.1f} s")


if __name__ == "__main__":
    main()

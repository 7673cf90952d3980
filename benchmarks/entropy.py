"""Gating entropies against the peers, in one run on one machine.

    python benchmarks/entropy.py

The case is ResNet-20 on 32x32 images: 19 gating layers, 188 416 gates, 2000 samples. Every number is the best of its
repeats, in CPU seconds (on a GPU: on the clock); ratios are to one float32 Gram product of the unpacked gates, which
alone would give one joint entropy. scikit-learn's KernelDensity has to be run on a smaller case, against the same
product there.
"""

import math
import resource
import time

import torch
from sklearn.neighbors import KernelDensity

from netprism.gates.entropy import kde_entropy, pairwise_hamming, transformation_complexity
from netprism.gates.packing import PackedGates

RESNET20 = [(16, 32, 7), (32, 16, 6), (64, 8, 6)]  # channels, side, gating layers


def seconds(function, repeats=2):
    best = math.inf
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    for _ in range(repeats):
        start = clock()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = min(best, clock() - start)
    return best


def correlated_gates(n, shape, device, generator):
    """Gates of a few hidden causes and noise, packed in batches as they would come from a network."""
    causes = torch.randn(16, math.prod(shape), device=device, generator=generator)
    batches = []
    for _ in range(0, n, 500):
        hidden = torch.randn(500, 16, device=device, generator=generator)
        noise = torch.randn(500, math.prod(shape), device=device, generator=generator)
        batches.append(PackedGates.pack((hidden @ causes / 4 + noise > 0).view(500, *shape)))
    return PackedGates.concatenate(batches)


def peak_memory():
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main():
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator(device).manual_seed(0)
    n = 2000
    gates = {
        f"{c}x{side}x{side}.{i}": correlated_gates(n, (c, side, side), device, generator)
        for c, side, layers in RESNET20
        for i in range(layers)
    }
    labels = torch.arange(n, device=device) % 10
    packed = sum(layer.bits.numel() for layer in gates.values()) / 2**30
    transformation_complexity({"warm up": next(iter(gates.values()))})
    before = peak_memory()
    everything = seconds(lambda: transformation_complexity(gates, labels))
    memory = peak_memory() - before
    without = seconds(lambda: transformation_complexity(gates, labels, total_correlation=False))
    one = PackedGates(torch.cat([layer.bits for layer in gates.values()], 1), (sum(g.size for g in gates.values()),))
    joint = seconds(lambda: kde_entropy(pairwise_hamming(one), 0.04 * one.size))

    floats = torch.cat([layer.unpack().flatten(1).float() for layer in gates.values()], dim=1)
    gram = seconds(lambda: floats @ floats.T)
    cdist = seconds(lambda: torch.cdist(floats, floats), repeats=1)
    print(
        f"n = {n}, d = {one.size}, 19 layers, {device}, {torch.get_num_threads()} threads, torch {torch.__version__}\n"
    )
    print("| what | seconds | of one float32 Gram product |\n| --- | --- | --- |")
    for name, value in (
        ("transformation_complexity: all quantities, all layers", everything),
        ("the same without total correlation", without),
        ("kde_entropy(pairwise_hamming(...)), joint only", joint),
        ("float32 Gram product alone", gram),
        ("torch.cdist alone", cdist),
    ):
        print(f"| {name} | {value:.2f} | {value / gram:.2f} |")
    print(
        f"\nmemory beside the packed gates: {memory:.3f} GiB; packed {packed:.3f}, as float32 {32 * packed:.1f} GiB\n"
    )
    if device.type == "cpu":
        small_case()


def small_case(n=400, d=8192):
    gates = torch.rand(n, d, generator=torch.Generator().manual_seed(0)) < 0.4
    points = gates.double().numpy()
    floats = gates.float()
    width = 0.04 * d
    ours = seconds(lambda: kde_entropy(pairwise_hamming(gates), width), repeats=5)
    gram = seconds(lambda: floats @ floats.T, repeats=5)
    estimator = KernelDensity(bandwidth=math.sqrt(width)).fit(points)
    theirs = seconds(lambda: estimator.score_samples(points), repeats=1)
    log_mean = estimator.score_samples(points) + d / 2 * math.log(2 * math.pi * width)
    difference = abs(-log_mean.mean() / math.log(2) - float(kde_entropy(pairwise_hamming(gates), width)))
    print(f"n = {n}, d = {d}, one layer; the entropies differ by {difference:.1e} bits\n")
    print("| what | seconds | of one float32 Gram product |\n| --- | --- | --- |")
    print(f"| kde_entropy(pairwise_hamming(...)) | {ours:.4f} | {ours / gram:.2f} |")
    print(f"| scikit-learn KernelDensity.score_samples | {theirs:.4f} | {theirs / gram:.1f} |")


if __name__ == "__main__":
    main()

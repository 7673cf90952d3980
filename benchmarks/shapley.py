"""Times exact Shapley values of feature components against captum, in one run on one machine.

    python benchmarks/shapley.py [--samples 512]

Six components of 64x8x8 features, cached; the head is that of a ResNet, ReLU, average pooling and a linear layer, and
without the ReLU, where coalitions add up logits. captum evaluates L * L! + 1 = 4321 coalitions of L = 6, one after the
other, one permutation of the six at a time. It is timed on all samples over four permutations, and that time is
multiplied by 720 / 4; its values, over all permutations, are compared on eight samples.
"""

import argparse
import math
import time

import torch
import torch.nn.functional as F
from captum.attr import ShapleyValues, ShapleyValueSampling
from torch import nn

from netprism.components.coalitions import coalition_losses
from netprism.components.shapley import shapley_values

PLAYERS, CLASSES = 6, 10
TIMED, COMPARED = 4, 8  # permutations, samples


def best_of(function, repeats):
    best = math.inf
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        best = min(best, time.perf_counter() - start)
    return best, result


def ours(head, parts, rest, labels):
    return shapley_values(lambda members: -coalition_losses(head, parts, rest, labels, members) / len(rest), PLAYERS)


def captums(head, parts, rest, labels, permutations=None):
    """The input has a one for each component: given the components themselves, captum loops over them in Python."""
    stacked = torch.stack(parts)

    def gain(inside):
        features = rest + torch.einsum("l,l...->...", inside[0], stacked)
        return -F.cross_entropy(head(features), labels).double().view(1)

    if permutations is None:
        return ShapleyValues(gain).attribute(torch.ones(1, PLAYERS))[0]
    return ShapleyValueSampling(gain).attribute(torch.ones(1, PLAYERS), n_samples=permutations)[0]


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--samples", type=int, default=512)
    samples = arguments.parse_args().samples
    torch.manual_seed(0)
    parts = [torch.randn(samples, 64, 8, 8) / (i + 1) for i in range(PLAYERS)]
    rest, labels = torch.randn(samples, 64, 8, 8), torch.randint(CLASSES, (samples,))
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))
    print(f"{PLAYERS} components, {samples} features of 64x8x8, {torch.get_num_threads()} threads\n")
    print("| head | ours, s | captum, s | ratio | largest difference |\n| --- | --- | --- | --- | --- |")
    with torch.no_grad():
        for name, head in (("ReLU, pooling, linear", nn.Sequential(nn.ReLU(), pooled)), ("pooling, linear", pooled)):
            mine, _ = best_of(lambda head=head: ours(head, parts, rest, labels), repeats=2)
            theirs, _ = best_of(lambda head=head: captums(head, parts, rest, labels, TIMED), repeats=2)
            theirs *= math.factorial(PLAYERS) / TIMED
            some = [part[:COMPARED] for part in parts], rest[:COMPARED], labels[:COMPARED]
            difference = (ours(head, *some) - captums(head, *some)).abs().max()
            print(f"| {name} | {mine:.3f} | {theirs:.1f} | {theirs / mine:.0f} | {difference:.1e} |", flush=True)


if __name__ == "__main__":
    main()

"""Entropy of gates, accuracy and over-fitting of a small MLP on digits by the weight of the loss, with f and without.

    python docs/studies/weight_sweep.py [seeds]

Writes docs/figures/weight_sweep.png and prints the table of docs/complexity_loss.md. 64-128-128-128-10, Adam 1e-3, 30
epochs of 1437 images of 8 x 8 pixels in batches of 128; the complexity of all three gating layers in every step. H is
the sum of the three layers' entropies over all training images, log2 1437 = 10.5 bits each at most.
"""

import itertools
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from netprism.datamodules import Digits
from netprism.figures._common import save
from netprism.figures.complexity_loss import weight_sweep
from netprism.gates.entropy import transformation_complexity
from netprism.gates.loss import ComplexityLoss
from netprism.gates.record import record_gates
from netprism.nets import MLP

LAMBDAS = (1e-5, 1e-4, 1e-3, 1e-2)
EPOCHS, BATCH = 30, 128


def tensors(split, seed):
    data = Digits(image_size=8, seed=seed)
    data.setup("fit")
    images, labels = zip(*data.monitor_dataset(split), strict=True)
    return torch.stack(images), torch.tensor(labels)


def train(weight, prior_only, seed):
    torch.manual_seed(seed)
    x, y = tensors("train", seed)
    net = MLP((64, 128, 128, 128, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    complexity = ComplexityLoss(net, layers=-3, prior_only=prior_only, seed=seed)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(BATCH):
            with complexity.watch() as gates:
                logits = net(x[batch])
            loss = F.cross_entropy(logits, y[batch])
            if weight > 0:
                loss = loss + weight * complexity(gates)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return measure(net, seed)


@torch.no_grad()
def measure(net, seed):
    net.eval()
    x, y = tensors("train", seed)
    with record_gates(net) as gates:
        train_loss = F.cross_entropy(net(x), y)
    entropy = transformation_complexity(gates.packed, total_correlation=False).entropy
    x, y = tensors("test", seed)
    logits = net(x)
    return {
        "H": sum(entropy.values()),
        "accuracy": (logits.argmax(1) == y).float().mean().item(),
        "gap": (F.cross_entropy(logits, y) - train_loss).item(),
    }


def main(seeds=3):
    rows = []
    print("| loss | lambda | H, bits | test accuracy | test - train loss, nats |\n| --- | --- | --- | --- | --- |")
    for prior_only, weight in [(1, 0.0), *itertools.product((1, 0), LAMBDAS)]:
        found = [
            {"weight": weight, "prior_only": prior_only, "seed": seed, **train(weight, bool(prior_only), seed)}
            for seed in range(seeds)
        ]
        rows += found
        cells = [
            f"{sum(row[key] for row in found) / seeds:.{digits}f}"
            for key, digits in (("H", 2), ("accuracy", 4), ("gap", 3))
        ]
        name = "none" if weight == 0 else "-log q alone" if prior_only else "-f - log q"
        print(f"| {name} | {weight:g} | {' | '.join(cells)} |", flush=True)
    save(weight_sweep(rows), Path(__file__).parents[1] / "figures" / "weight_sweep.png")


if __name__ == "__main__":
    torch.set_num_threads(1)
    start = time.perf_counter()
    main(*map(int, sys.argv[1:]))
    print(f"\n{time.perf_counter() - start:.0f} s")

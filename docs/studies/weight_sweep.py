"""Entropy of gates, accuracy and over-fitting by the weight of the complexity loss, for its three estimators.

    python docs/studies/weight_sweep.py mlp [seeds]
    python docs/studies/weight_sweep.py resnet8 [seeds]
    python docs/studies/weight_sweep.py photos [seeds]
    python docs/studies/weight_sweep.py pinned [seeds]

Writes docs/figures/weight_sweep_<network>.png and prints the table of docs/complexity_loss.md. All trainings of a
network have the same epochs, optimiser, batches and, per seed, the same start and split. Means over seeds; in brackets
the mean difference to the training without the loss of the same seed, and its standard error.

- `mlp`: 64-128-128-128-10 on digits of 8 x 8 pixels, Adam 1e-3, 30 epochs in batches of 128, the three gating layers.
- `resnet8`: ResNet-8 on digits of 16 x 16 pixels, Adam 1e-2 with a cosine, 12 epochs in batches of 64, the last four.
- `photos`: ResNet-8 on patches of ten photographs, 32 x 32 pixels, Adam 1e-2 with a cosine, 10 epochs in batches of 64,
  the last four.
- `pinned`: 64-24-24-10 on digits of 8 x 8 pixels, a BatchNorm without scale and shift before each ReLU, so that all
  activation rates stay near one half; Adam 1e-3, 60 epochs in batches of 128, both gating layers.

H is the sum of these layers' entropies over 1437 training images, at most log2 1437 = 10.5 bits each.
"""

import sys
import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from netprism.datamodules import Digits, Photos
from netprism.figures._common import save
from netprism.figures.complexity_loss import weight_sweep
from netprism.gates.entropy import transformation_complexity
from netprism.gates.loss import ComplexityLoss
from netprism.gates.record import record_gates
from netprism.nets import MLP, ResNet

NETWORKS = {  # network, data, layers, rate, epochs, batch
    "mlp": (lambda: MLP((64, 128, 128, 128, 10)), partial(Digits, image_size=8), -3, 1e-3, 30, 128),
    "resnet8": (lambda: ResNet(8, in_channels=1), partial(Digits, image_size=16), -4, 1e-2, 12, 64),
    "pinned": (lambda: pinned(64, 24, 24, 10), partial(Digits, image_size=8), -2, 1e-3, 60, 128),
    "photos": (lambda: ResNet(8, in_channels=1), Photos, -4, 1e-2, 10, 64),
}
IMAGES = 1437  # training images that the entropy is taken over
SWEEPS = {
    "mlp": {"prior": (1e-4, 1e-3, 1e-2), "energy": (1e-4, 1e-3, 1e-2), "kernel": (3e-3, 1e-2, 3e-2)},
    "pinned": {"prior": (1e-3, 1e-2, 1e-1), "energy": (1e-3, 1e-2, 1e-1), "kernel": (1e-2, 3e-2, 1e-1)},
    "photos": {"prior": (3e-4, 1e-3, 1e-2), "energy": (1e-3,), "kernel": (1e-2, 3e-2)},
}
SWEEPS["resnet8"] = SWEEPS["mlp"]


def pinned(*sizes):
    layers = [nn.Flatten()]
    for inputs, outputs in pairwise(sizes[:-1]):
        layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs, affine=False), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(*sizes[-2:]))


def tensors(make_data, split, seed):
    data = make_data(seed=seed)
    data.setup("fit")
    images, labels = zip(*data.monitor_dataset(split), strict=True)
    return torch.stack(images), torch.tensor(labels)


def train(network, estimator, weight, seed):
    make, make_data, layers, rate, epochs, batch_size = NETWORKS[network]
    torch.manual_seed(seed)
    x, y = tensors(make_data, "train", seed)
    net = make()
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    steps = epochs * -(-len(x) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if network != "mlp" else None
    complexity = ComplexityLoss(net, layers=layers, estimator=estimator, seed=seed)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(batch_size):
            if weight > 0:
                with complexity.watch() as gates:
                    logits = net(x[batch])
                loss = F.cross_entropy(logits, y[batch]) + weight * complexity(gates)
            else:
                loss = F.cross_entropy(net(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
    return measure(net.eval(), make_data, -layers, seed)


@torch.no_grad()
def measure(net, make_data, layers, seed):
    x, y = tensors(make_data, "train", seed)
    train_loss = torch.cat([F.cross_entropy(net(a), b, reduction="none") for a, b in batches(x, y)]).mean().item()
    with record_gates(net) as gates:
        net(x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:IMAGES]])
    entropy = transformation_complexity(gates.packed, total_correlation=False).entropy
    x, y = tensors(make_data, "test", seed)
    logits = torch.cat([net(images) for images, _ in batches(x, y)])
    test_loss = F.cross_entropy(logits, y).item()
    return {
        "H": sum(list(entropy.values())[-layers:]),
        "accuracy": (logits.argmax(1) == y).float().mean().item(),
        "test_loss": test_loss,
        "gap": test_loss - train_loss,
    }


def batches(x, y):
    return zip(x.split(500), y.split(500), strict=True)


def cell(found, plain, key, digits):
    """Mean, and the paired difference to the plain trainings with its standard error."""
    difference = torch.tensor([row[key] - other[key] for row, other in zip(found, plain, strict=True)])
    mean = sum(row[key] for row in found) / len(found)
    if found is plain or len(found) < 2:
        return f"{mean:.{digits}f}"
    error = difference.std() / len(found) ** 0.5
    return f"{mean:.{digits}f} ({difference.mean():+.{digits}f} ± {error:.{digits}f})"


def main(network="mlp", seeds=3):
    rows, plain = [], []
    print("| estimator | weight | H, bits | test accuracy | test loss | test - train loss |\n|---|---|---|---|---|---|")
    settings = [("none", 0.0), *((name, weight) for name, weights in SWEEPS[network].items() for weight in weights)]
    for estimator, weight in settings:
        found = [
            {"weight": weight, "estimator": estimator, "seed": seed}
            | train(network, "prior" if estimator == "none" else estimator, weight, seed)
            for seed in range(int(seeds))
        ]
        plain = plain or found
        rows += found
        cells = [cell(found, plain, *key) for key in (("H", 2), ("accuracy", 4), ("test_loss", 4), ("gap", 4))]
        print(f"| {estimator} | {weight:g} | {' | '.join(cells)} |", flush=True)
    save(weight_sweep(rows), Path(__file__).parents[1] / "figures" / f"weight_sweep_{network}.png")


if __name__ == "__main__":
    torch.set_num_threads(1)
    start = time.process_time()
    main(*sys.argv[1:])
    print(f"\n{time.process_time() - start:.0f} s of one thread")

"""What the complexity loss costs: a training step with and without it, in one run on one machine.

    python benchmarks/complexity_loss.py

The penalty on the last four gating layers in every step, with Adam, which is what the callback adds to a step. CPU
time (on a GPU: wall time), best of the repeats, alternating.
Memory is the peak of the process (on a GPU: of the allocations) after steps of each kind, the
plain ones first.
"""

import math
import resource
import time

import torch
import torchvision
from torch.nn import functional as F

from netprism.gates.loss import ComplexityLoss
from netprism.nets import PreActResNet, ResidualMLP


def seconds(function):
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    start = clock()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


def peak_memory():
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def compare(name, net, batch, repeats, device, estimator, size=32):
    net = net.to(device)
    x = torch.randn(batch, 3, size, size, device=device)
    y = torch.arange(batch, device=device) % 10
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    complexity = ComplexityLoss(net, layers=-4, estimator=estimator)

    def plain():
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()

    def penalised():
        optimizer.zero_grad()
        with complexity.watch() as gates:
            loss = F.cross_entropy(net(x), y)
        (loss + 1e-3 * complexity(gates)).backward()
        optimizer.step()

    plain()
    plain()
    before = peak_memory()
    penalised()
    penalised()
    memory = peak_memory() / before
    best = {plain: math.inf, penalised: math.inf}
    for _ in range(repeats):
        for step in best:
            best[step] = min(best[step], seconds(step))
    cells = (
        f"{1e3 * best[plain]:.0f} | {1e3 * best[penalised]:.0f} | {best[penalised] / best[plain]:.2f} | {memory:.2f}"
    )
    print(f"| {name}, batch {batch} | {estimator} | {cells} |", flush=True)


def main():
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| network | estimator | plain step, ms | with the loss, ms | ratio | peak memory |\n|-|-|-|-|-|-|")
    for estimator in ("prior", "energy", "kernel"):
        torch.manual_seed(0)
        compare("ResidualMLP, 3072 wide, 10 deep", ResidualMLP(), 128, 5, device, estimator)
        compare("PreActResNet-20", PreActResNet(20), 128, 3, device, estimator)
        compare("torchvision ResNet-18, 224 px", torchvision.models.resnet18(), 8, 3, device, estimator, 224)


if __name__ == "__main__":
    main()

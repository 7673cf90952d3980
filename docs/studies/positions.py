"""How much noise does a random subset of positions add to the complexity loss, beside that of the batch?

    python docs/studies/positions.py

ResNet-8 after 3 epochs on digits of 16 x 16 pixels, `prior` after 50 batches, its last four gates. The variance of the
gradient with respect to all weights of the network, a sum over weights: over 20 batches of 64 images at all positions,
and over 20 draws of positions for one batch; that of the loss of the
task beside it. And for `kernel`, which is not a mean over positions nor over images: how
its gradient over a batch of 128, the mean over 8 batches, agrees with that of its parts, as several processes have it.
Prints the tables of docs/complexity_loss.md. A minute and a half on one core.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from netprism.datamodules import Digits
from netprism.gates.loss import ComplexityLoss
from netprism.nets import ResNet

BATCH, REPEATS = 64, 20


def digits() -> tuple[Tensor, Tensor]:
    data = Digits(image_size=16)
    data.setup("fit")
    images, labels = zip(*data.monitor_dataset("train"), strict=True)
    return torch.stack(images), torch.tensor(labels)


def trained(x: Tensor, y: Tensor) -> nn.Module:
    torch.manual_seed(0)
    net = ResNet(8, in_channels=1)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(3):
        for batch in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
    return net.eval()


def gradient(net: nn.Module, loss: ComplexityLoss, x: Tensor) -> Tensor:
    with loss.watch() as gates:
        net(x)
    gradients = torch.autograd.grad(loss(gates), list(net.parameters()), allow_unused=True)
    return torch.cat([g.flatten() for g in gradients if g is not None])


def task_gradient(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    gradients = torch.autograd.grad(F.cross_entropy(net(x), y), list(net.parameters()))
    return torch.cat([g.flatten() for g in gradients])


def with_rates(net: nn.Module, positions: int | None, x: Tensor) -> ComplexityLoss:
    """A prior that has seen 50 batches at all positions, and looks at some of them from then on."""
    loss = ComplexityLoss(net, estimator="prior", positions=None)
    for batch in torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).split(BATCH) * 3:
        gradient(net, loss, x[batch])
    loss.positions = positions
    return loss.eval()


def variance(rows: list[Tensor]) -> float:
    return torch.stack(rows).var(0).sum().item()


def main() -> None:
    x, y = digits()
    net = trained(x, y)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1)).split(BATCH)[:REPEATS]
    whole = with_rates(net, None, x)
    over_batches = variance([gradient(net, whole, x[batch]) for batch in order])
    task = variance([task_gradient(net, x[batch], y[batch]) for batch in order])
    print(f"variance over batches: complexity at all positions {over_batches:.3g}, loss of the task {task:.3g}\n")
    print("| positions | variance over draws | of that of the task over batches, with a weight of 1e-3 |")
    print("| --- | --- | --- |")
    for positions in (2, 8, 32):
        loss = with_rates(net, positions, x)
        rows = []
        for draw in range(REPEATS):
            loss.seed = draw
            rows.append(gradient(net, loss, x[order[0]]))
        found = variance(rows)
        print(f"| {positions} | {found:.3g} | {1e-6 * found / task:.2g} |", flush=True)
    kernel = ComplexityLoss(net, estimator="kernel", positions=None)
    batches = [x[batch] for batch in torch.randperm(len(x)).split(128)[:8]]
    joint = torch.stack([gradient(net, kernel, batch) for batch in batches]).mean(0)
    print("\n| processes | kernel: cosine with the gradient of the joint batch of 128 | length, of the joint one |")
    print("| --- | --- | --- |")
    for processes in (2, 4, 8):
        parts = [gradient(net, kernel, part) for batch in batches for part in batch.chunk(processes)]
        mean = torch.stack(parts).mean(0)
        cosine = F.cosine_similarity(mean, joint, dim=0).item()
        print(f"| {processes} | {cosine:.3f} | {(mean.norm() / joint.norm()).item():.3f} |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

"""Time of information discarding against the obvious ways to have it: python benchmarks/discarding.py.

One 32x32 image, one layer of ResNet-20; ratios of times in this run, the two sides of each taken in turn.
- linear: the 64 vector-Jacobian products alone, written out, against `strict_information_discarding`.
- optimized: the published procedure, one image, 5000 steps of Adam with one noise a step, against ours; and the mean
  entropy of both after both are scaled to the same constraint, measured with the same 2000 noises.
- callback: one measurement of `InformationDiscarding` (16 images, 4 layers) against an epoch of ResNet-8 on digits.
"""

import argparse
import tempfile
import time

import pytorch_lightning as pl
import torch

from netprism.callbacks import InformationDiscarding
from netprism.datamodules import Digits
from netprism.discarding.layer_view import LayerView
from netprism.discarding.noise import feature_change
from netprism.discarding.sensitivity import feature_scale
from netprism.discarding.sid import ALPHA, GAUSSIAN, strict_information_discarding
from netprism.lightning_modules import Classifier
from netprism.nets import ResNet
from netprism.taps import tap


def network(seed=0):
    """ResNet-20 whose running statistics fit random images: the network need not be trained to cost what it costs."""
    torch.manual_seed(seed)
    net = ResNet(20).train()
    for _ in range(20):
        net(torch.randn(16, 3, 32, 32))
    return net.eval()


def products_alone(net, layer, x, num_vjps=64):
    x = x.clone().requires_grad_()
    with tap(net, layer) as features:
        net(x)
    sums = torch.zeros_like(x)
    for _ in range(num_vjps):
        v = torch.randn_like(features[layer])
        (product,) = torch.autograd.grad(features[layer], x, v, retain_graph=True)
        sums += product.square()
    return sums


def published(net, layer, x, scale, steps=5000, learning_rate=0.01):
    """Equation 5 with lambda = 2 alpha / n, one noise a step; sigma begins at what uniform sensitivity would give."""
    with torch.no_grad(), tap(net, layer) as features:
        net(x)
    clean = features[layer]
    log_sigma = torch.full_like(x, ALPHA**0.5).log().requires_grad_()
    optimizer = torch.optim.Adam([log_sigma], learning_rate)
    for _ in range(steps):
        with tap(net, layer) as features:
            net(x + log_sigma.exp() * torch.randn_like(x))
        change = (features[layer] - clean).square().sum() / scale
        loss = change - 2 * ALPHA / x.numel() * log_sigma.sum()
        (log_sigma.grad,) = torch.autograd.grad(loss, log_sigma)
        optimizer.step()
    return log_sigma.detach().exp()


def seconds(run):
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def at_the_constraint(net, layer, x, sigma, scale):
    """Mean entropy after sigma is scaled to the constraint."""
    for _ in range(3):
        ratio = feature_change(LayerView(net, layer), x, sigma, noise_samples=2000, seed=7) / (ALPHA * scale)
        sigma = (sigma * ratio.rsqrt().to(sigma)).clamp(max=1.0)
    return sigma.log().mean().item() + GAUSSIAN


class Timed(InformationDiscarding):
    """Writes down how long it takes, and when."""

    def __init__(self, **options):
        super().__init__(measure_untrained=False, **options)
        self.clock, self.taken = [], []

    def on_train_epoch_start(self, trainer, pl_module):
        self.clock.append(time.perf_counter())

    def on_train_epoch_end(self, trainer, pl_module):
        end = time.perf_counter()
        super().on_train_epoch_end(trainer, pl_module)
        self.taken.append((end - self.clock[-1], time.perf_counter() - end))


def callback(epochs):
    for options in ({}, {"shown": 0}, {"num_vjps": 64, "shown": 0}):
        monitor = Timed(**options)
        trainer = pl.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[monitor],
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tempfile.mkdtemp(),
        )  # fmt: skip
        trainer.fit(Classifier(ResNet(8, in_channels=1)), Digits())
        (epoch, taken) = (min(times) for times in zip(*monitor.taken, strict=True))
        print(f"callback {options}: {taken:.2f} s after an epoch of {epoch:.2f} s with validation, {taken / epoch:.0%}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", default="layer2")
    parser.add_argument("--steps", type=int, default=5000, help="of the published procedure")
    parser.add_argument("--rounds", type=int, default=5, help="of the linear comparison; the best of each is taken")
    parser.add_argument("--epochs", type=int, default=3, help="of the training with the callback")
    options = parser.parse_args()
    callback(options.epochs)
    net, x = network().requires_grad_(False), torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    scale = feature_scale(net, options.layer, [x], num_vjps=512)[options.layer]

    def ours(method):
        return strict_information_discarding(net, options.layer, x, scale=scale, method=method)

    ours("linear")
    pairs = [
        (seconds(lambda: products_alone(net, options.layer, x))[0], seconds(lambda: ours("linear"))[0])
        for _ in range(options.rounds)
    ]
    alone, linear = (min(times) for times in zip(*pairs, strict=True))
    print(f"{options.layer}: 64 products {alone:.2f} s, linear {linear:.2f} s, ratio {linear / alone:.2f}")

    first, sid = seconds(lambda: ours("optimized"))
    taken, theirs = seconds(lambda: published(net, options.layer, x, scale, options.steps))
    second, _ = seconds(lambda: ours("optimized"))
    ratio = feature_change(LayerView(net, options.layer), x, sid.sigma, noise_samples=2000, seed=7) / (ALPHA * scale)
    print(f"published {taken:.1f} s, optimized {first:.1f} and {second:.1f} s, ratio {taken / max(first, second):.1f}")
    for name, sigma in (("published", theirs), ("optimized", sid.sigma), ("linear", ours("linear").sigma)):
        print(f"{name}: mean entropy {at_the_constraint(net, options.layer, x, sigma, scale):.4f} nats")
    print(f"constraint after optimisation: {ratio.item():.3f}")


if __name__ == "__main__":
    main()

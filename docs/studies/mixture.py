"""Does significance tell simple from complex features? Mixes two random nets, of 4 and of 25 ReLUs.

    python docs/studies/mixture.py

The feature is f = a * (random net of 4 ReLUs) + b * (random net of 25 ReLUs), both of variance 1, a^2 + b^2 = 1, on
inputs of 2 normal numbers. For each mixture, disentanglers of order 4, 7, 13 and 25 are trained on new inputs in every
step. Writes docs/figures/components_mixture.png and prints the table. Four minutes on one core.
"""

from __future__ import annotations

import logging
import math
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from netprism.components.disentangler import FEW_ORDERS, DisentanglerNet
from netprism.components.measures import Components
from netprism.figures._common import save
from netprism.lightning_modules import Disentangler
from netprism.metrics import ComponentMetric

INPUTS, OUTPUTS, ORDERS = 2, 2, FEW_ORDERS
FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the variance that the simple net has: a^2


class Mixture(nn.Module):
    """`a * simple(x) + b * complex(x)`, each standardised on a sample."""

    def __init__(self, fraction: float, orders: tuple[int, int] = (4, 25), width: float = 0.125, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1000 + seed)  # with the seed of the disentanglers, order 4 would start as the simple net
            self.nets = nn.ModuleList(random_net(order, width) for order in orders)
        self.weights = (math.sqrt(fraction), math.sqrt(1 - fraction))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, 2) to (N, 2)."""
        simple, complicated = (weight * net(x) for weight, net in zip(self.weights, self.nets, strict=True))
        return simple + complicated


def random_net(order: int, width: float) -> nn.Sequential:
    """Returns a stacked disentangler net with random weights, each of whose layers is standardised as in training."""
    net = DisentanglerNet((INPUTS,), (OUTPUTS,), order, width, skip=False)
    nn.init.normal_(net.out.weight)
    standardise = nn.BatchNorm1d(OUTPUTS, affine=False)
    whole = nn.Sequential(net, standardise)
    for module in whole.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = 1.0
    with torch.no_grad():
        whole(torch.randn(10_000, INPUTS))  # in train mode: every BatchNorm takes these statistics
    return whole.eval()


def measured(fraction: float, steps: int, width: float = 0.125, seed: int = 0) -> Components:
    """Returns the components of a mixture, on inputs that no net has seen."""
    pl.seed_everything(seed, verbose=False)
    teacher = nn.Sequential(Mixture(fraction, seed=seed), nn.Identity())
    disentangler = Disentangler(
        teacher, "0", ORDERS, width, input_shape=(INPUTS,), optimizer=lambda groups: torch.optim.Adam(groups, 5e-3)
    )
    data = DataLoader(TensorDataset(torch.randn(128 * steps, INPUTS)), batch_size=128)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(disentangler, data, data)
    disentangler.eval()
    metric = ComponentMetric(ORDERS)
    with torch.no_grad():
        for x in torch.randn(40, 128, INPUTS):
            metric.update(disentangler.cut.feature(x), disentangler(x))
    return metric.components()


def main() -> None:
    """Prints the table and draws the figure."""
    torch.set_num_threads(1)  # the nets are too small for two
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "Found .* in eval mode")  # the teacher, on purpose
    found = {fraction: measured(fraction, steps=2000) for fraction in FRACTIONS}
    print("| a^2 | " + " | ".join(f"rho({order})" for order in ORDERS) + " | above 4 | rest |")
    print("| --- " * (len(ORDERS) + 3) + "|")
    for fraction, c in found.items():
        numbers = (*c.significance, sum(c.significance[1:]), c.rest_significance)
        print(f"| {fraction} | " + " | ".join(f"{number:.3f}" for number in numbers) + " |")
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(FRACTIONS, [c.significance[0] for c in found.values()], "o-", label="order 4")
    left.plot(FRACTIONS, [c.rest_significance for c in found.values()], "^:", color="0.5", label="rest")
    for i, order in enumerate(ORDERS[1:], start=1):
        right.plot(FRACTIONS, [c.significance[i] for c in found.values()], "s-", label=f"order {order}")
    for axes in (left, right):
        axes.set_xlabel("fraction a² of the simple net")
        axes.set_ylabel("significance")
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    save(figure, Path(__file__).parents[1] / "figures" / "components_mixture.png")


if __name__ == "__main__":
    main()

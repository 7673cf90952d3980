"""Distilling a feature of a trained network into disentangler nets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from netprism.components.disentangler import Disentanglers, check_orders, stage_widths
from netprism.components.network_split import SplitNetwork


@dataclass(frozen=True)
class DisentangledFeature:
    """A feature of a trained network, and the nets that mimic it.

    Attributes:
        orders: The orders l, rising.
        cut: The network, cut at the layer of the feature.
        approximate: Function from images (N, ...) to Phi^(l) (N, ...), one for each order.
    """

    orders: tuple[int, ...]
    cut: SplitNetwork
    approximate: Callable[[Tensor], list[Tensor]]

    @torch.no_grad()
    def parts(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Maps images (N, ...) to f and Phi^(l) (N, ...), all in float32."""
        return self.cut.feature(images).float(), [phi.float() for phi in self.approximate(images)]

    def head(self, feature: Tensor) -> Tensor:
        """Maps f or Phi^(l) to logits (N, classes) in float32; the network gets the type that it gave last."""
        return self.cut.head(feature.to(self.cut.dtype)).float()


@runtime_checkable
class HasDisentangledFeature(Protocol):
    """A LightningModule whose own nets `netprism.callbacks.FeatureComponents` measures, as those of `Disentangler`."""

    def disentangled_feature(self) -> DisentangledFeature:
        """Returns the feature with its nets."""


def mimic_losses(approximations: Iterable[Tensor], feature: Tensor) -> list[Tensor]:
    """Returns the mean over samples and elements of (f - Phi^(l))^2, one for each order."""
    return [F.mse_loss(phi, feature) for phi in approximations]


def distil(
    nets: Disentanglers,
    batches: Iterable[tuple[Tensor, Tensor]],
    steps: int,
    learning_rate: float = 1e-3,
    lr_final_factor: float = 0.01,
) -> None:
    """Trains disentangler nets to mimic a feature, with Adam, all orders in each step; leaves them in eval mode.

    Args:
        nets: The nets.
        batches: Pairs of images `(N, ...)` and features `(N, ...)`, one pair per step.
        steps: Number of steps over which the learning rate falls.
        learning_rate: Learning rate of Adam at the start.
        lr_final_factor: Factor of the learning rate at the end; it falls exponentially.
    """
    nets.train()
    optimizer = torch.optim.Adam(nets.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, lr_final_factor ** (1 / steps))
    for images, feature in batches:
        with torch.enable_grad():
            loss = torch.stack(mimic_losses(nets(images), feature)).sum()
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        schedule.step()
    nets.eval()


class Distiller:
    """Disentangler nets that follow a network in training: each distillation continues where the last one ended.

    Args:
        orders: Numbers of ReLUs, rising.
        width: The factor r of each net.
        skip: Whether each net is residual.
        seed: Seed of the nets.
    """

    def __init__(self, orders: Sequence[int], width: float, skip: bool, seed: int) -> None:
        stage_widths(width)
        self.orders, self.width, self.skip, self.seed = check_orders(orders), width, skip, seed
        self.nets: Disentanglers | None = None
        self._state: dict[str, Tensor] | None = None  # of nets that are not made yet

    def distil(
        self, batches: Iterable[tuple[Tensor, Tensor]], steps: int, learning_rate: float, lr_final_factor: float = 0.01
    ) -> Disentanglers:
        """Trains the nets, which are made for the first batch; returns them. The arguments are those of `distil`."""
        pairs = iter(batches)
        images, feature = first = next(pairs)
        if self.nets is None:
            torch.manual_seed(self.seed)
            self.nets = Disentanglers(images.shape[1:], feature.shape[1:], self.orders, self.width, self.skip)
            if self._state is not None:
                self.nets.load_state_dict(self._state)
        distil(self.nets.to(feature.device), chain([first], pairs), steps, learning_rate, lr_final_factor)
        return self.nets

    def state_dict(self) -> dict[str, Tensor] | None:
        """The nets' weights; None before the first distillation."""
        return self._state if self.nets is None else self.nets.state_dict()

    def load_state_dict(self, state: dict[str, Tensor] | None) -> None:
        """Continues from these weights; None for new nets."""
        self.nets, self._state = None, state

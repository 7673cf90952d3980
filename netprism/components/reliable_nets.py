"""The nets behind the reliable part of a feature: wide disentangler nets with a linear head for each network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from netprism.components.disentangler import DisentanglerNet, Disentanglers
from netprism.components.reliability import check_width, cycle_loss, mean_trip
from netprism.components.reliability_meter import Reliability, ReliabilityMetric


class WideDisentangler(nn.Module):
    """psi^(l): the body of a disentangler net, and a linear head for each of K features, without bias.

    Args:
        input_shape: of one input, as in `DisentanglerNet`.
        feature_shapes: of the K features, (C_k, H, W) of one size or (D_k,).
        order: l, one of 4, 7, 10, 13, ...
        width: r; psi has 512 r channels, more than any feature.
        skip: residual or stacked.
        learned_rounds: R where the round trips are trained, 0 where they follow from the data.

    Raises:
        ValueError: features of different sizes, psi too narrow, and what `DisentanglerNet` raises.

    Shape:
        (N, *input_shape) to psi (N, 512 r, H, W) or (N, 512 r).
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        feature_shapes: Sequence[Sequence[int]],
        order: int,
        width: float = 1.0,
        skip: bool = True,
        learned_rounds: int = 0,
    ) -> None:
        super().__init__()
        target = tuple(feature_shapes[0])
        for k, shape in enumerate(feature_shapes):
            if tuple(shape[1:]) != target[1:]:
                raise ValueError(f"feature {k} has shape {tuple(shape)}, the target's {target}: sizes must be the same")
        self.net = DisentanglerNet(input_shape, target, order, width, skip)
        del self.net.out  # the heads are in its place
        channels = self.net.body_channels
        check_width(channels, max(shape[0] for shape in feature_shapes))
        # zeros: what is left of random ones at the end of the training would look like features of one network alone
        self.heads = nn.ParameterList(torch.zeros(shape[0], channels) for shape in feature_shapes)
        self.maps = nn.ModuleList(
            nn.ParameterList(torch.zeros(channels, shape[0]) for shape in feature_shapes) for _ in range(learned_rounds)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Inputs (N, ...) to psi (N, d, ...)."""
        return self.net.body(x)

    def mimics(self, psi: Tensor) -> list[Tensor]:
        """g_k(psi), (N, c_k, ...) each."""
        return [torch.einsum("cd,nd...->nc...", head, psi) for head in self.heads]

    def cycle_loss(self, psi: Tensor) -> Tensor:
        """Eq. 5 with the learned maps; psi and heads get no gradient."""
        centred = psi.detach() - psi.detach().mean(dim=[0, *range(2, psi.dim())], keepdim=True)
        return cycle_loss(centred, self.head_matrices, [list(maps) for maps in self._maps])

    @property
    def head_matrices(self) -> list[Tensor]:
        """g_k, (c_k, d) each, without gradient."""
        return [head.detach() for head in self.heads]

    @property
    def learned_trips(self) -> Tensor | None:
        """The learned round trips (R, d, d), without gradient; None where they are not learned."""
        if len(self.maps) == 0:
            return None
        return torch.stack([mean_trip(self.head_matrices, [h.detach() for h in maps]) for maps in self._maps])

    @property
    def _maps(self) -> list[nn.ParameterList]:
        return [maps for maps in self.maps if isinstance(maps, nn.ParameterList)]


class ReliableNets(nn.Module):
    """For each order psi^(l) of all K networks, and Phi^(l) of the target, the first one.

    Args:
        input_shape: of one input, as in `DisentanglerNet`.
        feature_shapes: of the K features, the target's first.
        orders: l, rising.
        width: r of all nets.
        skip: residual or stacked.
        learned_rounds: as in `WideDisentangler`.

    Raises:
        ValueError: what `Disentanglers` and `WideDisentangler` raise.
    """

    weights: Tensor
    biases: Tensor

    def __init__(
        self,
        input_shape: Sequence[int],
        feature_shapes: Sequence[Sequence[int]],
        orders: Sequence[int],
        width: float = 1.0,
        skip: bool = True,
        learned_rounds: int = 0,
    ) -> None:
        super().__init__()
        self.own = Disentanglers(input_shape, feature_shapes[0], orders, width, skip)
        self.wide_nets = nn.ModuleList(
            WideDisentangler(input_shape, feature_shapes, order, width, skip, learned_rounds) for order in orders
        )
        target, channels = feature_shapes[0][0], self.own[0].body_channels
        # Phi^(l),reli = weights psi + biases; unknown until they have been measured
        self.register_buffer("weights", torch.full((len(self.own), target, channels), torch.nan))
        self.register_buffer("biases", torch.full((len(self.own), target), torch.nan))

    @property
    def wide(self) -> list[WideDisentangler]:
        """The wide nets, one for each order."""
        return [net for net in self.wide_nets if isinstance(net, WideDisentangler)]

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Inputs (N, ...) to psi^(l) and Phi^(l), one of each for each order."""
        return [net(x) for net in self.wide_nets], self.own(x)

    def meter(self, rounds: int, refit: bool) -> ReliabilityMetric:
        """A meter of what `forward` gives."""
        trips = [net.learned_trips for net in self.wide]
        learned = [trip for trip in trips if trip is not None]
        return ReliabilityMetric(
            self.own.orders, [net.head_matrices for net in self.wide], rounds, refit, learned if learned else None
        )

    @torch.no_grad()
    def remember(self, found: Reliability) -> None:
        """Takes over how Phi^(l),reli follows from psi."""
        self.weights.copy_(found.weights)
        self.biases.copy_(found.biases)

    def reliable(self, psi: Sequence[Tensor]) -> list[Tensor]:
        """psi^(l) (N, d, ...) to Phi^(l),reli of the target (N, c, ...), one for each order.

        Raises:
            RuntimeError: nothing to remember yet.
        """
        if self.weights.isnan().any():
            raise RuntimeError("the round trips have not been measured yet: validate first")
        parts = []
        for value, weight, bias in zip(psi, self.weights, self.biases, strict=True):
            part = torch.einsum("cd,nd...->nc...", weight, value)
            parts.append(part + bias.view(-1, *[1] * (part.dim() - 2)))
        return parts

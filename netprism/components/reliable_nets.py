"""The nets behind the reliable part of a feature: wide disentangler nets with a linear readout for each network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from netprism.components.disentangler import DisentanglerNet, Disentanglers
from netprism.components.reliability import check_width


class WideDisentangler(nn.Module):
    """psi^(l): the body of a disentangler net, and a linear readout for each of K features, without bias.

    Args:
        input_shape: Shape of one input, as in `DisentanglerNet`.
        feature_shapes: Shapes of the K features, (C_k, H, W) of one size or (D_k,).
        order: The order l, one of 4, 7, 10, 13, ...
        width: The factor r; psi has 512 r channels, more than any feature.
        skip: Whether the net is residual; otherwise it is stacked.

    Raises:
        ValueError: The features have different sizes, psi is too narrow, or `DisentanglerNet` refuses an option.

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
    ) -> None:
        super().__init__()
        target = tuple(feature_shapes[0])
        for k, shape in enumerate(feature_shapes):
            if tuple(shape[1:]) != target[1:]:
                raise ValueError(f"feature {k} has shape {tuple(shape)}; expected the size of the target's {target}")
        self.net = DisentanglerNet(input_shape, target, order, width, skip)
        del self.net.out  # the readouts are in its place
        channels = self.net.body_channels
        check_width(channels, max(shape[0] for shape in feature_shapes))
        # zeros: what is left of random ones at the end of the training would look like features of one network alone
        self.readouts = nn.ParameterList(torch.zeros(shape[0], channels) for shape in feature_shapes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps inputs (N, ...) to psi (N, d, ...)."""
        return self.net.body(x)

    def mimics(self, psi: Tensor) -> list[Tensor]:
        """Returns g_k(psi), (N, c_k, ...) each."""
        return [torch.einsum("cd,nd...->nc...", readout, psi) for readout in self.readouts]

    @property
    def readout_matrices(self) -> list[Tensor]:
        """g_k, (c_k, d) each, without gradient."""
        return [readout.detach() for readout in self.readouts]


class ReliableNets(nn.Module):
    """For each order psi^(l) of all K networks, and Phi^(l) of the target, the first one.

    Args:
        input_shape: Shape of one input, as in `DisentanglerNet`.
        feature_shapes: Shapes of the K features, the target's first.
        orders: The orders l, rising.
        width: The factor r of all nets.
        skip: Whether the nets are residual; otherwise they are stacked.

    Raises:
        ValueError: `Disentanglers` or `WideDisentangler` refuses an option.

    Attributes:
        weights: Tensor `(L, c, 512 r)`: with `biases`, how Phi^(l),reli follows from psi. NaN until they are measured,
            see `netprism.components.Reliability`.
        biases: Tensor `(L, c)`.
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
    ) -> None:
        super().__init__()
        self.own = Disentanglers(input_shape, feature_shapes[0], orders, width, skip)
        self.wide_nets = nn.ModuleList(
            WideDisentangler(input_shape, feature_shapes, order, width, skip) for order in orders
        )
        target, channels = feature_shapes[0][0], self.own[0].body_channels
        self.register_buffer("weights", torch.full((len(self.own), target, channels), torch.nan))
        self.register_buffer("biases", torch.full((len(self.own), target), torch.nan))

    @property
    def wide(self) -> list[WideDisentangler]:
        """The wide nets, one for each order."""
        return [net for net in self.wide_nets if isinstance(net, WideDisentangler)]

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Maps inputs (N, ...) to psi^(l) and Phi^(l), one of each for each order."""
        return [net(x) for net in self.wide_nets], self.own(x)

    def reliable(self, psi: Sequence[Tensor]) -> list[Tensor]:
        """Maps psi^(l) (N, d, ...) to Phi^(l),reli of the target (N, c, ...), one for each order.

        Raises:
            RuntimeError: `weights` and `biases` have not been measured yet.
        """
        if self.weights.isnan().any():
            raise RuntimeError("the round trips have not been measured yet: validate first")
        parts = []
        for value, weight, bias in zip(psi, self.weights, self.biases, strict=True):
            part = torch.einsum("cd,nd...->nc...", weight, value)
            parts.append(part + bias.view(-1, *[1] * (part.dim() - 2)))
        return parts

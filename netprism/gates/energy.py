"""Models of the distribution of one layer's gates: independent units, and an energy model that learns what these miss.

The distribution of the gates sigma_p at position p of a layer (a pixel of a feature map; flat gates are one position)
is modelled as

    log p(sigma_p) = f_p(sigma_p) + log q_p(sigma_p) - log Z_p,
    q_p(sigma_p) = prod_i r_i^sigma_i (1 - r_i)^(1 - sigma_i),

with r_i the running activation rate of gate i at this position, and f a small network. The gradient of log Z is the
mean of that of f over the model's own samples, the negatives, so f learns from the difference between these and the
gates seen. Positions are independent of one another given the model: a mean over a random subset of them is an unbiased
estimate of the mean over all, for values, gradients and the contrast of gates and negatives alike.

Source: Ren et al. 2022, appendix J of the first version, https://arxiv.org/abs/2205.01940.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from netprism.gates.sampler import discrete_langevin, log_partition, uniform

PAPER_WIDTHS = (32, 64, 128, 256, 512, 512)  # the six 1x1 convolutions of the paper's authors
WIDTHS = (32, 64, 128)  # a thirtieth of their cost
RATE_BOUNDS = (0.001, 0.999)  # a gate that was never seen open stays possible: its log q is at least log .001
RATE_MOMENTUM = 0.1
TARGET_ACCEPTANCE = 0.57  # the best for gradient-based proposals of binary states: Sun et al. 2022, arXiv:2205.03040
SMALLEST_FLIP = 1e-3
COLLAPSED, LOOKS = 0.02, 100  # below this mean acceptance over about so many fits, the layer is left to its prior


class GatePrior(nn.Module):
    """Independent gates: log p = log q, from the running activation rate of each gate. No parameter, no sampler.

    Args:
        shape: Shape of one sample's gates: `(d,)`, or `(C, H, W)` or any other `(C, ...)` with C channels.

    Attributes:
        rates: Running activation rates, `(positions, C)`, not clamped; NaN where no gate was seen yet.
        finite: Whether the gates of the last fit, of all ranks, were free of NaN.
        num_updates: Number of fits so far.

    Raises:
        ValueError: Gates have another shape.
    """

    rates: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        if min(shape, default=0) < 1:
            raise ValueError(f"sizes of gates are {shape}; expected numbers >= 1")
        self.shape, self.channels, self.positions = tuple(shape), shape[0], math.prod(shape[1:])
        self.num_updates = 0
        self.finite = torch.ones((), dtype=torch.bool)
        self.register_buffer("rates", torch.full((self.positions, self.channels), math.nan, dtype=torch.float32))

    def log_prob_unnormalized(self, gates: Tensor) -> Tensor:
        """Returns log p up to log Z, summed over positions, in nats.

        Args:
            gates: Gates `(N, *shape)`, bool or soft in [0, 1]; the gradient goes through them, not through the rates.

        Returns:
            float `(N,)`.
        """
        rows = self.rows(gates).float()
        return (self.f(rows) + self.log_prior(rows)).sum(1)

    def f(self, rows: Tensor, positions: Tensor | None = None) -> Tensor:
        """Returns what the model adds to its prior at each position: float `(N, m, C)` to `(N, m)`; here 0.

        Args:
            rows: Gates at m positions.
            positions: Numbers of these positions, `(m,)`; None for all, in order.
        """
        return rows.new_zeros(rows.shape[:2])

    def log_prior(self, rows: Tensor, positions: Tensor | None = None) -> Tensor:
        """Returns log q at each position, the sum of log(1 - r + sigma (2 r - 1)): `(N, m, C)` to `(N, m)`."""
        r = self._clamped_rates(positions)
        return torch.log(1 - r + rows * (2 * r - 1)).sum(2)

    def surprise(self, rows: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns -log p without log Z, averaged over samples and positions, and the greatest |f|; both scalars."""
        f = self.f(rows, positions)
        return -(f + self.log_prior(rows, positions)).mean(), f.detach().abs().amax()

    def contrastive_step(self, gates: Tensor) -> Tensor:
        """Learns from the gates of a batch, `(N, *shape)`, at all positions: see `fit_rows`."""
        return self.fit_rows(self.rows(gates))

    def fit_rows(self, rows: Tensor, positions: Tensor | None = None) -> Tensor:
        """Adds the gates of a batch to the rates; returns 0, as there is nothing else to learn.

        A batch with a NaN changes no rate.

        Args:
            rows: Gates `(N, m, C)`, bool, or soft and open above .5.
            positions: Numbers of the m positions; None for all, in order.
        """
        self._see(rows, positions)
        self.num_updates += 1
        return rows.new_zeros((), dtype=torch.float32)

    def log_z(self, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns log Z averaged over positions, and its standard error; in nats, here 0 and 0."""
        return self.rates.new_zeros(()), self.rates.new_zeros(())

    def rows(self, gates: Tensor) -> Tensor:
        """Returns gates `(N, *shape)` as `(N, positions, C)`."""
        if gates.shape[1:] != self.shape:
            raise ValueError(f"gates have shape {tuple(gates.shape[1:])}; expected {self.shape}")
        return gates.flatten(2).transpose(1, 2) if gates.dim() > 2 else gates.unsqueeze(1)

    def get_extra_state(self) -> dict[str, Any]:
        """The number of fits, which seeds the random numbers of the next one."""
        return {"num_updates": self.num_updates}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continues after that many fits."""
        self.num_updates = state["num_updates"]

    def _see(self, rows: Tensor, positions: Tensor | None) -> Tensor:
        """Updates the rates with the gates of all processes; returns the weight of this rank's, 1 if all are equal."""
        open_gates = (rows.detach() > 0.5).sum(0)  # integers: the same in one process and in many
        nan = rows.detach().amin().isnan() if rows.is_floating_point() else open_gates.new_zeros(())
        sums = torch.cat([open_gates.flatten(), open_gates.new_tensor([len(rows), 1]), nan.long().view(1)])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        samples, processes, self.finite = sums[-3], sums[-2], sums[-1] == 0
        rates = sums[:-3].view_as(open_gates).float() / samples
        before = self._at(self.rates, positions)
        seen = torch.where(before.isnan(), rates, before.lerp(rates, RATE_MOMENTUM))
        self.rates = self._replaced(self.rates, torch.where(self.finite, seen, before), positions)
        return len(rows) * processes / samples.float()

    def _clamped_rates(self, positions: Tensor | None) -> Tensor:
        return self._at(self.rates, positions).nan_to_num(0.5).clamp(*RATE_BOUNDS)

    @staticmethod
    def _at(of_all: Tensor, positions: Tensor | None) -> Tensor:
        return of_all if positions is None else of_all[positions]

    @staticmethod
    def _replaced(of_all: Tensor, new: Tensor, positions: Tensor | None) -> Tensor:
        return new if positions is None else of_all.index_copy(0, positions, new)


class GateEnergy(GatePrior):
    """The distribution of one layer's gates, learned from batches of them: log p = f + log q - log Z.

    f has linear layers with ReLUs over the channels of each position (1x1 convolutions) and a linear map of all that to
    one number, which starts at 0: at first the model is its prior q.

    The negatives are `chains` persistent samples per position; those at positions that a fit does not look at stand
    still. Every process runs all of them with the same random numbers, drawn from a generator of this model's own: so
    several processes fit the model that one would fit on their joint batch, if the mean of their gradients is taken.
    The state dict has all that a resumed fit needs to be bitwise the same.

    The sampler's `flip` falls where proposals are rejected, and rises again where they are accepted. Where acceptance
    stays below .02 all the same, the model is left to its prior (`collapsed`): its chains would stand still, and f
    would diverge from them.

    Cost of a fit: values and gradients of f on `chains` samples, steps + 1 times, and one forward and backward pass on
    these and the batch. f takes 32 C + 10 000 multiply-adds per position and sample. Memory: its activations, 1 kB per
    position and sample, and the chains, one byte per gate.

    Args:
        shape: Shape of one sample's gates: `(d,)`, or `(C, H, W)` or any other `(C, ...)` with C channels.
        widths: Widths of the layers of f; the paper's authors have six, `PAPER_WIDTHS`.
        chains: Number of negatives per position.
        steps: Number of sampler steps per fit.
        flip: Greatest flip probability, see `discrete_langevin`.
        l2: Weight of the squares of f in the fit. They hold f near 0, where the contrast alone lets it drift, and pull
            the model towards q: .1 costs .08 nats on 8 units where .01 costs .02 (`docs/complexity_loss.md`).
        seed: Seed of the weights and of the chains.

    Attributes:
        rates: See `GatePrior`.
        chains: States of the negatives, bool `(positions, chains, C)`.
        flip: The flip probability now, a scalar.
        energy_gap: Mean f of the gates of the last fit minus that of its negatives, in nats; near 0 once f has learned.
        acceptance: Fraction of the sampler's proposals accepted in the last fit.
        collapsed: Whether the layer was left to its prior.
        finite: Whether the gates of the last fit, of all ranks, were free of NaN.
        num_updates: Number of fits so far.

    Raises:
        ValueError: An option is out of range, or gates have another shape.

    Example:
        >>> energy = GateEnergy((8,))
        >>> gates = torch.rand(16, 8, generator=torch.Generator().manual_seed(0)) < 0.3
        >>> loss = energy.contrastive_step(gates)
        >>> loss.shape, energy.log_prob_unnormalized(gates).shape
        (torch.Size([]), torch.Size([16]))
    """

    chains: Tensor
    flip: Tensor
    mean_acceptance: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        widths: tuple[int, ...] = WIDTHS,
        chains: int = 64,
        steps: int = 5,
        flip: float = 0.5,
        l2: float = 0.01,
        seed: int = 0,
    ) -> None:
        super().__init__(shape)
        for option, number in {"chains": chains, "steps": steps, "widths": min(widths, default=1)}.items():
            if number < 1:
                raise ValueError(f"{option} is {number} in an energy model of gates {shape}; expected a number >= 1")
        if not 0 <= l2 < math.inf:
            raise ValueError(f"l2 is {l2}; expected a number >= 0")
        if not 0 < flip < 1:
            raise ValueError(f"flip is {flip}; expected a probability in (0, 1)")
        self.steps, self.greatest_flip, self.l2, self.seed = steps, flip, l2, seed
        self.collapsed = False
        self.energy_gap = self.acceptance = torch.zeros(())
        self.net, self.readout = _network(self.channels, self.positions, widths, seed)
        self.register_buffer("flip", torch.tensor(flip, dtype=torch.float32))
        self.register_buffer("mean_acceptance", torch.ones((), dtype=torch.float32))
        self.register_buffer("chains", torch.zeros(self.positions, chains, self.channels, dtype=torch.bool))

    def f(self, rows: Tensor, positions: Tensor | None = None) -> Tensor:
        """Returns what the model adds to its prior at each position: float `(N, m, C)` to `(N, m)`."""
        if self.collapsed:
            return super().f(rows, positions)
        value: Tensor = (self.net(rows) * self._at(self.readout, positions)).sum(2)
        return value

    def fit_rows(self, rows: Tensor, positions: Tensor | None = None) -> Tensor:
        """Adds the gates of a batch to the rates, moves the chains, and returns the loss of one contrastive step.

        Its gradient is that of -mean log p(gates), over samples and positions. With `torch.distributed`, gates differ
        between processes and the mean of the gradients over processes is that of the joint batch. A batch with a NaN
        changes no rate, and its gradient is 0.

        Args:
            rows: Gates `(N, m, C)`, bool, or soft and open above .5.
            positions: Numbers of the m positions, the same on all ranks; None for all, in order.

        Returns:
            A scalar.
        """
        rows = rows.detach()
        unseen = self._at(self.rates, positions)[:, :1].isnan()
        weight = self._see(rows, positions)
        self.num_updates += 1
        if self.collapsed:
            return 0 * self.readout.sum()  # so that it still has a gradient
        states = rows > 0.5
        negatives = self._sample(states, positions, unseen)
        f = self.f(torch.cat([states.float(), negatives.float()]), positions)
        of_gates, of_negatives = f[: len(states)], f[len(states) :]
        self.energy_gap = (of_gates.mean() - of_negatives.mean()).detach()
        squares = weight * of_gates.square().mean() + of_negatives.square().mean()
        return torch.where(self.finite, of_negatives.mean() - weight * of_gates.mean() + self.l2 * squares, 0.0)

    def log_z(self, positions: Tensor | None = None, samples: int = 1024) -> tuple[Tensor, Tensor]:
        """Estimates log Z by annealed importance sampling from q.

        Cost: 40 temperatures, each two values and gradients of f on `samples` states in all.

        Args:
            positions: Numbers of the positions; None for all.
            samples: Number of samples, shared among the positions, at least 32 for each.

        Returns:
            log Z averaged over these positions, and its standard error, in nats.
        """
        if self.collapsed:
            return super().log_z(positions)
        odds = torch.logit(self._clamped_rates(positions))
        count = max(samples // len(odds), 32)
        generator = torch.Generator(odds.device).manual_seed(self._noise_seed(1))
        estimates, errors = log_partition(
            lambda s: self.f(s.view(count, *odds.shape), positions).flatten(), odds, count, generator=generator
        )
        return estimates.mean(), errors.square().sum().sqrt() / len(errors)

    def check_collapse(self) -> bool:
        """Leaves the model to its prior where its chains have stopped moving; returns whether it did; a GPU waits."""
        if self.collapsed or self.num_updates < LOOKS or self.mean_acceptance > COLLAPSED:
            return False
        self.collapsed = True
        return True

    def get_extra_state(self) -> dict[str, Any]:
        """The number of fits, which seeds the random numbers of the next one, and whether the chains have stopped."""
        return {**super().get_extra_state(), "collapsed": self.collapsed}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continues after that many fits."""
        super().set_extra_state(state)
        self.collapsed = state["collapsed"]

    def _sample(self, states: Tensor, positions: Tensor | None, unseen: Tensor) -> Tensor:
        """Moves the chains at these positions; returns their states `(chains, m, C)`."""
        generator = torch.Generator(states.device).manual_seed(self._noise_seed(0))
        rates = self._clamped_rates(positions)
        chains = self._at(self.chains, positions).transpose(0, 1)
        chains = torch.where(unseen, uniform(chains.shape, states.device, generator) < rates, chains)
        odds = torch.logit(rates).repeat(len(chains), 1)
        # On binary states log q is also linear in them, and then its gradient tells exactly what a flip changes. As the
        # positions are independent, each has a Metropolis test of its own.
        moved, self.acceptance = discrete_langevin(
            lambda s: self.f(s.view(chains.shape), positions).flatten() + (s * odds).sum(1),
            chains.flatten(0, 1),
            steps=self.steps,
            flip=self.flip,
            generator=generator,
        )
        self.mean_acceptance = self.mean_acceptance.lerp(self.acceptance, 2 / LOOKS)
        # A fixed gain, so that one process and many have the same: e^.2 up or down where all or none are accepted.
        gain = (0.2 * (self.acceptance - TARGET_ACCEPTANCE)).exp()
        self.flip = (self.flip * gain).clamp(SMALLEST_FLIP, self.greatest_flip)
        negatives = moved.view(chains.shape)
        self.chains = self._replaced(self.chains, negatives.transpose(0, 1).contiguous(), positions)
        return negatives

    def _noise_seed(self, purpose: int) -> int:
        """Seed of this fit's random numbers. So no generator state is kept, which would differ between GPU and CPU."""
        return int(np.random.SeedSequence([self.seed, self.num_updates, purpose]).generate_state(1)[0])


def _network(channels: int, positions: int, widths: tuple[int, ...], seed: int) -> tuple[nn.Sequential, nn.Parameter]:
    """f: layers over channels, and the readout at each position; initialised without the global random state."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((channels, *widths)):
        layer: Any = nn.utils.skip_init(nn.Linear, inputs, outputs, dtype=torch.float32)
        nn.init.kaiming_normal_(layer.weight, generator=generator)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.ReLU()]
    # No bias: a constant would be part of log Z.
    return nn.Sequential(*layers), nn.Parameter(torch.zeros(positions, (channels, *widths)[-1], dtype=torch.float32))

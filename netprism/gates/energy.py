"""Energy models of gating states, and samplers of binary states.

The distribution of one layer's gates sigma is modelled as

    log p(sigma) = f(sigma) + log q(sigma) - log Z,    q(sigma) = prod_i p_i^sigma_i (1 - p_i)^(1 - sigma_i),

with p_i the running activation rate of unit or channel i, and f a small network. The gradient of log Z is the mean of
that of f over the model's own samples, the negatives, so f learns from the difference between these and the gates seen.

Sources: Ren et al. 2022, appendix J of the first version, https://arxiv.org/abs/2205.01940. The sampler is that of
H. Sun, H. Dai, B. Dai, H. Zhou, D. Schuurmans, "Discrete Langevin Sampler via Wasserstein Gradient Flow", AISTATS 2023,
https://arxiv.org/abs/2206.14897, with Barker's balancing function.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LogProb = Callable[[Tensor], Tensor]
WIDTHS = (32, 64, 128, 256, 512, 512)  # the six 1x1 convolutions of the paper's authors
RATE_BOUNDS = (0.01, 0.99)  # a gate that was never seen open stays possible: its log q is at least log .01
RATE_MOMENTUM = 0.1


def discrete_langevin(
    log_prob: LogProb,
    states: Tensor,
    *,
    steps: int = 5,
    flip: float = 0.5,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Moves binary states towards samples of a distribution, all units of a sample at once, Metropolis-adjusted.

    Unit i flips with probability `flip * sigmoid((1 - 2 s_i) g_i)`, g the gradient of the log-density at s. Where the
    units are independent and `log_prob` is linear, g is the exact log-odds: every proposal is accepted, at any number
    of units. The better known proposal, sigmoid((1 - 2 s_i) g_i / 2 - 1 / (2 step)), is not exact even there, and
    of its proposals for 3072 units 3 in 1000 are accepted (`tests/gates/test_energy.py` has both).

    Args:
        log_prob: Log-density up to a constant, float `(n, ...)` in [0, 1] to `(n,)`, differentiable. Between 0 and 1
            it should be as linear as possible: the gradient approximates the difference that a flip makes.
        states: Current states of the chains, bool `(n, ...)`.
        steps: Number of proposals. Each costs one value and gradient of `log_prob`; one more is needed at the start.
        flip: Number in (0, 1); where the distribution is flat, half of it is the fraction of units that flip.
        generator: Generator of the random numbers, on the device of `states`.

    Returns:
        The new states, bool `(n, ...)`, and the fraction of proposals accepted, a scalar.

    Example:
        >>> odds = torch.tensor([2.0, -1.0])
        >>> chains = torch.zeros(1000, 2, dtype=torch.bool)
        >>> generator = torch.Generator().manual_seed(0)
        >>> chains, accepted = discrete_langevin(lambda s: s @ odds, chains, steps=20, generator=generator)
        >>> accepted.item(), [round(rate, 1) for rate in chains.float().mean(0).tolist()]  # sigmoid(2), sigmoid(-1)
        (1.0, [0.9, 0.3])
    """
    if not 0 < flip < 1:
        raise ValueError(f"flip is {flip}; expected a probability in (0, 1)")
    value, rate = _value_and_flip_rate(log_prob, states, flip)
    accepted = torch.zeros((), dtype=torch.float32, device=states.device)
    each = (-1, *[1] * (states.dim() - 1))
    for _ in range(steps):
        flips = _uniform(states.shape, states.device, generator) < rate
        proposal = states ^ flips
        new_value, new_rate = _value_and_flip_rate(log_prob, proposal, flip)
        # |stay - rate| is the rate of a unit that flips and 1 - rate of one that stays: a fifth of torch.where's time.
        stay = (~flips).float()
        back_over_forth = (stay - new_rate).abs_().div_((stay - rate).abs_())
        log_ratio = new_value - value + back_over_forth.log_().flatten(1).sum(1)
        accept = _uniform(value.shape, value.device, generator).log() < log_ratio
        value = torch.where(accept, new_value, value)
        rate = rate.lerp_(new_rate, accept.float().view(each))
        states = states ^ (flips & accept.view(each))
        accepted += accept.float().mean()
    return states, accepted / steps


class GateEnergy(nn.Module):
    """The distribution of one layer's gates, learned from batches of them: log p = f + log q - log Z.

    f has linear layers with ReLUs over the channels of each position (1x1 convolutions) and a linear map of all that to
    one number, which starts at 0: at first the model is its prior q. Flat gates are one position of d channels.

    The negatives are `chains` persistent samples. Every process runs all of them with the same random numbers, drawn
    from a generator of this model's own: so several processes fit the model that one would fit on their joint batch,
    if the mean of their gradients is taken. The state dict has all that a resumed fit needs to be bitwise the same.

    Cost of a fit: values and gradients of f on `chains` samples, steps + 1 times, and one forward and backward pass on
    these and the batch. f takes 32 C + 436 000 multiply-adds per position and sample. Memory: its activations,
    6 kB per position and sample, and the chains, one byte per gate.

    Args:
        shape: Shape of one sample's gates: `(d,)`, or `(C, H, W)` or any other `(C, ...)` with C channels.
        widths: Widths of the layers of f.
        prior_only: Whether f = 0, so that the model is q.
        chains: Number of negatives.
        steps: Number of sampler steps per fit.
        flip: See `discrete_langevin`.
        l2: Weight of the squares of f in the fit. They hold f near 0, where the contrast alone lets it drift, and pull
            the model towards q: .1 costs .08 nats on 8 units where .01 costs .02 (`docs/complexity_loss.md`).
        seed: Seed of the weights and of the chains.

    Attributes:
        rates: Running activation rates p, `(C,)`, not clamped.
        chains: States of the negatives, bool `(chains, *shape)`.
        energy_gap: Mean f of the gates of the last fit minus that of its negatives, in nats; near 0 once f has learned.
        acceptance: Fraction of the sampler's proposals accepted in the last fit.
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

    rates: Tensor
    chains: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        widths: tuple[int, ...] = WIDTHS,
        prior_only: bool = False,
        chains: int = 64,
        steps: int = 5,
        flip: float = 0.5,
        l2: float = 0.01,
        seed: int = 0,
    ) -> None:
        super().__init__()
        numbers = {"chains": chains, "steps": steps, "sizes": min(shape, default=0), "widths": min(widths, default=1)}
        for option, number in numbers.items():
            if number < 1:
                raise ValueError(f"{option} is {number} in an energy model of gates {shape}; expected a number >= 1")
        if not 0 <= l2 < math.inf:
            raise ValueError(f"l2 is {l2}; expected a number >= 0")
        self.shape, self.prior_only, self.seed = tuple(shape), prior_only, seed
        self.steps, self.flip, self.l2 = steps, flip, l2
        self.num_updates = 0
        self.energy_gap = self.acceptance = torch.zeros(())
        self.finite = torch.ones((), dtype=torch.bool)
        if not prior_only:
            self.net, self.readout = _network(shape, widths, seed)
        self.register_buffer("rates", torch.full((shape[0],), 0.5, dtype=torch.float32))
        self.register_buffer("chains", torch.zeros(0 if prior_only else chains, *shape, dtype=torch.bool))

    def log_prob_unnormalized(self, gates: Tensor) -> Tensor:
        """Returns log p up to log Z, in nats: f + log q.

        Args:
            gates: Gates `(N, *shape)`, bool or soft in [0, 1]; the gradient goes through them, not through p.

        Returns:
            float `(N,)`.
        """
        self._check_shape(gates)
        gates = gates.float()
        return self.f(gates) + self.log_prior(gates)

    def f(self, gates: Tensor) -> Tensor:
        """Returns what the model adds to its prior: float gates `(N, *shape)` to `(N,)`."""
        if self.prior_only:
            return gates.new_zeros(len(gates))
        channels_last = gates.flatten(2).transpose(1, 2) if gates.dim() > 2 else gates
        value: Tensor = self.readout(self.net(channels_last).flatten(1)).squeeze(1)
        return value

    def log_prior(self, gates: Tensor) -> Tensor:
        """Returns log q of float gates `(N, *shape)`, `(N,)`: log(1 - p + sigma (2 p - 1)), summed over the gates."""
        p = self._clamped_rates()
        return torch.log(1 - p + gates * (2 * p - 1)).flatten(1).sum(1)

    def contrastive_step(self, gates: Tensor) -> Tensor:
        """Adds the gates of a batch to the rates, moves the chains, and returns the loss of one contrastive step.

        Its gradient is that of -mean log p(gates). With `torch.distributed`, gates differ between processes and the
        mean of the gradients over processes is that of the joint batch. A batch with a NaN changes no rate, and its
        gradient is 0.

        Args:
            gates: Gates `(N, *shape)`, bool, or soft and open above .5.

        Returns:
            A scalar.
        """
        self._check_shape(gates)
        weight = self._see(gates)
        self.num_updates += 1
        if self.prior_only:
            return gates.new_zeros((), dtype=torch.float32)
        states = gates.detach() > 0.5
        negatives = self._sample(states)
        f = self.f(torch.cat([states.float(), negatives.float()]))
        of_gates, of_negatives = f[: len(states)], f[len(states) :]
        self.energy_gap = (of_gates.mean() - of_negatives.mean()).detach()
        squares = weight * of_gates.square().mean() + of_negatives.square().mean()
        return torch.where(self.finite, of_negatives.mean() - weight * of_gates.mean() + self.l2 * squares, 0.0)

    def get_extra_state(self) -> dict[str, int]:
        """The number of fits, which seeds the random numbers of the next one."""
        return {"num_updates": self.num_updates}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Continues after that many fits."""
        self.num_updates = state["num_updates"]

    def _see(self, gates: Tensor) -> Tensor:
        """Updates the rates with the gates of all processes; returns the weight of this rank's, 1 if all are equal."""
        states = gates.detach() > 0.5
        open_gates = states.transpose(0, 1).flatten(1).sum(1)  # integers: the same in one process and in many
        nan = gates.detach().amin().isnan() if gates.is_floating_point() else open_gates.new_zeros(())
        sums = torch.cat([open_gates, open_gates.new_tensor([len(gates), 1]), nan.long().view(1)])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        samples, processes, self.finite = sums[-3], sums[-2], sums[-1] == 0
        rates = sums[:-3].float() / (samples * math.prod(self.shape[1:]))
        seen = rates if self.num_updates == 0 else self.rates.lerp(rates, RATE_MOMENTUM)
        self.rates = torch.where(self.finite, seen, self.rates)
        return len(gates) * processes / samples.float()

    def _sample(self, states: Tensor) -> Tensor:
        generator = torch.Generator(states.device).manual_seed(self._noise_seed())
        if self.num_updates == 1:
            start = _uniform(self.chains.shape, states.device, generator)
            self.chains = start < self._clamped_rates()
        odds = torch.logit(self._clamped_rates())
        # On binary states log q is also linear in them, and then its gradient tells exactly what a flip changes.
        self.chains, self.acceptance = discrete_langevin(
            lambda s: self.f(s) + (s * odds).flatten(1).sum(1),
            self.chains,
            steps=self.steps,
            flip=self.flip,
            generator=generator,
        )
        return self.chains

    def _noise_seed(self) -> int:
        """Seed of this fit's random numbers. So no generator state is kept, which would differ between GPU and CPU."""
        return int(np.random.SeedSequence([self.seed, self.num_updates]).generate_state(1)[0])

    def _clamped_rates(self) -> Tensor:
        return self.rates.clamp(*RATE_BOUNDS).view(-1, *[1] * (len(self.shape) - 1))

    def _check_shape(self, gates: Tensor) -> None:
        if gates.shape[1:] != self.shape:
            raise ValueError(f"gates have shape {tuple(gates.shape[1:])}; expected {self.shape}")


def _network(shape: tuple[int, ...], widths: tuple[int, ...], seed: int) -> tuple[nn.Sequential, nn.Linear]:
    """f: layers over channels, and the readout of all positions; initialised without the global random state."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((shape[0], *widths)):
        layer: Any = nn.utils.skip_init(nn.Linear, inputs, outputs, dtype=torch.float32)
        nn.init.kaiming_normal_(layer.weight, generator=generator)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.ReLU()]
    # No bias: a constant would be part of log Z.
    inputs = (shape[0], *widths)[-1] * math.prod(shape[1:])
    readout: Any = nn.utils.skip_init(nn.Linear, inputs, 1, bias=False, dtype=torch.float32)
    nn.init.zeros_(readout.weight)
    return nn.Sequential(*layers), readout


def value_and_slope(log_prob: LogProb, states: Tensor) -> tuple[Tensor, Tensor]:
    """Returns `log_prob(states)` `(n,)` and its gradient with respect to the states `(n, ...)`."""
    with torch.enable_grad():
        leaf = states.detach().float().requires_grad_()
        value = log_prob(leaf)
        (slope,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), slope


def _value_and_flip_rate(log_prob: LogProb, states: Tensor, flip: float) -> tuple[Tensor, Tensor]:
    value, slope = value_and_slope(log_prob, states)
    return value, slope.mul_(1 - 2 * states.float()).sigmoid_().mul_(flip)


def _uniform(shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None) -> Tensor:
    return torch.rand(shape, dtype=torch.float32, device=device, generator=generator)

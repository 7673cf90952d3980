"""Sampling negatives against torchebm: five steps on 128 samples of 3072 gates, in one run on one machine.

    python benchmarks/energy.py

All move the same states under the same density, a fitted energy model with its default layers; best of thirty,
alternating; CPU time (on a GPU: wall time). torchebm moves continuous states; ours are its Langevin steps, and the
Metropolis-adjusted binary sampler that netprism fits with.
"""

import functools
import math
import time

import torch
from torchebm.core import BaseModel
from torchebm.samplers import LangevinDynamics

from netprism.gates.as_published import langevin
from netprism.gates.energy import GateEnergy, discrete_langevin


class Negated(BaseModel):
    """The energy that torchebm asks for."""

    def __init__(self, energy):
        super().__init__()
        self.energy = energy

    def forward(self, x):
        return -self.energy.log_prob_unnormalized(x)


def seconds(function):
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    start = clock()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


def main(samples=128, gates=3072, steps=5, repeats=30):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator(device).manual_seed(0)
    states = torch.rand(samples, gates, device=device, generator=generator) < 0.4
    energy = GateEnergy((gates,)).to(device)
    optimizer = torch.optim.Adam(energy.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        energy.contrastive_step(states).backward()
        optimizer.step()
    # torchebm: x - step_size * slope + sqrt(2 step_size) * noise, so its step is half of ours.
    peer = LangevinDynamics(Negated(energy), step_size=5e-4, clamp=(0.0, 1.0), device=device)
    log_prob = energy.log_prob_unnormalized
    odds = torch.logit(energy.rates[0])
    contestants = {
        "torchebm LangevinDynamics": lambda: peer.sample(x=states.float(), n_steps=steps),
        "netprism langevin": functools.partial(langevin, log_prob, states, steps=steps),
        "netprism discrete_langevin": functools.partial(discrete_langevin, log_prob, states, steps=steps),
        "netprism discrete_langevin, log q linear as in a fit": functools.partial(
            discrete_langevin, lambda s: energy.f(s[:, None])[:, 0] + s @ odds, states, steps=steps
        ),
    }
    best = dict.fromkeys(contestants, math.inf)
    for _ in range(repeats):
        for name, run in contestants.items():
            best[name] = min(best[name], seconds(run))
    theirs = best["torchebm LangevinDynamics"]
    print(
        f"{samples} x {gates}, {steps} steps, {device}, {torch.get_num_threads()} threads, torch {torch.__version__}\n"
    )
    print("| sampler | ms | of torchebm's |\n| --- | --- | --- |")
    for name, value in best.items():
        print(f"| {name} | {1e3 * value:.1f} | {value / theirs:.2f} |")


if __name__ == "__main__":
    main()

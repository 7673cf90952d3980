"""The published procedure: its formulas, and why netprism does not follow it."""

import pytest
import reference.energy as reference
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from netprism.gates import ComplexityLoss
from netprism.gates.as_published import LangevinGateEnergy, langevin, swish_relus


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def inputs():
    return torch.randn(16, 5, generator=generator())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2, self.fc3 = nn.Linear(5, 7), nn.Linear(7, 4), nn.Linear(4, 2)
        self.relu1 = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.fc3(F.relu(self.fc2(self.relu1(self.fc1(x)))))


def test_langevin_is_the_formula_of_the_paper():
    states = torch.full((5, 4), 0.5)
    noise = torch.randn(5, 4, generator=generator())
    moved = langevin(lambda s: 3 * s.sum(1), states, steps=1, step_size=0.01, generator=generator())
    assert torch.allclose(moved, 0.5 + 0.005 * 3 + 0.1 * noise)


def test_langevin_stays_in_the_unit_interval_only_if_clamped():
    def dead(s):
        return torch.log(0.99 - 0.98 * s).sum(1)  # log q of gates never seen open

    states = torch.full((50, 4), 0.98)
    assert langevin(dead, states, generator=generator()).abs().max() <= 1
    assert langevin(dead, states, clamp=False, step_size=0.1, generator=generator()).abs().max() > 1.3


def test_the_clamped_sampler_misses_a_known_distribution_by_nats():
    states = reference.binary_states(8).float()
    couplings = torch.randn(8, 8, generator=generator())
    target = (0.2 * torch.einsum("si,ij,sj->s", states, couplings, states)).softmax(0)
    energy = LangevinGateEnergy((8,), widths=(32, 32))
    optimizer = torch.optim.Adam(energy.parameters(), lr=1e-3)
    for batch in target.multinomial(400 * 128, replacement=True, generator=generator()).view(400, 128):
        optimizer.zero_grad()
        energy.contrastive_step(states[batch]).backward()
        optimizer.step()
    cross_entropy = -(target * energy.log_prob_unnormalized(states).log_softmax(0)).sum()
    assert cross_entropy > torch.special.entr(target).sum() + 1


@pytest.mark.parametrize("in_place", [False, True])
def test_swish_replaces_every_relu_in_the_block(in_place):
    net = Net()
    net.relu1 = nn.ReLU(inplace=in_place)
    loss = ComplexityLoss(net, layers=-1, beta=2.0, widths=(8,))
    with swish_relus(2.0), loss.watch() as gates:
        out = net(inputs())
    first = net.fc1(inputs())
    second = net.fc2(first * torch.sigmoid(2 * first))
    expected = net.fc3(second * torch.sigmoid(2 * second))
    assert torch.allclose(out, expected)
    weights = list(net.parameters())
    got = torch.autograd.grad(out.square().sum() + loss(gates), weights)
    assert all(gradient.isfinite().all() for gradient in got)
    for a, b in zip(torch.autograd.grad(expected.square().sum(), weights[-2:]), got[-2:], strict=True):
        assert torch.allclose(a, b, rtol=1e-4)
    assert torch.equal(net(inputs()), net.fc3(F.relu(net.fc2(F.relu(net.fc1(inputs()))))))  # outside: as it was


def test_swish_refuses_checkpointing():
    net = Net()
    with pytest.raises(ValueError, match="does not work with activation checkpointing"), swish_relus():
        checkpoint(net, inputs().requires_grad_(), use_reentrant=False)

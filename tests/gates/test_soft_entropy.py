import math

import pytest
import torch
from reference import entropy as reference

from netprism.gates.soft_entropy import soft_kernel_entropy


def soft(n=6, positions=3, channels=5, seed=0):
    return torch.rand(n, positions, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("alpha", [0.01, 0.04, 1.0])
def test_is_the_formula(alpha):
    expected = reference.leave_one_out_entropy(soft().flatten(1).numpy(), alpha * 15) * math.log(2)
    assert soft_kernel_entropy(soft(), alpha).item() == pytest.approx(expected, rel=1e-12)


def test_two_samples_on_paper():
    # They differ in one of two gates: D = 1, variance 2 alpha = .5, H = D / (2 * .5) = 1.
    gates = torch.tensor([[0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    assert soft_kernel_entropy(gates, 0.25).item() == pytest.approx(1.0)


def test_its_bounds():
    same, opposite = torch.ones(8, 10), torch.cat([torch.ones(1, 10), torch.zeros(1, 10)])
    assert soft_kernel_entropy(same, 0.04).item() == pytest.approx(0, abs=1e-6)
    assert soft_kernel_entropy(opposite, 0.04).item() == pytest.approx(1 / 0.08)
    alone = soft(n=1).requires_grad_()
    soft_kernel_entropy(alone, 0.04).backward()
    assert not alone.grad.any()


def test_its_gradient():
    assert torch.autograd.gradcheck(lambda g: soft_kernel_entropy(g, 0.04), soft().requires_grad_())


def test_a_sample_is_pulled_to_those_that_are_near():
    rows = [[0.1, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.9], [1.0, 1.0, 1.0, 1.0]]
    gates = torch.tensor(rows, requires_grad=True)
    soft_kernel_entropy(gates, 0.01).backward()
    first = gates.grad[0]
    assert first[0] > 0  # down, to the second sample
    assert first[1:].abs().max() < 1e-6 * first[0]  # and not up, to the others

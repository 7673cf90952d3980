import pytest
import torch
from torch import nn

from netprism.knowledge.lbfgs import LBFGS


def test_it_finds_the_minimum_of_several_parameters_of_several_types():
    x, y = nn.Parameter(torch.tensor([-1.2])), nn.Parameter(torch.ones(1, 1, dtype=torch.float64))
    optimizer = LBFGS([x, y], steps=100)

    def rosenbrock():
        optimizer.zero_grad()
        value = ((1 - x) ** 2 + 100 * (y[0] - x**2) ** 2).sum()
        value.backward()
        return value

    assert optimizer.step(rosenbrock) == pytest.approx(0, abs=1e-8)
    assert x.item() == pytest.approx(1, abs=1e-3)
    assert y.item() == pytest.approx(1, abs=1e-3)


def test_it_ends_where_a_step_gains_nothing_and_after_its_steps():
    x, calls = nn.Parameter(torch.full((9,), 3.0, dtype=torch.float64)), []

    def quartic():
        calls.append(x.detach().clone())
        x.grad = x.detach() ** 3
        return float((x.detach() ** 4).sum() / 4)

    LBFGS([x], tolerance=1e-3).step(quartic)
    assert len(calls) < 20
    before = len(calls)
    LBFGS([x], steps=1).step(quartic)
    assert len(calls) - before <= 3

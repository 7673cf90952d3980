import pytest
import torch

from netprism.knowledge.kappa_table import kappa_and_log_normalizer
from netprism.knowledge.vmf import kappa_of_strength, log_normalizer


@pytest.mark.parametrize(("d", "kappa_max"), [(2, 10.0), (3, 10.0), (3, 1000.0), (64, 1000.0)])
def test_the_table_has_the_values_and_slopes_of_the_functions(d, kappa_max):
    strengths = torch.logspace(-7, 4.9, 3001, dtype=torch.float64).requires_grad_()
    kappa, log_c = kappa_and_log_normalizer(strengths, d, kappa_max)
    exact = kappa_of_strength(strengths, d, kappa_max)
    exact_log_c = log_normalizer(exact, d)
    assert torch.allclose(kappa, exact, rtol=1e-9, atol=0)
    assert torch.allclose(log_c, exact_log_c, rtol=1e-9, atol=1e-9)
    for found, expected in ((kappa, exact), (log_c, exact_log_c)):
        slopes = [torch.autograd.grad(values.sum(), strengths, retain_graph=True)[0] for values in (found, expected)]
        assert torch.allclose(*slopes, rtol=1e-5, atol=1e-6)


def test_no_strength_has_kappa_0_and_the_uniform_density():
    kappa, log_c = kappa_and_log_normalizer(torch.zeros(2, 1), 3, 1000.0)
    assert torch.equal(kappa, torch.zeros(2, 1))
    assert log_c.dtype == torch.float32
    assert log_c.flatten().tolist() == pytest.approx([-2.5310242] * 2)  # the sphere's surface is 4 pi
    assert kappa_and_log_normalizer(torch.tensor([1e9]), 3, 10.0)[0].item() == pytest.approx(10)


def test_the_gradient_is_that_of_the_interpolation():
    strengths = torch.rand(7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 5
    assert torch.autograd.gradcheck(lambda l: kappa_and_log_normalizer(l, 3, 10.0), strengths.requires_grad_())  # noqa: E741

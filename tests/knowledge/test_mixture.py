import math

import numpy as np
import pytest
import torch
from reference import vmf as reference

from netprism.knowledge.mixture import fit_mixture, log_posterior
from netprism.knowledge.vmf import kappa_of_strength


def mixture(d, priors, kappas, count, seed=0):
    """Samples of a mixture with random directions, and these."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.normal(size=(d, d)))[0][: len(priors)]
    counts = (np.array(priors) * count).round().astype(int)
    parts = [reference.sample(mu, k, n, rng) for mu, k, n in zip(directions, kappas, counts, strict=True)]
    return torch.tensor(np.concatenate(parts)), torch.tensor(directions)


@pytest.mark.parametrize(
    ("d", "kappas"), [(3, (40.0, 20.0, 60.0)), (16, (60.0, 40.0, 80.0)), (128, (600.0, 400.0, 500.0))]
)
def test_a_known_mixture_is_recovered(d, kappas):
    priors = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    samples, directions = mixture(d, priors.tolist(), kappas, count=3000)
    before = torch.get_rng_state()
    found = fit_mixture(samples, 3, steps=20, restarts=3)
    assert torch.equal(torch.get_rng_state(), before)
    cosines, matches = (directions @ found.directions.T).max(1)
    assert matches.sort().values.tolist() == [0, 1, 2]
    assert torch.rad2deg(cosines.clamp(max=1).acos()).max() < 2
    assert (found.priors[matches] - priors).abs().max() < 0.02
    assert torch.allclose(found.kappa[matches], torch.tensor(kappas, dtype=torch.float64), rtol=0.1)


def test_one_component_of_equal_samples_stays_finite():
    found = fit_mixture(torch.eye(3)[[0, 0, 0, 1, 1, 1]], 2, steps=10, restarts=1)
    assert torch.isfinite(found.kappa).all()
    assert sorted(found.priors.tolist()) == pytest.approx([0.5, 0.5])
    assert math.isfinite(found.log_likelihood)


def test_posterior_of_two_opposite_categories_is_a_logistic_function():
    g = torch.tensor([[2.0, 0, 0], [0, 3.0, 0], [0, 0, 0]], dtype=torch.float64)
    directions = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]], dtype=torch.float64)
    priors = torch.tensor([0.75, 0.25], dtype=torch.float64)
    found = log_posterior(g, directions, priors, kappa_max=10.0).exp()
    odds = 3 * (2 * kappa_of_strength(torch.tensor(2.0, dtype=torch.float64), 3, 10.0)).exp()
    assert found[0, 0].item() == pytest.approx((odds / (1 + odds)).item())
    assert found[1].tolist() == pytest.approx([0.75, 0.25])  # across both
    assert found[2].tolist() == pytest.approx([0.75, 0.25])  # without strength


def test_posterior_has_gradients_also_without_strength():
    g = torch.tensor([[0.5, 1.0, -1.0], [2.0, 0.1, 0.3]], dtype=torch.float64, requires_grad=True)
    mu = torch.nn.functional.normalize(torch.tensor([[1.0, 2, 3], [-1, 0, 1.0]], dtype=torch.float64)).requires_grad_()
    pi = torch.tensor([0.4, 0.6], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *args: log_posterior(*args, kappa_max=10.0, noise=0.5), (g, mu, pi))
    nothing = torch.zeros(1, 3, requires_grad=True)
    log_posterior(nothing, mu.float(), pi.float(), kappa_max=10.0)[0, 0].backward()
    assert torch.isfinite(nothing.grad).all()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="components is 4; expected 1 to 3"):
        fit_mixture(torch.eye(3), 4)
    with pytest.raises(ValueError, match="expected unit vectors"):
        fit_mixture(torch.ones(3, 3), 2)
    with pytest.raises(ValueError, match="the strength of features has nan in it"):
        log_posterior(torch.full((1, 3), math.nan), torch.eye(3), torch.ones(3) / 3, kappa_max=10.0)

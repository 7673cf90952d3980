import math

import numpy as np
import pytest
import scipy.stats
import torch
from reference import vmf as reference

from netprism.knowledge.special import bessel_ratio, log_bessel, projected_normal_length
from netprism.knowledge.vmf import (
    concentration_from_resultant_length,
    fit_kappa,
    kappa_of_strength,
    log_normalizer,
    mean_resultant_length,
)

DIMENSIONS = (2, 3, 16, 127, 4096)
KAPPAS = (1e-6, 1e-2, 0.7, 10.0, 300.0, 1e4, 1e6)


def float64(*values):
    return torch.tensor(values, dtype=torch.float64)


def relative(found, expected):
    return [abs(float(value / truth - 1)) for value, truth in zip(found.tolist(), expected, strict=True)]


@pytest.mark.parametrize("d", DIMENSIONS)
def test_bessel_functions_agree_with_mpmath_from_d_2_to_4096(d):
    lengths, slopes = bessel_ratio(float64(*KAPPAS), d / 2 - 1)
    assert max(relative(lengths, [reference.mean_resultant_length(k, d) for k in KAPPAS])) < 1e-11
    assert max(relative(slopes, [reference.mean_resultant_slope(k, d) for k in KAPPAS])) < 1e-10
    log_c = log_normalizer(float64(*KAPPAS), d)
    assert max(relative(log_c, [reference.log_normalizer(k, d) for k in KAPPAS])) < 1e-11


@pytest.mark.parametrize("d", DIMENSIONS)
def test_length_of_the_projected_normal_agrees_with_kummers_function(d):
    lengths, slopes = projected_normal_length(float64(*KAPPAS), d)
    assert max(relative(lengths, [reference.projected_normal_length(x, d) for x in KAPPAS])) < 1e-11
    assert max(relative(slopes, [reference.projected_normal_slope(x, d) for x in KAPPAS])) < 1e-10


def test_more_values_than_fit_into_one_chunk_keep_their_places():
    x = torch.linspace(0, 5, 5000, dtype=torch.float64).view(2, 2500)
    lengths, _ = projected_normal_length(x, 3)
    assert torch.equal(lengths[1, 7], projected_normal_length(x[1, 7], 3)[0])
    assert lengths.shape == x.shape


def test_three_dimensions_have_the_formulas_of_the_textbook():
    kappa = float64(0.5, 2, 30)
    assert torch.allclose(mean_resultant_length(kappa, 3), 1 / kappa.tanh() - 1 / kappa, rtol=1e-12)
    assert torch.allclose(log_normalizer(kappa, 3), (kappa / (4 * math.pi * kappa.sinh())).log(), rtol=1e-12)
    x = float64(0.5, 2, 5)
    gauss = math.sqrt(2 / math.pi) * (-x.square() / 2).exp() / x + (1 - x**-2) * torch.erf(x / math.sqrt(2))
    assert torch.allclose(projected_normal_length(x, 3)[0], gauss, rtol=1e-11)


@pytest.mark.parametrize("d", DIMENSIONS)
def test_concentration_inverts_the_mean_resultant_length(d):
    kappa = torch.logspace(-6, 6, 200, dtype=torch.float64)
    assert torch.allclose(
        concentration_from_resultant_length(mean_resultant_length(kappa, d), d), kappa, rtol=1e-8, atol=0
    )


@pytest.mark.parametrize("d", [2, 3, 16, 4096])
def test_gradients_are_those_of_finite_differences(d):
    kappa = float64(0.3, 2, 40).requires_grad_()
    lengths = mean_resultant_length(kappa.detach(), d).requires_grad_()
    strengths = float64(0.2, 1, 7).requires_grad_()
    assert torch.autograd.gradcheck(lambda k: mean_resultant_length(k, d), kappa)
    assert torch.autograd.gradcheck(lambda k: log_normalizer(k, d), kappa)
    assert torch.autograd.gradcheck(
        lambda r: concentration_from_resultant_length(r, d), lengths, rtol=5e-3
    )  # the step of 1e-6 is not small
    assert torch.autograd.gradcheck(lambda x: kappa_of_strength(x, d, 10.0, noise=0.7), strengths)


@pytest.mark.parametrize("kappa_max", [10.0, 1000.0])
@pytest.mark.parametrize("d", [2, 3, 16])
def test_kappa_of_strength_has_the_mean_resultant_length_of_blurred_directions(d, kappa_max):
    rng = np.random.default_rng(0)
    strengths = [0.5, 1.0, 2.0, 4.0, 12.0]
    lengths = mean_resultant_length(kappa_of_strength(float64(*strengths), d, kappa_max), d)
    thrown = [reference.blurred_length(strength, d, kappa_max, 20_000, rng) for strength in strengths]
    assert (lengths - float64(*thrown)).abs().max() < 0.01


@pytest.mark.parametrize(
    ("kappa_max", "expected"), [(10.0, [0.725, 1.489, 3.223, 6.400]), (1000.0, [0.811, 1.713, 4.324, 15.77])]
)
def test_kappa_of_strength_has_the_known_values(kappa_max, expected):
    found = kappa_of_strength(float64(0.5, 1, 2, 4), d=3, kappa_max=kappa_max)
    assert torch.allclose(found, float64(*expected), rtol=4e-4)


def test_kappa_of_strength_goes_from_0_to_kappa_max_and_scales_with_the_noise():
    ends = kappa_of_strength(float64(0, 1e12, math.inf), 3, 10.0)
    assert ends.tolist() == [0, pytest.approx(10), pytest.approx(10)]
    assert (kappa_of_strength(torch.linspace(0, 50, 1000, dtype=torch.float64), 16, 10.0).diff() > 0).all()
    strengths = float64(0.1, 1, 10)
    assert torch.equal(kappa_of_strength(strengths, 3, 10.0, noise=2.0), kappa_of_strength(strengths / 2, 3, 10.0))


def test_gradient_of_kappa_is_finite_at_strength_0():
    strength = float64(0).requires_grad_()
    kappa_of_strength(strength, 3, 10.0).backward()
    # A_3(10) R_3'(0) / A_3'(0), with R_3'(0) = sqrt(2 / pi) 2 / 3 and A_3'(0) = 1 / 3
    assert strength.grad.item() == pytest.approx((1 / math.tanh(10) - 0.1) * 2 * math.sqrt(2 / math.pi))


def test_float32_is_float64_rounded():
    strengths = torch.linspace(0, 20, 50)
    found = kappa_of_strength(strengths, 3, 10.0)
    assert found.dtype == torch.float32
    assert torch.equal(found, kappa_of_strength(strengths.double(), 3, 10.0).float())
    assert log_normalizer(strengths, 4096).dtype == fit_kappa(torch.eye(3)).dtype == torch.float32


@pytest.mark.parametrize(("d", "kappa"), [(3, 5.0), (64, 40.0), (128, 100.0), (1024, 300.0), (4096, 1000.0)])
def test_fit_kappa_finds_the_concentration_within_5_per_cent(d, kappa):
    samples = reference.sample(np.eye(d)[0], kappa, 500, np.random.default_rng(0))
    assert fit_kappa(torch.tensor(samples)).item() == pytest.approx(kappa, rel=0.05)


def test_scipy_fails_silently_from_128_dimensions():
    samples = reference.sample(np.eye(128)[0], 100.0, 1000, np.random.default_rng(0))
    with np.errstate(invalid="ignore"):  # 0 / 0 of two Bessel functions that underflow
        assert scipy.stats.vonmises_fisher.fit(samples)[1] < 1e-7
    assert fit_kappa(torch.tensor(samples)).item() == pytest.approx(100, rel=0.05)


def test_fit_kappa_is_not_misled_by_few_samples_in_many_dimensions():
    samples = torch.tensor(reference.sample(np.eye(4096)[0], 100.0, 500, np.random.default_rng(0)))
    likeliest = concentration_from_resultant_length(samples.mean(0).norm(), 4096).item()
    assert likeliest > 150
    assert fit_kappa(samples).item() == pytest.approx(100, rel=0.05)


def test_fit_kappa_at_its_ends():
    assert fit_kappa(torch.tensor([[0.0, 1.0], [0.0, -1.0]])) == 0
    assert fit_kappa(torch.tensor([[0.0, 1.0], [0.0, 1.0]])) == math.inf
    assert concentration_from_resultant_length(float64(0, 1), 3).tolist() == [0, math.inf]
    assert mean_resultant_length(float64(0, math.inf), 3).tolist() == [0, 1]
    assert log_bessel(float64(0), 0.0).item() == pytest.approx(0, abs=1e-13)  # I_0(0) = 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_resultant_length(float64(-1), 3), "kappa has -1 in it; expected numbers >= 0"),
        (lambda: log_normalizer(float64(math.nan), 3), "kappa has nan in it"),
        (lambda: log_normalizer(float64(math.inf), 3), "kappa is infinite"),
        (lambda: log_normalizer(float64(1), 1), "d is 1; expected at least 2"),
        (lambda: concentration_from_resultant_length(float64(1.1), 3), "length is 1.1"),
        (lambda: kappa_of_strength(float64(1), 3, 0.0), "kappa_max is 0.0"),
        (lambda: kappa_of_strength(float64(1), 3, 1.0, noise=math.nan), "noise is nan"),
        (lambda: kappa_of_strength(float64(math.nan), 3, 1.0), "l has nan in it"),
        (lambda: fit_kappa(torch.eye(3) * 2), "length of a sample is 1.0 away from 1; expected unit vectors"),
        (lambda: fit_kappa(torch.full((2, 3), math.nan)), "samples has nan in it"),
        (lambda: fit_kappa(torch.ones(1, 3)), r"shape of samples is \(1, 3\); expected \(n, d\) with n >= 2"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

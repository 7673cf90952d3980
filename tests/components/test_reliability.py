from functools import reduce

import numpy as np
import pytest
import torch
from reference import reliability as reference

from netprism.components.as_published import cycle_loss
from netprism.components.covariance import Covariance, variance_of
from netprism.components.reliability import (
    best_maps,
    reliable_part,
    reliable_readouts,
    round_trips,
)

SHARED, PRIVATE, CHANNELS, WIDTH = 6, 4, 12, 24


def synthetic(networks=3, samples=4000, seed=0, shared=SHARED):
    """psi, readouts, and the shared and the private part of each f_k = A_k [shared; private_k] = g_k(psi).

    psi is a mixture of everything that there is, with a mean, in more channels than that needs; so is f_k. All inverses
    are singular.
    """
    draws = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draws, dtype=torch.float64)

    dims = shared + networks * PRIVATE
    sources = normal(samples, dims)
    mixture = torch.linalg.qr(normal(WIDTH, dims))[0] * torch.linspace(0.5, 1.5, dims).double()
    readouts, parts = [], []
    for k in range(networks):
        a = normal(CHANNELS, shared + PRIVATE) / shared**0.5 if shared else normal(CHANNELS, PRIVATE)
        own = [*range(shared), *range(shared + k * PRIVATE, shared + (k + 1) * PRIVATE)]
        readouts.append(a @ torch.linalg.pinv(mixture)[own])
        parts.append((sources[:, :shared] @ a[:, :shared].T, sources[:, own[shared:]] @ a[:, shared:].T))
    return sources @ mixture.T + normal(WIDTH), readouts, parts


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([(a - a.mean(0)).flatten(), (b - b.mean(0)).flatten()]))[0, 1])


def variance(features):
    return reference.variance(features.numpy())


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("networks", [2, 3])
def test_what_is_shared_is_kept_and_what_is_private_is_filtered(networks, seed):
    psi, readouts, parts = synthetic(networks, seed=seed)
    for reliable, (shared, private) in zip(reliable_part(psi, readouts), parts, strict=True):
        assert correlation(reliable, shared) > 0.99
        assert abs(correlation(reliable, private)) < 0.1


def test_two_identical_networks_are_all_reliable_to_each_other():
    psi, readouts, _ = synthetic()
    for reliable in reliable_part(psi, [readouts[0], readouts[0]]):
        torch.testing.assert_close(reliable, psi @ readouts[0].T)


def test_a_network_and_its_mixture_are_all_reliable_to_each_other():
    psi, readouts, _ = synthetic()
    mixed = torch.randn(CHANNELS, CHANNELS, dtype=torch.float64) @ readouts[0]
    torch.testing.assert_close(reliable_part(psi, [readouts[0], mixed])[0], psi @ readouts[0].T)


def test_nothing_of_independent_networks_is_reliable():
    psi, readouts, _ = synthetic(shared=0)
    for reliable, readout in zip(reliable_part(psi, readouts), readouts, strict=True):
        assert variance(reliable) / variance(psi @ readout.T) < 2e-3


@pytest.mark.parametrize("refit", [False, True])
def test_equals_the_reference_round_by_round(refit):
    psi, readouts, _ = synthetic(networks=2, samples=300)
    for rounds in (0, 1, 2, 5):
        expected = reference.reliable_parts(psi.numpy(), [readout.numpy() for readout in readouts], rounds, refit)
        for part, wanted in zip(reliable_part(psi, readouts, rounds, refit=refit), expected, strict=True):
            np.testing.assert_allclose(part.numpy(), wanted, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("networks", "holders"), [(2, 1), (3, 1), (3, 2), (4, 3)])
def test_of_what_j_of_k_networks_have_j_over_k_is_left_after_each_round(networks, holders):
    shared, of_some = torch.eye(3).double()[:2]
    readouts = [torch.stack([shared, of_some if k < holders else shared]) for k in range(networks)]
    (trip,) = round_trips(torch.diag(torch.tensor([1.0, 2.0, 3.0])), readouts, rounds=1)
    torch.testing.assert_close(trip, torch.diag(torch.tensor([1.0, holders / networks, 0.0]).double()))


@pytest.mark.parametrize("c", [0.0, 0.5, 0.9, 0.99, 1.0])
def test_what_two_networks_with_one_correlated_direction_keep_with_the_first_maps(c):
    readouts = [torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[c, (1 - c**2) ** 0.5]]).double()]
    chain, _ = reliable_readouts(readouts, round_trips(torch.eye(2), readouts, rounds=10, refit=False))
    for rounds in (0, 1, 10):
        kept = float(chain[rounds].square().sum())
        assert kept == pytest.approx(((1 + c) / 2) ** (2 * rounds + 1) + ((1 - c) / 2) ** (2 * rounds + 1))


@pytest.mark.parametrize(("c", "rho"), [(0.0, None), (0.5, 0.39), (0.9, 0.86), (0.99, 0.99), (1.0, 1.0)])
def test_what_they_keep_when_the_maps_are_fitted_again(c, rho):
    """On the bisector 1 / (1 + x^2) is left, at right angles x^2 / (1 + x^2), with x = tan t/2; then x becomes x^3."""
    readouts = [torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[c, (1 - c**2) ** 0.5]]).double()]
    chain, _ = reliable_readouts(readouts, round_trips(torch.eye(2), readouts, rounds=10))
    x = ((1 - c) / (1 + c)) ** 0.5
    along, across = (1 + c) / 2, (1 - c) / 2
    for measured in chain:
        assert float(measured.square().sum()) == pytest.approx(along + across, rel=1e-6)
        along, across, x = along / (1 + x**2) ** 2, across * (x**2 / (1 + x**2)) ** 2, x**3
    if rho is not None:
        torch.testing.assert_close(chain[4:].square().sum((1, 2)), torch.full((7,), rho).double(), atol=0.005, rtol=0)


def test_a_constant_is_no_evidence_of_agreement_and_is_kept():
    psi, readouts, _ = synthetic(shared=0)
    psi = psi + 100
    for reliable, readout in zip(reliable_part(psi, readouts), readouts, strict=True):
        torch.testing.assert_close(reliable.mean(0), (psi @ readout.T).mean(0))
        assert variance(reliable) / variance(psi @ readout.T) < 2e-3


def test_the_maps_are_the_ones_of_least_error():
    psi, readouts, _ = synthetic()
    psi = psi - psi.mean(0)
    maps = best_maps(psi.T @ psi / len(psi), readouts)
    best = cycle_loss(psi, readouts, [maps])
    for seed in range(3):
        torch.manual_seed(seed)
        others = [h + 0.01 * torch.randn_like(h) for h in maps]
        assert cycle_loss(psi, readouts, [others]) > best
    for readout, h in zip(readouts, maps, strict=True):
        torch.testing.assert_close(h @ readout @ h @ readout, h @ readout, rtol=1e-7, atol=1e-7)


def test_positions_are_samples_of_the_same_channels():
    psi, readouts, _ = synthetic(samples=240)
    maps = psi.unflatten(0, (20, 4, 3)).movedim(-1, 1)
    for with_positions, flat in zip(reliable_part(maps, readouts), reliable_part(psi, readouts), strict=True):
        torch.testing.assert_close(with_positions.movedim(1, -1).flatten(0, 2), flat)


def test_variances_from_the_covariance_are_those_of_the_features():
    """The streamed way gives what `reliable_part` gives, without a further pass over the data."""
    psi, readouts, _ = synthetic(samples=240)
    maps = psi.unflatten(0, (20, 4, 3)).movedim(-1, 1)
    covariance = reduce(Covariance.merge, map(Covariance.of, maps.split(7)))
    chains = reliable_readouts(readouts, round_trips(covariance.pooled, readouts, rounds=4))
    for chain, part in zip(chains, reliable_part(maps, readouts, rounds=4), strict=True):
        streamed = variance_of(covariance.within, (slice(None), chain[4]))
        assert streamed == pytest.approx(reference.variance(part.numpy()), rel=1e-9)


def test_dead_doubled_and_constant_channels_do_no_harm():
    psi, readouts, _ = synthetic()
    clean = reliable_part(psi, readouts)[0]
    dirty = [torch.cat([readout, readout[:1], torch.zeros(1, readout.shape[1])]) for readout in readouts]
    wider = torch.cat([psi, torch.full((len(psi), 2), 3.0)], dim=1)
    dirty = [torch.nn.functional.pad(readout, (0, 2)) for readout in dirty]
    torch.testing.assert_close(reliable_part(wider, dirty)[0][:, :CHANNELS], clean, rtol=1e-6, atol=1e-6)


def test_a_constant_feature_has_a_reliable_part_that_is_that_constant():
    psi = torch.full((5, 3), 2.0)
    parts = reliable_part(psi, [torch.ones(1, 3), torch.ones(2, 3)])
    assert [part.unique().item() for part in parts] == [6.0, 6.0]


def test_float32_gives_the_numbers_of_float64():
    psi, readouts, _ = synthetic()
    exact = reliable_part(psi, readouts)[0]
    assert reliable_part(psi.float(), readouts)[0].dtype == torch.float32
    torch.testing.assert_close(reliable_part(psi.float(), readouts)[0].double(), exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("readouts", "message"),
    [
        ([torch.ones(1, 3)], "^the number of networks is 1; expected 2 or more"),
        ([torch.ones(1, 3), torch.ones(1, 4)], r"^readout 1 has shape \(1, 4\); expected \(c, 3\), psi has 3$"),
        (
            [torch.ones(1, 3), torch.ones(3, 3)],
            "^the number of psi's channels is 3; expected more than the 3 of a target",
        ),
    ],
)
def test_readouts_that_do_not_fit(readouts, message):
    with pytest.raises(ValueError, match=message):
        reliable_part(torch.randn(10, 3), readouts)


def test_bad_input():
    readouts = [torch.ones(1, 3), torch.ones(1, 3)]
    with pytest.raises(ValueError, match="^psi has NaN or infinite entries; expected finite ones$"):
        reliable_part(torch.tensor([[0.0, 1.0, float("nan")]]), readouts)
    with pytest.raises(ValueError, match="^rounds is -1; expected a number >= 0$"):
        reliable_part(torch.randn(10, 3), readouts, rounds=-1)
    with pytest.raises(ValueError, match="^the covariance of psi has NaN or infinite entries; expected finite ones$"):
        best_maps(torch.full((3, 3), float("nan")), readouts)

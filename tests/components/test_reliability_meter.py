import pytest
import torch
from reference.reliability import variance

from netprism.components.regressor import component_ratios
from netprism.components.reliability import reliable_part, round_trips
from netprism.components.reliability_meter import ReliabilityMetric

ORDERS = (4, 7)


def features(samples=30):
    """psi of two orders, Phi of both, f, and two heads an order; maps of 3 x 2 positions."""
    torch.manual_seed(0)
    psi = [torch.randn(samples, 5, 3, 2) for _ in ORDERS]
    heads = [[torch.randn(2, 5), torch.randn(3, 5)] for _ in ORDERS]
    feature = torch.randn(samples, 2, 3, 2)
    phi = [0.5 * feature + 0.1 * torch.randn(samples, 2, 3, 2) for _ in ORDERS]
    return psi, phi, feature, heads


def measured(psi, phi, feature, heads, splits=(30,), **options):
    meter = ReliabilityMetric(ORDERS, heads, **({"rounds": 3} | options))
    for *parts, f in zip(*(tensor.split(splits) for tensor in (*psi, *phi, feature)), strict=True):
        meter.update(parts[:2], parts[2:], f)
    return meter.compute()


@pytest.mark.parametrize("refit", [False, True])
def test_all_numbers_are_variances_of_the_parts_themselves(refit):
    psi, phi, feature, heads = features()
    found = measured(psi, phi, feature, heads, refit=refit)
    kept = [reliable_part(x.double(), h, rounds=3, refit=refit)[0] for x, h in zip(psi, heads, strict=True)]
    rest = [whole.double() - part for whole, part in zip(phi, kept, strict=True)]

    def variances(parts):
        return pytest.approx([variance(part.numpy()) for part in parts])

    def new(parts):
        return [parts[0], parts[1] - parts[0]]

    assert found.samples == 30
    assert [found.feature] == variances([feature])
    assert found.up_to_order == variances(phi)
    assert found.component == variances(new(phi))
    assert found.reliable_up_to_order == variances(kept)
    assert found.reliable_component == variances(new(kept))
    assert found.unreliable_up_to_order == variances(rest)
    assert found.unreliable_component == variances(new(rest))
    for i in range(2):
        assert found.reliability[i] == pytest.approx(variance(kept[i].numpy()) / variance(phi[i].numpy()))
        made = torch.einsum("cd,nd...->nc...", found.weights[i], psi[i].double()) + found.biases[i][:, None, None]
        torch.testing.assert_close(made, kept[i])


def test_rounds_begin_with_the_head_alone_and_fall():
    psi, phi, feature, heads = features()
    found = measured(psi, phi, feature, heads)
    for x, (head, _), whole, by_round in zip(psi, heads, phi, found.by_round, strict=True):
        alone = torch.einsum("cd,nd...->nc...", head, x)
        assert by_round[0] == pytest.approx(variance(alone.numpy()) / variance(whole.numpy()))
        assert sorted(by_round, reverse=True) == list(by_round)


def test_any_split_gives_the_same():
    whole, parts = measured(*features()), measured(*features(), splits=(1, 17, 12))
    assert parts.by_round[0] == pytest.approx(whole.by_round[0], rel=1e-10)
    assert parts.unreliable_component == pytest.approx(whole.unreliable_component, rel=1e-10)


def test_learned_round_trips_take_the_place_of_those_in_closed_form():
    psi, phi, feature, heads = features()
    rows = [x.movedim(1, -1).flatten(0, 2).double() for x in psi]
    trips = [round_trips(torch.cov(x.T, correction=0), h, 3) for x, h in zip(rows, heads, strict=True)]
    found = measured(psi, phi, feature, heads, trips=trips)
    assert found.reliability == pytest.approx(measured(psi, phi, feature, heads).reliability)
    nothing = measured(psi, phi, feature, heads, trips=[torch.zeros(3, 5, 5)] * 2)
    assert nothing.reliability == (0.0, 0.0)
    assert nothing.unreliable_component == pytest.approx(nothing.component)


def test_nothing_is_reliable_of_an_approximation_that_is_constant():
    psi, phi, feature, heads = features()
    found = measured(psi, [torch.ones_like(phi[0]), phi[1]], feature, heads)
    assert found.reliability[0] == 0.0
    assert found.reliability[1] > 0


@pytest.mark.parametrize("constant", [0.0, 1000.1])
def test_a_constant_feature(constant):
    psi, phi, feature, heads = features()
    with pytest.raises(ValueError, match="^the feature is the same for all 30 samples: its variance is 0$"):
        measured(psi, phi, torch.full_like(feature, constant), heads)


def test_a_row_an_order_for_the_regressor():
    found = measured(*features())
    ratios = component_ratios(found.rows, ORDERS)
    expected = [*found.reliable_component, *found.unreliable_component]
    assert list(ratios) == pytest.approx([value / found.feature for value in expected])

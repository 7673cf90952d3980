import pytest
import torch
from reference.reliability import variance

from netprism.components.regressor import component_ratios
from netprism.components.reliability import reliable_part
from netprism.metrics import ReliabilityMetric

ORDERS = (4, 7)


def features(samples=30):
    """psi of two orders, Phi of both, f, and two readouts per order; maps of 3 x 2 positions."""
    torch.manual_seed(0)
    psi = [torch.randn(samples, 5, 3, 2) for _ in ORDERS]
    readouts = [[torch.randn(2, 5), torch.randn(3, 5)] for _ in ORDERS]
    feature = torch.randn(samples, 2, 3, 2)
    phi = [0.5 * feature + 0.1 * torch.randn(samples, 2, 3, 2) for _ in ORDERS]
    return psi, phi, feature, readouts


def measured(psi, phi, feature, readouts, splits=(30,), **options):
    metric = ReliabilityMetric(ORDERS, readouts, **({"rounds": 3} | options))
    for *parts, f in zip(*(tensor.split(splits) for tensor in (*psi, *phi, feature)), strict=True):
        metric.update(parts[:2], parts[2:], f)
    return metric.reliability()


@pytest.mark.parametrize("refit", [False, True])
def test_all_numbers_are_variances_of_the_parts_themselves(refit):
    psi, phi, feature, readouts = features()
    found = measured(psi, phi, feature, readouts, refit=refit)
    kept = [reliable_part(x.double(), h, rounds=3, refit=refit)[0] for x, h in zip(psi, readouts, strict=True)]
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


def test_rounds_begin_with_the_readout_alone_and_fall():
    psi, phi, feature, readouts = features()
    found = measured(psi, phi, feature, readouts)
    for x, (readout, _), whole, by_round in zip(psi, readouts, phi, found.by_round, strict=True):
        alone = torch.einsum("cd,nd...->nc...", readout, x)
        assert by_round[0] == pytest.approx(variance(alone.numpy()) / variance(whole.numpy()))
        assert sorted(by_round, reverse=True) == list(by_round)


def test_any_split_gives_the_same():
    whole, parts = measured(*features()), measured(*features(), splits=(1, 17, 12))
    assert parts.by_round[0] == pytest.approx(whole.by_round[0], rel=1e-10)
    assert parts.unreliable_component == pytest.approx(whole.unreliable_component, rel=1e-10)


def test_nothing_is_reliable_of_an_approximation_that_is_constant():
    psi, phi, feature, readouts = features()
    found = measured(psi, [torch.ones_like(phi[0]), phi[1]], feature, readouts)
    assert found.reliability[0] == 0.0
    assert found.reliability[1] > 0


@pytest.mark.parametrize("constant", [0.0, 1000.1])
def test_a_constant_feature(constant):
    psi, phi, feature, readouts = features()
    with pytest.raises(ValueError, match="^the feature is the same for all 30 samples; expected a variance above 0$"):
        measured(psi, phi, torch.full_like(feature, constant), readouts)


def test_a_row_per_order_for_the_regressor():
    found = measured(*features())
    ratios = component_ratios(found.rows, ORDERS)
    expected = [*found.reliable_component, *found.unreliable_component]
    assert list(ratios) == pytest.approx([value / found.feature for value in expected])
    assert list(ratios) == pytest.approx([*found.reliable_significance, *found.unreliable_significance])


def test_a_metric_computes_a_flat_dict():
    psi, phi, feature, readouts = features()
    metric = ReliabilityMetric(ORDERS, readouts, rounds=3)
    metric.update(psi, phi, feature)
    values, found = metric.compute(), metric.reliability()
    names = ("reliability", "reliable_significance", "unreliable_significance", "unexplained")
    assert set(values) == {f"{name}/{order}" for name in names for order in ORDERS} | {"reliability", "unexplained"}
    assert values["reliability/7"].item() == pytest.approx(found.reliability[1])
    assert values["unexplained"].item() == pytest.approx(sum(found.unexplained) / 2)
    weights = [readout[0] for readout in readouts]
    assert [tuple(w.shape) for w in found.weights] == [tuple(w.shape) for w in weights]

from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from ranks import on_ranks
from reference import components as reference
from torch import nn
from torchmetrics import MetricCollection

from netprism.components.coalitions import coalition_losses, is_affine
from netprism.components.disentangler import DisentanglerNet
from netprism.components.measures import components, overfitting, quantities, significance
from netprism.components.shapley import all_coalitions
from netprism.metrics import ComponentMetric

ORDERS = (4, 7, 13)


def case(count=11, seed=0):
    """A feature (N, 4, 2, 2), three approximations of it, labels, and a head that begins with a ReLU."""
    generator = torch.Generator().manual_seed(seed)
    feature = torch.randn(count, 4, 2, 2, generator=generator, dtype=torch.float64)
    approximations = [
        fraction * feature + (1 - fraction) * torch.randn(feature.shape, generator=generator, dtype=torch.float64)
        for fraction in (0.2, 0.5, 0.9)
    ]
    labels = torch.randint(3, (count,), generator=generator)
    weights = torch.randn(3, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return feature, approximations, labels, lambda f: f.relu().mean((2, 3)) @ weights.T


def measure(feature, approximations, labels=None, head=None, splits=None):
    metric = ComponentMetric(ORDERS[: len(approximations)])
    sizes = splits or [len(feature)]
    batches = zip(feature.split(sizes), *(phi.split(sizes) for phi in approximations), strict=True)
    for i, (f, *phis) in enumerate(batches):
        metric.update(f, phis, head, None if labels is None else labels.split(sizes)[i])
    return metric.components()


def as_lists(tensor):
    return tensor.flatten(1).tolist()


def test_components_add_up():
    feature, approximations, *_ = case()
    parts = components(approximations)
    torch.testing.assert_close(sum(parts) + feature - approximations[-1], feature)
    assert torch.equal(parts[0], approximations[0])


def test_significance_against_the_definition():
    feature, approximations, *_ = case()
    parts = reference.components([as_lists(phi) for phi in approximations])
    expected = [reference.variance(part) / reference.variance(as_lists(feature)) for part in parts]
    assert significance(approximations, feature).tolist() == pytest.approx(expected, rel=1e-12)
    found = measure(feature, approximations)
    assert found.significance == pytest.approx(expected, rel=1e-12)
    rest = reference.difference(as_lists(feature), as_lists(approximations[-1]))
    assert found.rest_significance == pytest.approx(reference.variance(rest) / reference.variance(as_lists(feature)))


def test_on_paper():
    # f = +-2: Var 4. Phi^(4) = 1 + f / 2 explains half: c has Var 1; Phi^(7) = f adds f / 2 - 1.
    f = torch.tensor([[2.0], [-2.0]])
    found = measure(f, [1 + f / 2, f])
    assert found.significance == (0.25, 0.25)
    assert found.unexplained == ((0.0 + 4.0) / 2 / 4, 0.0)
    assert (found.rest_significance, found.feature_variance, found.samples) == (0.0, 4.0, 2)


@pytest.mark.parametrize("splits", [[11], [1] * 11, [4, 7]])
def test_task_measures_against_the_definition(splits):
    feature, approximations, labels, head = case()
    found = measure(feature, approximations, labels, head, splits)
    one = lambda sample: head(torch.tensor(sample, dtype=torch.float64).view(1, 4, 2, 2))[0].tolist()  # noqa: E731
    lists = [as_lists(phi) for phi in approximations]
    expected = reference.contributions(one, as_lists(feature), lists, labels.tolist())
    assert found.contribution == pytest.approx(expected, abs=1e-12)
    for i, phi in enumerate((*approximations, feature)):
        loss = F.cross_entropy(head(phi), labels).item()
        accuracy = (head(phi).argmax(1) == labels).double().mean().item()
        measured = (*found.loss, found.feature_loss)[i], (*found.accuracy, found.feature_accuracy)[i]
        assert measured == pytest.approx((loss, accuracy), rel=1e-12)
    expected = [phi / var**0.5 for phi, var in zip(found.contribution, found.variance, strict=True)]
    assert found.effectiveness == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_efficiency(dtype):
    feature, approximations, labels, _ = case(50)
    network = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).to(dtype)
    feature, approximations = feature.to(dtype), [phi.to(dtype) for phi in approximations]
    found = measure(feature, approximations, labels, network)
    assert sum(found.contribution) == pytest.approx(found.gain, abs=1e-12)
    with torch.no_grad():
        without, whole = (F.cross_entropy(network(f), labels).item() for f in (feature - approximations[-1], feature))
    assert found.gain == pytest.approx(without - whole, abs=1e-6)


def test_a_zero_component_contributes_nothing():
    feature, (one, _, three), labels, head = case()
    found = measure(feature, [one, one, three], labels, head)
    assert (found.significance[1], found.contribution[1], found.effectiveness[1]) == (0, pytest.approx(0, abs=1e-15), 0)
    assert overfitting(found, found) == (0, 0, 0)


def test_overfitting_is_the_shapley_value_of_the_gap():
    feature, approximations, labels, head = case(13)
    train = measure(feature, approximations, labels, head)
    feature, approximations, labels, head = case(9, seed=1)
    test = measure(feature, approximations, labels, head)
    values = overfitting(train, test)
    expected = [(a - b) / a for a, b in zip(train.contribution, test.contribution, strict=True)]
    assert values == pytest.approx(expected)
    with pytest.raises(ValueError, match="contribution is None; expected labels"):
        overfitting(train, measure(feature, approximations))


def test_coalitions_of_a_linear_head_take_a_run_for_each_part():
    feature, approximations, labels, _ = case(20)
    linear = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).double().requires_grad_(False)
    runs = []
    linear.register_forward_hook(lambda *_: runs.append(1))
    parts, rest, members = components(approximations), feature - approximations[-1], all_coalitions(3)
    found = coalition_losses(linear, parts, rest, labels, members)
    assert len(runs) == 4 + 4  # 4 to see that it is affine, then the rest and each part
    expected = [
        F.cross_entropy(linear(rest + sum(p for p, i in zip(parts, inside, strict=True) if i)), labels, reduction="sum")
        for inside in members
    ]
    torch.testing.assert_close(found, torch.stack(expected))
    torch.testing.assert_close(coalition_losses(linear, parts, rest, labels, members, additive=False), found)


def test_a_head_with_a_relu_is_not_affine():
    feature, _, _, head = case(20)
    for features in (feature, feature.abs(), feature[:1], 1e-3 * feature):
        assert not is_affine(head, features)
        assert is_affine(lambda f: 3 * f.mean((2, 3)) + 7, features)
    assert not is_affine(lambda f: f.mean((2, 3)) + 0.01 * f.square().mean((2, 3)), feature)


def test_many_coalitions_are_evaluated_in_chunks(monkeypatch):
    feature, approximations, labels, head = case()
    arguments = components(approximations), feature - approximations[-1], labels, all_coalitions(3)
    whole = coalition_losses(head, *arguments)
    monkeypatch.setattr("netprism.components.coalitions._ELEMENTS", 3 * feature.numel())
    torch.testing.assert_close(coalition_losses(head, *arguments), whole)


@pytest.mark.parametrize("value", [0.0, 0.1, 1234.5])
def test_a_constant_feature_is_refused(value):
    constant = torch.full((40, 3), value)
    with pytest.raises(ValueError, match="the feature is the same for all 40 samples"):
        measure(constant, [torch.randn(40, 3)])
    with pytest.raises(ValueError, match="the feature is the same for all 40 samples"):
        significance([torch.randn(40, 3)], constant)


def test_a_small_variance_around_a_large_mean_is_one():
    feature = 1000 + torch.randn(4000, 1, generator=torch.Generator().manual_seed(0))
    assert measure(feature, [feature]).significance == pytest.approx((1.0,))
    assert measure(feature, [feature]).feature_variance == pytest.approx(feature.double().var(correction=0).item())


def test_bad_input_is_named():
    feature, approximations, labels, head = case()
    with pytest.raises(ValueError, match="not finite; expected no NaN or infinite value"):
        measure(feature * float("nan"), approximations)
    empty = ComponentMetric(ORDERS)
    empty.update(feature[:0], [phi[:0] for phi in approximations])
    with pytest.raises(ValueError, match="the number of samples is 0"):
        empty.compute()
    metric = ComponentMetric(range(4, 43, 3))
    with pytest.raises(ValueError, match="the number of orders is 13; expected up to 12 with labels"):
        metric.update(feature, [feature] * 13, head, labels)


def test_a_metric_computes_a_flat_dict_and_begins_again_after_a_reset(monkeypatch):
    feature, approximations, labels, head = case()
    metric = ComponentMetric(ORDERS)
    metric.update(feature, approximations, head, labels)
    values, found = MetricCollection([metric]).compute(), metric.components()
    assert {key: value.item() for key, value in values.items()} == quantities({"train": found})
    _, axes = metric.plot()
    assert {each.get_title() for each in axes} == {key.partition("/")[0] for key in values if "/" in key}
    metric.reset()
    monkeypatch.setattr("netprism.metrics.components._ELEMENTS", 1)  # a sample at a time
    metric.update(feature, approximations, lambda f: f.mean((2, 3))[:, :3], labels)
    again = metric.components()
    assert again.significance == pytest.approx(found.significance, rel=1e-12)
    assert again.feature_loss != found.feature_loss
    metric.update(feature, approximations)
    assert (metric.components().samples, metric.components().gain) == (22, pytest.approx(again.gain))


def test_names_of_the_quantities():
    feature, approximations, labels, head = case()
    found = measure(feature, approximations, labels, head)
    each = ("significance", "unexplained", "contribution", "effectiveness", "loss", "accuracy")
    whole = {"rest_significance", "gain", "feature_loss", "feature_accuracy"}
    names = {f"{key}/{order}" for key in each for order in ORDERS} | whole
    both = names | {f"test/{name}" for name in names} | {f"overfitting/{order}" for order in ORDERS}
    assert set(quantities({"train": found, "test": found})) == both
    without = measure(feature, approximations)
    names = {f"{key}/{order}" for key in each[:2] for order in ORDERS} | {"rest_significance"}
    assert set(quantities({"train": without})) == names


# rank 0: [ 0 1 2 3 4 5 6 | 7 ], rank 1: [ 8 9 10 ]
def test_two_processes_give_the_numbers_of_one():
    found = on_ranks(2, components_of_rank)
    assert found[0] == found[1], "bitwise"
    feature, approximations, labels, head = case()
    for key, value in asdict(measure(feature, approximations, labels, head)).items():
        assert found[0][key] == pytest.approx(value, rel=1e-12), key


def components_of_rank(rank):
    feature, approximations, labels, head = case()
    metric = ComponentMetric(ORDERS)
    for own in ([slice(0, 7), slice(7, 8)], [slice(8, 11)])[rank]:
        metric.update(feature[own], [phi[own] for phi in approximations], head, labels[own])
    return asdict(metric.components())


def random_net(order):
    """A random net of `order` ReLUs on 16 normal numbers, every layer standardised, and its output too."""
    net = DisentanglerNet((16,), (16,), order, width=1 / 4)
    nn.init.normal_(net.out.weight)
    whole = nn.Sequential(net, nn.BatchNorm1d(16, affine=False))
    for module in whole.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = 1.0
    whole(torch.randn(2000, 16))
    return whole.eval().requires_grad_(False)


def test_a_feature_mixed_of_a_simple_and_a_complex_net():
    # The whole curve, with more steps and orders: docs/studies/mixture.py.
    torch.manual_seed(0)
    simple, complicated = random_net(4), random_net(25)
    found = [order_4_of_a_mixture(simple, complicated, fraction) for fraction in (0.0, 0.5, 1.0)]
    low, above = zip(*((c.significance[0], c.rest_significance) for c in found), strict=True)
    assert low[0] + 0.03 < low[1] < low[2] - 0.03, "order 4 rises with the simple net's fraction"
    assert above[0] - 0.03 > above[1] > above[2] + 0.03, "what is above rises with the other's"


def order_4_of_a_mixture(simple, complicated, fraction):
    torch.manual_seed(1)
    net = DisentanglerNet((16,), (16,), order=4, width=1 / 4)
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    falling = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)

    def feature(x):
        return fraction**0.5 * simple(x) + (1 - fraction) ** 0.5 * complicated(x)

    for _ in range(60):
        x = torch.randn(256, 16)
        optimizer.zero_grad()
        F.mse_loss(net(x), feature(x)).backward()
        optimizer.step()
        falling.step()
    metric = ComponentMetric((4,))
    x = torch.randn(2000, 16)
    metric.update(feature(x), [net.eval()(x)])
    return metric.components()

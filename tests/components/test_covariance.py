from functools import reduce

import pytest
import torch
from reference.reliability import variance

from netprism.components.covariance import Covariance, variance_of

SHAPE = (41, 5, 3, 2)  # samples, channels, height, width


def features(shape=SHAPE, seed=0):
    """Channels that vary together, each position around a mean of its own."""
    torch.manual_seed(seed)
    x = torch.randn(shape, dtype=torch.float64)
    x[:, 1] += x[:, 0]
    return x + 10 * torch.randn(shape[1:], dtype=torch.float64)


def covariance(*batches):
    return reduce(Covariance.merge, map(Covariance.of, batches))


def test_within_is_the_sum_over_positions_of_the_covariance_over_samples():
    x = features()
    expected = sum(torch.cov(x[:, :, i, j].T, correction=0) for i in range(3) for j in range(2))
    torch.testing.assert_close(covariance(x).within, expected)


def test_pooled_is_the_covariance_over_samples_and_positions():
    x = features()
    rows = x.movedim(1, -1).reshape(-1, SHAPE[1])
    torch.testing.assert_close(covariance(x).pooled, torch.cov(rows.T, correction=0))


def test_any_split_gives_the_same():
    x = features()
    split = covariance(x[:1], x[1:30], x[30:])
    assert split.count == 41
    torch.testing.assert_close(split.within, covariance(x).within, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(split.pooled, covariance(x).pooled, rtol=1e-12, atol=1e-12)


def test_a_variance_of_one_around_a_mean_of_1000_in_float32():
    x = (features((20_000, 2)) * 0 + 1000).float() + torch.randn(20_000, 2)
    exact = torch.cov(x.double().T, correction=0)
    torch.testing.assert_close(covariance(*x.split(64)).within, exact, rtol=1e-9, atol=1e-9)


def test_variance_of_a_sum_of_maps():
    x = features()
    a, b = torch.randn(4, 2, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    both = torch.einsum("ac,nchw->nahw", a, x[:, :2]) - torch.einsum("ac,nchw->nahw", b, x[:, 2:])
    measured = variance_of(covariance(x).within, (slice(0, 2), a), (slice(2, 5), -b))
    assert measured == pytest.approx(variance(both.numpy()), rel=1e-12)


def test_the_same_channels_twice_add_up():
    within = covariance(features()).within
    one = torch.ones(1, 2)
    assert variance_of(within, (slice(0, 2), one), (slice(0, 2), one)) == pytest.approx(
        4 * variance_of(within, (slice(0, 2), one))
    )


def test_merging_changes_neither_part():
    x = features()
    left, right = covariance(x[:1]), covariance(x[1:])
    before = right.products.clone()
    left.merge(right)
    assert (left.count, right.count) == (1, 40)
    assert torch.equal(right.products, before)


def test_variance_of_some_channels():
    x = features()
    assert covariance(x).variance(slice(1, 3)) == pytest.approx(variance(x[:, 1:3].numpy()), rel=1e-12)
    with pytest.raises(ValueError, match="the feature is the same for all 50 samples; expected a variance above 0"):
        covariance(torch.full((50, 2), 0.1)).variance(slice(0, 2))
    assert covariance(torch.full((50, 4), 0.1), torch.full((7, 4), 0.1)).within.abs().max() < 1e-30


def test_gradients_are_not_kept():
    assert not covariance(features().requires_grad_()).mean.requires_grad


def test_bad_input():
    with pytest.raises(ValueError, match=r"^samples have shape \(0, 3\); expected"):
        covariance(torch.zeros(0, 3))
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="^the covariance of 1 samples is not finite; "):
            _ = covariance(torch.tensor([[0.0, bad]])).pooled
    with pytest.raises(ValueError, match=r"are \(3, 1\); expected \(2, 1\) as before$"):
        covariance(torch.zeros(2, 2), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"^samples have shape \(4,\)"):
        covariance(torch.zeros(4))

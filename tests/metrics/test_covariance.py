import pytest
import torch
from ranks import on_ranks

from netprism.components.covariance import Covariance
from netprism.metrics import CovarianceMetric


def samples(count=101):
    return torch.randn(count, 3, 2, generator=torch.Generator().manual_seed(0))


def metric_of(*batches):
    metric = CovarianceMetric()
    for batch in batches:
        metric.update(batch)
    return metric


def test_is_the_covariance_of_all_samples():
    expected = Covariance.of(samples())
    found = metric_of(samples()).compute()
    assert found.keys() == {"mean", "within", "pooled"}
    for name, value in found.items():
        torch.testing.assert_close(value, getattr(expected, name), rtol=0, atol=0)


def test_a_mean_far_from_zero():
    # float32 E[x^2] - E[x]^2 gives .967, or what rounding makes of it
    x = 1000 + torch.randn(10_000, 1, generator=torch.Generator().manual_seed(1))
    expected = x.double().var(correction=0).item()
    assert metric_of(*x.split(7)).compute()["within"].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("sizes", [[1] * 101, [0, 50, 0, 51], [100, 1]])
def test_any_split_gives_the_same(sizes):
    whole, parts = metric_of(samples()).compute(), metric_of(*samples().split(sizes)).compute()
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-12, atol=1e-14)


def test_merges_resets_and_moves():
    left, right = metric_of(samples()[:40]), metric_of(samples()[40:])
    left.merge_state(right)
    whole = metric_of(samples()).compute()
    torch.testing.assert_close(left.compute()["within"], whole["within"], rtol=1e-12, atol=0)
    left.reset()
    left.float().update(samples())
    assert torch.equal(left.compute()["within"], whole["within"]), "in float64"


def test_bad_input():
    with pytest.raises(ValueError, match="^the number of samples is 0"):
        metric_of(samples()[:0]).compute()
    with pytest.raises(ValueError, match=r"are \(2, 3\); expected \(3, 2\) as before"):
        metric_of(samples(), samples().mT)


# rank 0: [ 0 1 2 3 4 5 6 | ], rank 1: [ 7 ], rank 2: nothing
def test_several_processes_give_bitwise_the_same():
    found = on_ranks(3, within_of_rank)
    assert found[0] == found[1] == found[2]
    expected = metric_of(samples(8)).compute()["within"]
    torch.testing.assert_close(torch.tensor(found[0], dtype=torch.float64), expected, rtol=1e-12, atol=0)


def within_of_rank(rank):
    own = [slice(0, 7), slice(7, 8), slice(0, 0)][rank]
    metric = metric_of(samples(8)[own]) if rank < 2 else CovarianceMetric()
    metric.to("cpu")  # as Lightning does: the empty state stays float64
    first = metric.compute()["within"]
    metric.update(samples(8)[:0])
    within = metric.compute()["within"].tolist()
    assert torch.equal(first, metric.compute()["within"]), "the rank's own state is back after a gather"
    return within

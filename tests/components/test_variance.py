import multiprocessing
import os
import tempfile

import pytest
import torch
from torch import distributed as dist

from netprism.components.variance import Moments


def samples(count=101, *shape):
    return torch.randn(count, *(shape or (3, 2)), generator=torch.Generator().manual_seed(0))


def moments_of(*batches):
    moments = Moments()
    for batch in batches:
        moments.update(batch)
    return moments


def test_variance_is_the_mean_squared_deviation_summed_over_dimensions():
    x = samples().double()
    expected = (x - x.mean(0)).square().sum(dim=(1, 2)).mean()  # E||x - E x||^2
    assert moments_of(x).total_variance == pytest.approx(expected.item(), rel=1e-14)
    torch.testing.assert_close(moments_of(x).variance, x.var(0, correction=0))


def test_a_mean_far_from_zero():
    # float32 E[x^2] - E[x]^2 gives .967, or what rounding makes of it
    x = 1000 + torch.randn(10_000, 1, generator=torch.Generator().manual_seed(1))
    expected = x.double().var(correction=0).item()
    assert moments_of(*x.split(7)).total_variance == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("sizes", [[101], [1] * 101, [0, 50, 0, 51], [100, 1]])
def test_any_split_gives_the_same(sizes):
    x = samples()
    whole, parts = moments_of(x), moments_of(*x.split(sizes))
    assert parts.count == 101
    torch.testing.assert_close(parts.mean, whole.mean, rtol=0, atol=1e-15)
    assert parts.total_variance == pytest.approx(whole.total_variance, rel=1e-13)


def test_merging_is_seeing_all():
    x = samples()
    left, right = moments_of(x[:40]), moments_of(x[40:])
    left.merge(right)
    left.merge(Moments())
    assert left.total_variance == pytest.approx(moments_of(x).total_variance, rel=1e-13)
    assert right.count == 61, "what was merged is not changed"
    empty = Moments()
    empty.merge(right)
    empty.update(x[:40])
    assert right.total_variance == moments_of(x[40:]).total_variance


def test_constant_samples_have_no_variance():
    assert moments_of(torch.full((50, 4), 0.1), torch.full((7, 4), 0.1)).total_variance == pytest.approx(0, abs=1e-30)
    assert moments_of(torch.ones(1, 4)).total_variance == 0


def test_gradients_are_not_kept():
    x = samples().requires_grad_()
    assert not moments_of(x).mean.requires_grad


def test_what_has_no_variance_is_said():
    with pytest.raises(ValueError, match="no samples"):
        _ = Moments().total_variance
    with pytest.raises(ValueError, match=r"shape \(2, 3\), before \(3, 2\)"):
        moments_of(samples(), samples().mT)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="NaN or infinite"):
            _ = moments_of(samples(), torch.full((1, 3, 2), bad)).total_variance


# rank 0: [ 0 1 2 3 4 5 6 | ], rank 1: [ 7 ], rank 2: nothing
@pytest.mark.skipif(not dist.is_gloo_available(), reason="gloo is not built")
def test_several_processes_give_the_same_to_the_bit():
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        ranks = [context.Process(target=_rank, args=(rank, os.path.join(folder, "store"), queue)) for rank in range(3)]
        for process in ranks:
            process.start()
        found = [queue.get() for _ in ranks]
        for process in ranks:
            process.join(timeout=30)
    assert all(process.exitcode == 0 for process in ranks)
    assert found[0] == found[1] == found[2]
    assert found[0] == (8, pytest.approx(moments_of(samples(8)).total_variance, rel=1e-14))


def _rank(rank, store, queue):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=3)
    own = [slice(0, 7), slice(7, 8), slice(0, 0)][rank]
    moments = moments_of(samples(8)[own]) if rank < 2 else Moments()
    moments.all_reduce()
    queue.put((moments.count, moments.total_variance))
    dist.destroy_process_group()

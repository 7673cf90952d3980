import pickle

import pytest
import torch

from netprism.datamodules.sampling import EpochSampler, ResumableLoader, SeededIndex


def order(sampler, epoch):
    sampler.set_epoch(epoch)
    return list(sampler)


def test_every_epoch_has_its_own_order_of_all_samples():
    orders = [order(EpochSampler(range(100), seed=0), epoch) for epoch in range(5)]
    assert all(sorted(samples) == list(range(100)) for samples in orders)
    assert len({tuple(samples) for samples in orders}) == 5


def test_order_is_a_function_of_seed_and_epoch():
    torch.manual_seed(1)
    first = order(EpochSampler(range(100), seed=3), 2)
    torch.manual_seed(2)
    assert order(EpochSampler(range(100), seed=3), 2) == first
    # a sum of the two would give these the same order
    assert order(EpochSampler(range(100), seed=2), 3) != first
    assert order(EpochSampler(range(100), seed=4), 1) != first


def test_without_set_epoch_each_pass_is_the_next_epoch():
    sampler = EpochSampler(range(20), seed=0)
    assert [list(sampler), list(sampler)] == [order(EpochSampler(range(20), seed=0), epoch) for epoch in (0, 1)]


def test_the_seed_of_a_draw_is_the_same_for_any_number_of_processes():
    def seeds(processes):
        samplers = [EpochSampler(range(7), seed=1, processes=processes, rank=rank) for rank in range(processes)]
        return {int(draw): draw.seed for sampler in samplers for draw in sampler}

    assert seeds(1) == seeds(2) == seeds(3)
    assert len(set(seeds(1).values())) == 7
    assert {draw.seed for draw in order(EpochSampler(range(7), seed=1), 1)}.isdisjoint(seeds(1).values())


def test_a_draw_is_an_index_that_workers_get_whole():
    draw = pickle.loads(pickle.dumps(SeededIndex.of(3, seed=5)))
    assert draw == 3
    assert draw.seed == 5


def loader(**options):
    data = torch.arange(10)
    return ResumableLoader(data, EpochSampler(data, seed=0), **({"batch_size": 3} | options))


def taken(batches):
    return [batch.tolist() for batch in batches]


def taken_in_epoch(epoch):
    other = loader()
    other.sampler.set_epoch(epoch)
    return taken(other)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_goes_on_with_the_next_batch(num_workers):
    whole = taken(loader())
    first, second = loader(), loader(num_workers=num_workers)
    batches = iter(first)
    assert taken([next(batches), next(batches)]) == whole[:2]
    second.load_state_dict(first.state_dict())
    assert len(second) == 4  # Lightning counts from the front
    assert taken(second) == whole[2:]
    assert taken(second) == taken_in_epoch(1)


def test_what_was_left_of_another_epoch_does_not_matter():
    first, second = loader(), loader()
    next(iter(first))
    second.load_state_dict(first.state_dict())
    second.sampler.set_epoch(1)
    assert taken(second) == taken_in_epoch(1)


def test_other_batches_are_told():
    first = loader()
    next(iter(first))
    with pytest.raises(ValueError, match="1 processes with batches of 3, here it is 1 processes with batches of 2"):
        loader(batch_size=2).load_state_dict(first.state_dict())
    loader(batch_size=2).load_state_dict(loader().state_dict())

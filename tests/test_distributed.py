import torch
from ranks import on_ranks

from netprism.distributed import all_gather_object, all_reduce_sum, all_to_all


def test_alone_nothing_is_added_or_gathered():
    values = torch.tensor([1.0, 2.0])
    assert all_reduce_sum(values) is values
    assert all_gather_object({"a": 1}) == [{"a": 1}]


def sum_and_gradient(rank):
    values = torch.tensor([1.0, 10.0]) * (rank + 1)
    values.requires_grad_()
    total = all_reduce_sum(values)
    (total.square().sum() * (rank + 1)).backward()  # the losses of the ranks are 1 and 2 times the square
    return total.detach(), values.grad, all_gather_object(rank)


def test_two_processes_have_the_sum_and_the_gradient_of_the_sum_of_their_losses():
    for total, gradient, ranks in on_ranks(2, sum_and_gradient):
        assert total.tolist() == [3.0, 30.0]
        assert gradient.tolist() == [3 * 2 * 3.0, 3 * 2 * 30.0]
        assert ranks == [0, 1]


def parts_from_each_rank(rank):
    """Rank r sends r numbers to rank 0, r + 1 to rank 1, r + 2 to rank 2."""
    parts = [torch.full((rank + to,), 10 * rank + to) for to in range(3)]
    return [part.tolist() for part in all_to_all(parts, [other + rank for other in range(3)])]


def test_parts_of_different_lengths_go_to_their_ranks():
    of_ranks = on_ranks(3, parts_from_each_rank)
    assert of_ranks == [[[10 * other + rank] * (other + rank) for other in range(3)] for rank in range(3)]

import torch
from ranks import on_ranks

from netprism.distributed import all_gather_object, all_reduce_sum


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

import torch
import torch.multiprocessing as mp
from torch import distributed as dist

from netprism.distributed import all_gather_object, all_reduce_sum


def test_alone_nothing_is_added_or_gathered():
    values = torch.tensor([1.0, 2.0])
    assert all_reduce_sum(values) is values
    assert all_gather_object({"a": 1}) == [{"a": 1}]


def as_rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    values = torch.tensor([1.0, 10.0]) * (rank + 1)
    values.requires_grad_()
    total = all_reduce_sum(values)
    (total.square().sum() * (rank + 1)).backward()  # the losses of the ranks are 1 and 2 times the square
    torch.save((total.detach(), values.grad, all_gather_object(rank)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_have_the_sum_and_the_gradient_of_the_sum_of_their_losses(tmp_path):
    mp.start_processes(as_rank, (str(tmp_path),), nprocs=2, start_method="fork")
    for rank in range(2):
        total, gradient, ranks = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert total.tolist() == [3.0, 30.0]
        assert gradient.tolist() == [3 * 2 * 3.0, 3 * 2 * 30.0]
        assert ranks == [0, 1]

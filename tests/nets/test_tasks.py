import pytest
import torch
from torch import nn

from netprism.nets import conv_task, mlp_task


@pytest.mark.parametrize("relus", [0, 1, 5])
def test_a_task_has_n_relus_and_its_output_keeps_its_size(relus):
    torch.manual_seed(0)
    for task, shape in (
        (conv_task(relus, 1, pool=2), (64, 4, 4)),
        (mlp_task(relus, 64, width=128, out_features=50), (50,)),
    ):
        out = task(torch.randn(30, 1, 8, 8))
        assert out.shape[1:] == shape
        assert sum(isinstance(layer, nn.ReLU) for layer in task) == relus
        assert 0.2 < out.std() < 5
        assert all(name.endswith("weight") for name, _ in task.named_parameters())


def test_bad_input():
    with pytest.raises(ValueError, match="relus is -1; expected a number >= 0"):
        conv_task(-1)
    with pytest.raises(ValueError, match="width is 0; expected a number >= 1"):
        mlp_task(1, 64, width=0)

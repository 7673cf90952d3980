import torch

from netprism.components.disentangler import Disentanglers
from netprism.components.distillation import distil, mimic_losses


def test_distillation_is_adam_on_the_sum_of_the_mean_squared_errors():
    torch.manual_seed(0)
    nets = Disentanglers((1, 8, 8), (2, 4, 4), (4, 7), 1 / 64)
    alone = Disentanglers((1, 8, 8), (2, 4, 4), (4, 7), 1 / 64)
    alone.load_state_dict(nets.state_dict())
    batches = [(torch.randn(5, 1, 8, 8), torch.randn(5, 2, 4, 4)) for _ in range(3)]
    with torch.no_grad():  # as in a callback
        distil(nets, iter(batches), steps=3, learning_rate=0.01, lr_final_factor=0.125)
    optimizer = torch.optim.Adam(alone.train().parameters())
    for i, (x, feature) in enumerate(batches):
        optimizer.param_groups[0]["lr"] = 0.01 * 0.5**i
        losses = [(phi - feature).square().mean() for phi in alone(x)]
        torch.testing.assert_close(mimic_losses(alone(x), feature), losses)
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()
    assert not nets.training
    for a, b in zip(nets.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)

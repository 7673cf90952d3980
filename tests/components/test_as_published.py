import pytest
import torch
from components.test_reliability import CHANNELS, WIDTH, correlation, synthetic, variance

from netprism.components.as_published import cycle_loss, learned_round_trips
from netprism.components.reliability import mean_trip, parts_after, round_trips


def test_trained_maps_filter_alike():
    psi, readouts, parts = synthetic()
    trips = learned_round_trips(psi, readouts, steps=100, learning_rate=0.1, batch_size=256)
    reliable_parts = parts_after(psi, readouts, trips)
    for reliable, (shared, private) in zip(reliable_parts, parts, strict=True):
        assert correlation(reliable, shared) > 0.99
        assert abs(correlation(reliable, private)) < 0.1


def test_training_goes_to_the_maps_of_least_error_of_each_round():
    psi, readouts, _ = synthetic(networks=2)
    psi = psi - psi.mean(0)
    learned = learned_round_trips(psi, readouts, rounds=2, steps=800, learning_rate=0.1, batch_size=512)
    covariance = psi.T @ psi / len(psi)
    for trained, best in zip(learned, round_trips(covariance, readouts, rounds=2, refit=True), strict=True):
        assert variance(psi @ (trained - best).T) < 0.01 * variance(psi @ best.T)
        psi = psi @ best.T


def test_only_the_maps_get_a_gradient():
    psi, readouts, _ = synthetic(samples=50)
    psi.requires_grad_()
    maps = [[torch.randn(WIDTH, CHANNELS).double().mul(0.1).requires_grad_() for _ in readouts] for _ in range(3)]
    cycle_loss(psi, readouts, maps).backward()
    assert psi.grad is None
    assert all(h.grad.abs().sum() > 0 for of_round in maps for h in of_round)


def test_later_rounds_do_not_reach_back_through_earlier_ones():
    """With psi_(r-1) without gradient, two rounds are the loss at psi and the loss at psi_1."""
    psi, readouts, _ = synthetic(samples=50, networks=2)
    maps = [torch.randn(WIDTH, CHANNELS).double().mul(0.1).requires_grad_() for _ in readouts]
    next_psi = psi @ mean_trip(readouts, maps).detach().T
    gradients = torch.autograd.grad(cycle_loss(psi, readouts, [maps, maps]), maps)
    apart = torch.autograd.grad(cycle_loss(psi, readouts, [maps]) + cycle_loss(next_psi, readouts, [maps]), maps)
    for gradient, wanted in zip(gradients, apart, strict=True):
        torch.testing.assert_close(gradient, wanted)


def test_no_round_leaves_the_readouts_themselves():
    psi, readouts, _ = synthetic(samples=50)
    trips = learned_round_trips(psi, readouts, rounds=0)
    for part, readout in zip(parts_after(psi, readouts, trips), readouts, strict=True):
        torch.testing.assert_close(part, psi @ readout.T)


def test_bad_input():
    with pytest.raises(ValueError, match="^rounds is -1; expected a number >= 0$"):
        learned_round_trips(torch.randn(10, 3), [torch.ones(1, 3)] * 2, rounds=-1)
    with pytest.raises(ValueError, match="^the number of networks is 1; expected 2 or more"):
        learned_round_trips(torch.randn(10, 3), [torch.ones(1, 3)])

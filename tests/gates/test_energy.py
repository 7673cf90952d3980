import functools
import itertools

import pytest
import torch
from reference import energy as reference
from torch import nn

from netprism.gates.energy import PAPER_WIDTHS, GateEnergy, GatePrior
from netprism.gates.sampler import discrete_langevin, log_partition

NARROW = (32, 64)  # the toys need no more, and learn in a tenth of the time


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def coupled(s):
    """A log-density of three units, with all orders of interaction and a slope that a flip does not follow."""
    a, b, c = s.unbind(1)
    return 1.5 * a - 0.7 * b + 2 * a * b - 1.2 * b * c + 0.8 * a * b * c + 0.5 * c.square()


def test_the_sampler_takes_every_transition_as_often_as_it_should():
    states = reference.binary_states(3).requires_grad_()
    log_law = coupled(states)
    (slopes,) = torch.autograd.grad(log_law.sum(), states)
    expected = reference.transition_matrix(states.detach(), log_law.detach(), slopes, flip=0.6)
    count = 20_000
    for number, row in enumerate(expected):
        start = states[number].detach().bool().expand(count, 3)
        moved, _ = discrete_langevin(coupled, start, steps=1, flip=0.6, generator=generator(number))
        frequency = (moved.long() @ torch.tensor([4, 2, 1])).bincount(minlength=8) / count
        assert frequency.tolist() == pytest.approx(row.tolist(), abs=0.015)  # four standard errors
    law = log_law.detach().softmax(0)
    assert (law @ expected).tolist() == pytest.approx(law.tolist(), abs=1e-12), "the kernel keeps the law"


def test_the_sampler_reaches_the_law():
    chains = torch.zeros(4000, 3, dtype=torch.bool)
    chains, accepted = discrete_langevin(coupled, chains, steps=30, generator=generator())
    frequency = (chains.long() @ torch.tensor([4, 2, 1])).bincount(minlength=8) / len(chains)
    law = coupled(reference.binary_states(3)).softmax(0)
    assert frequency.tolist() == pytest.approx(law.tolist(), abs=0.03)
    assert 0.5 < accepted < 1


def test_accepts_all_for_many_independent_units_where_halved_slopes_accept_few():
    odds = torch.randn(3072, generator=generator(), dtype=torch.float64)
    start = torch.rand(16, 3072, generator=generator()) < 0.5
    _, accepted = discrete_langevin(lambda s: s @ odds.float(), start, steps=5, generator=generator())
    assert accepted > 0.97  # 1 but for float32
    assert reference.acceptance_of_halved_slopes(odds, 0.5, 200, generator()) < 0.01
    assert reference.acceptance_of_halved_slopes(odds[:8], 0.5, 200, generator()) > 0.8  # where the toys are


def test_a_flip_out_of_range_is_an_error():
    with pytest.raises(ValueError, match="flip is 1.5; expected a probability in"):
        discrete_langevin(coupled, torch.zeros(2, 3, dtype=torch.bool), flip=1.5)


@functools.cache
def toy():
    """Eight units with random couplings: all states, and the probability of each."""
    states = reference.binary_states(8).float()
    couplings = torch.randn(8, 8, generator=generator()) * 0.8
    signs = 2 * states - 1
    logits = (signs @ ((couplings + couplings.T) / 2) * signs).sum(1) + signs @ torch.randn(
        8, generator=generator(1)
    ) / 2
    return states, (0.2 * logits).softmax(0)


def cross_entropy_of_fit(fits, model=GateEnergy, **options):
    states, law = toy()
    energy = model((8,), widths=NARROW, **options)
    optimizer = torch.optim.Adam(energy.parameters(), lr=3e-3)
    draws = law.multinomial(fits * 128, replacement=True, generator=generator()).view(fits, 128)
    for batch in draws:
        optimizer.zero_grad()
        energy.contrastive_step(states[batch]).backward()
        optimizer.step()
    return -(law * energy.log_prob_unnormalized(states).log_softmax(0)).sum().item()


def true_entropy():
    return torch.special.entr(toy()[1].double()).sum().item()


def test_learns_a_known_law():
    assert true_entropy() == pytest.approx(4.572, abs=1e-3)
    assert 4.572 < cross_entropy_of_fit(800) < 4.572 + 0.05  # measured: 4.586


def test_the_prior_alone_does_not():
    states, law = toy()
    energy = GatePrior((8,))
    energy.contrastive_step(states[law.multinomial(20_000, replacement=True, generator=generator())])
    cross_entropy = -(law * energy.log_prob_unnormalized(states).log_softmax(0)).sum().item()
    rates = law @ states
    independent = torch.special.entr(torch.stack([rates, 1 - rates])).sum().item()
    assert cross_entropy == pytest.approx(independent, abs=0.01)
    assert independent > true_entropy() + 0.2


@pytest.mark.parametrize("shape", [(5,), (3, 4, 2)])
def test_log_prob_is_the_formula(shape):
    energy = GateEnergy(shape, widths=(6, 7))
    nn.init.normal_(energy.readout, generator=generator())
    energy.rates = torch.rand(energy.rates.shape, generator=generator()) * 1.2 - 0.1  # some outside .001 to .999
    gates = torch.rand(4, *shape, generator=generator())
    first, second = energy.net[0], energy.net[2]
    maps = gates.view(4, shape[0], -1, 1)
    hidden = nn.functional.conv2d(maps, first.weight[:, :, None, None], first.bias).relu()
    hidden = nn.functional.conv2d(hidden, second.weight[:, :, None, None], second.bias).relu()
    f = hidden.squeeze(3).transpose(1, 2).flatten(1) @ energy.readout.flatten()
    rates = energy.rates.T.flatten().tolist()
    expected = [f[n].item() + reference.log_prior(gates[n].flatten().tolist(), rates) for n in range(4)]
    assert energy.log_prob_unnormalized(gates).tolist() == pytest.approx(expected, rel=1e-4)


def test_starts_at_the_prior_also_with_the_papers_widths():
    energy = GateEnergy((3072,), widths=PAPER_WIDTHS)
    assert [m.out_features for m in energy.net if isinstance(m, nn.Linear)] == [32, 64, 128, 256, 512, 512]
    assert torch.equal(energy.f(torch.ones(2, 1, 3072)), torch.zeros(2, 1))


def test_the_loss_pushes_f_up_at_the_gates_and_down_at_the_samples():
    energy = GateEnergy((8,), widths=NARROW, l2=0.0)
    gates = torch.rand(32, 8, generator=generator()) < 0.5
    loss = energy.contrastive_step(gates)
    negatives = energy.chains.float().transpose(0, 1)
    expected = energy.f(negatives).mean() - energy.f(gates.float().unsqueeze(1)).mean()
    parameters = list(energy.parameters())
    for got, want in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True):
        assert torch.allclose(got, want, atol=1e-6)
    assert energy.energy_gap.item() == pytest.approx(-expected.item(), abs=1e-6)


def test_rates_are_a_running_mean_of_each_gate_at_the_positions_seen():
    energy = GatePrior((2, 2, 2))
    first = torch.tensor([[[[1, 0], [0, 0]], [[1, 1], [1, 1]]]]).bool()
    energy.contrastive_step(first)
    assert energy.rates.tolist() == [[1, 1], [0, 1], [0, 1], [0, 1]]
    energy.fit_rows(~energy.rows(first)[:, [3, 0]], torch.tensor([3, 0]))
    assert energy.rates.flatten().tolist() == pytest.approx([0.9, 0.9, 0, 1, 0, 1, 0.1, 0.9])


def test_dead_gates_and_a_batch_of_one_stay_finite():
    energy = GateEnergy((6,), widths=NARROW)
    optimizer = torch.optim.Adam(energy.parameters(), lr=1e-2)
    gates = torch.tensor([[True, True, True, False, False, False]])
    for _ in range(30):
        optimizer.zero_grad()
        energy.contrastive_step(gates).backward()
        optimizer.step()
    assert energy.rates.tolist() == [[1, 1, 1, 0, 0, 0]]
    log_prob = energy.log_prob_unnormalized(torch.stack([gates[0], ~gates[0]]))
    assert log_prob.isfinite().all()
    assert log_prob[0] > log_prob[1] + 10


def test_a_batch_with_a_nan_teaches_nothing():
    energy = GateEnergy((4,), widths=NARROW)
    energy.contrastive_step(torch.rand(8, 4, generator=generator()))
    rates = energy.rates.clone()
    gates = torch.rand(8, 4, generator=generator())
    gates[3, 2] = float("nan")
    gradients = torch.autograd.grad(energy.contrastive_step(gates), list(energy.parameters()))
    assert torch.equal(energy.rates, rates)
    assert not any(gradient.any() for gradient in gradients)
    assert not energy.finite


def fit(energy, fits, start=0):
    optimizer = torch.optim.SGD(energy.parameters(), lr=1e-2)
    for number in range(start, start + fits):
        optimizer.zero_grad()
        energy.contrastive_step(torch.rand(16, 4, generator=generator(number)) < 0.3).backward()
        optimizer.step()


def test_goes_on_from_its_state_dict_to_the_bit():
    whole, first, second = (GateEnergy((4,), widths=NARROW) for _ in range(3))
    fit(whole, 6)
    fit(first, 3)
    second.load_state_dict(first.state_dict())
    fit(second, 3, start=3)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))
    assert torch.equal(whole.chains, second.chains)
    assert torch.equal(whole.rates, second.rates)
    assert not torch.equal(whole.chains, first.chains), "chains move"


def test_draws_no_global_random_number():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    fit(GateEnergy((4,), widths=NARROW), 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match=r"chains is 0 in an energy model of gates \(3,\); expected a number >= 1"):
        GateEnergy((3,), chains=0)
    with pytest.raises(ValueError, match=r"gates have shape \(4,\); expected \(3,\)"):
        GateEnergy((3,)).contrastive_step(torch.ones(2, 4))


MAP = (5, 3, 4)


def learned_map():
    """An energy model of a map that differs between positions, with f, rates and chains of all."""
    energy = GateEnergy(MAP, widths=NARROW, chains=16)
    rates = torch.rand(MAP, generator=generator(1))
    fit_maps(energy, rates, 5)
    nn.init.normal_(energy.readout, generator=generator(2))
    return energy, (torch.rand(9, *MAP, generator=generator(3)) < rates).float()


def fit_maps(energy, rates, fits):
    optimizer = torch.optim.Adam(energy.parameters(), lr=1e-2)
    for number in range(fits):
        optimizer.zero_grad()
        energy.contrastive_step(torch.rand(32, *MAP, generator=generator(number)) < rates).backward()
        optimizer.step()


def test_the_mean_over_all_draws_of_positions_is_the_mean_over_the_map():
    # All 66 pairs of 12 positions are as likely: their mean is the expectation of a draw, exactly.
    energy, gates = learned_map()
    rows = energy.rows(gates)

    def value_and_gradient(positions):
        leaf = rows.clone().requires_grad_()
        value, _ = energy.surprise(leaf if positions is None else leaf[:, positions], positions)
        return value.item(), torch.autograd.grad(value, leaf)[0]

    def contrast(positions):
        negatives = energy.chains.float().transpose(0, 1)
        own, negatives = (rows, negatives) if positions is None else (rows[:, positions], negatives[:, positions])
        difference = energy.f(negatives, positions).mean() - energy.f(own, positions).mean()
        return [difference.detach(), *torch.autograd.grad(difference, list(energy.parameters()))]

    draws = [torch.tensor(pair) for pair in itertools.combinations(range(12), 2)]
    values, gradients = zip(*map(value_and_gradient, draws), strict=True)
    value, gradient = value_and_gradient(None)
    assert sum(values) / 66 == pytest.approx(value, rel=1e-5)
    assert max(values) > 1.02 * value
    assert torch.allclose(sum(gradients) / 66, gradient, atol=1e-6)
    assert value == pytest.approx(-energy.log_prob_unnormalized(gates).mean().item() / 12, rel=1e-5), "a mean"
    for part, whole in zip(zip(*map(contrast, draws), strict=True), contrast(None), strict=True):
        assert torch.allclose(sum(part) / 66, whole, atol=1e-5)


def test_chains_at_positions_that_were_not_drawn_stand_still():
    energy, gates = learned_map()
    before = energy.chains.clone()
    drawn = torch.tensor([7, 2])
    energy.fit_rows(energy.rows(gates)[:, drawn], drawn)
    moved = (energy.chains != before).flatten(1).any(1)
    assert moved.nonzero().flatten().tolist() == [2, 7]


def test_log_z_is_that_of_all_states():
    states, _ = toy()
    energy = GateEnergy((8,), widths=NARROW)
    fit_states(energy)
    nn.init.normal_(energy.readout, std=0.3, generator=generator(5))
    exact = energy.log_prob_unnormalized(states).logsumexp(0).item()
    estimate, error = energy.log_z(samples=4096)
    assert abs(exact) > 1, "f is not small"
    assert estimate.item() == pytest.approx(exact, abs=max(4 * error.item(), 0.02))
    assert error < 0.1


def fit_states(energy):
    states, law = toy()
    energy.contrastive_step(states[law.multinomial(512, replacement=True, generator=generator())])


def test_log_partition_of_several_distributions():
    odds = torch.randn(3, 4, generator=generator())
    slopes = torch.randn(3, 4, generator=generator(1)).repeat(2000, 1)
    estimate, error = log_partition(lambda s: (s * slopes).sum(1), odds, 2000, generator=generator(2))
    exact = (torch.nn.functional.softplus(odds + slopes[:3]) - torch.nn.functional.softplus(odds)).sum(1)
    assert ((estimate - exact).abs() < 4 * error + 1e-3).all()


def collapsing(model):
    """Gates that vary at first and then close one after the other, as under a strong penalty."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for number in range(300):
        rates = torch.full((128,), 0.5 * (1 - number / 250)).clamp(min=0)
        optimizer.zero_grad()
        model.contrastive_step(torch.rand(64, 128, generator=generator(number)) < rates).backward()
        optimizer.step()
    return model


def test_the_chains_of_a_layer_that_collapses_keep_moving():
    model = collapsing(GateEnergy((128,)))
    assert model.mean_acceptance > 0.3
    assert abs(model.energy_gap) < 1
    assert not model.check_collapse()


def test_a_model_whose_chains_stand_still_is_left_to_its_prior():
    energy, _ = learned_map()
    assert not energy.check_collapse(), "too early to say"
    energy.num_updates, energy.mean_acceptance = 500, torch.tensor(0.001)
    assert energy.check_collapse()
    rows = torch.rand(2, 12, 5, generator=generator())
    assert energy.surprise(rows)[0] == -energy.log_prior(rows).mean()
    assert energy.log_z()[0] == 0
    again = GateEnergy(MAP, widths=NARROW, chains=16)
    again.load_state_dict(energy.state_dict())
    assert again.collapsed

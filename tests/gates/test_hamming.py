import pytest
import torch

from netprism.gates import hamming as module
from netprism.gates.hamming import activation_rates, hamming, hamming_to_independent
from netprism.gates.packing import PackedGates


def random_gates(n, d, rate=0.4, seed=0):
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed)) < rate


@pytest.mark.parametrize(("n", "d"), [(1, 1), (5, 3), (40, 1000), (33, 4097), (601, 20)])
def test_distances_are_the_counts_of_differing_gates(n, d):
    gates = random_gates(n, d)
    distances = hamming(PackedGates.pack(gates))
    assert distances.dtype == torch.int32
    assert torch.equal(distances, torch.stack([(gates != gate).sum(1) for gate in gates]).int())


def test_distances_do_not_depend_on_the_chunks(monkeypatch):
    packed = PackedGates.pack(random_gates(50, 999))
    whole = hamming(packed)
    monkeypatch.setattr(module, "_RUN", 16)
    monkeypatch.setattr(module, "_ROWS", 7)
    assert torch.equal(hamming(packed), whole)


def test_activation_rates_of_more_rows_than_a_byte_counts():
    gates = random_gates(700, 13)
    gates[:, 0], gates[:, 1] = True, False
    assert torch.allclose(activation_rates(PackedGates.pack(gates)), gates.float().mean(0))


def test_independent_gates_have_the_rates_and_no_correlation():
    # Two gates that always agree: d(s_j, s_k) is 0 or 2, but against independent gates 1 comes up half of the time.
    n = 4000
    gates = random_gates(n, 1, rate=0.5).expand(n, 2)
    packed = PackedGates.pack(gates)
    distances = hamming_to_independent(packed, activation_rates(packed), torch.Generator().manual_seed(0))
    share = torch.bincount(distances.flatten()).double() / n**2
    assert torch.allclose(share, torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64), atol=0.02)
    assert (hamming(packed) != 1).all()


def test_gates_that_never_change_stay_so_when_drawn_independently():
    gates = torch.zeros(300, 50, dtype=torch.bool)
    gates[:, 25:] = True
    packed = PackedGates.pack(gates)
    drawn = hamming_to_independent(packed, activation_rates(packed), torch.Generator().manual_seed(0))
    assert (drawn == 0).all()


def test_a_dead_gate_is_never_drawn_open():
    assert module._bernoulli(torch.zeros(200), 2000, torch.Generator().manual_seed(0)).sum() == 0
    assert module._bernoulli(torch.ones(200), 2000, torch.Generator().manual_seed(0)).all()


def test_drawn_rates_are_unbiased():
    rates = torch.tensor([0.001, 0.1, 0.5, 0.73, 0.999])
    n = 200_000
    drawn = module._bernoulli(rates, n, torch.Generator().manual_seed(3)).float().mean(0)
    standard_error = (rates * (1 - rates) / n).sqrt()
    assert ((drawn - rates).abs() < 5 * standard_error).all()

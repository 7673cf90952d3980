import pytest
import torch

from netprism.gates import hamming as module
from netprism.gates.hamming import hamming
from netprism.gates.packing import PackedGates


def random_gates(n, d, rate=0.4, seed=0):
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed)) < rate


@pytest.mark.parametrize("bits", [True, False])
@pytest.mark.parametrize(("n", "d"), [(1, 1), (5, 3), (40, 1000), (33, 4097), (601, 20)])
def test_distances_are_the_counts_of_differing_gates(n, d, bits, monkeypatch):
    monkeypatch.setattr(module, "_counts_bits", lambda _: bits)
    gates = random_gates(n, d)
    distances = hamming(PackedGates.pack(gates))
    assert distances.dtype == torch.int32
    assert torch.equal(distances, torch.stack([(gates != gate).sum(1) for gate in gates]).int())


def test_distances_do_not_depend_on_the_chunks(monkeypatch):
    packed = PackedGates.pack(random_gates(50, 999))
    whole = hamming(packed)
    monkeypatch.setattr(module, "_counts_bits", lambda _: False)
    monkeypatch.setattr(module, "_RUN", 16)
    monkeypatch.setattr(module, "_ROWS", 7)
    assert torch.equal(hamming(packed), whole)


def test_counts_of_more_rows_than_a_byte_counts():
    gates = random_gates(700, 13)
    gates[:, 0], gates[:, 1] = True, False
    assert torch.equal(module.open_counts(PackedGates.pack(gates))[0], gates.sum(0))


@pytest.mark.parametrize("int8", [True, False])
def test_int8_and_float_products_are_equal_also_under_autocast(monkeypatch, int8):
    monkeypatch.setattr(module, "_int8_is_fast", lambda: int8)
    monkeypatch.setattr(module, "_counts_bits", lambda _: False)
    gates, other = random_gates(70, 20_000), random_gates(33, 20_000, seed=1)
    expected = (gates[:, None] != other).sum(2).int()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(hamming(PackedGates.pack(gates)), (gates[:, None] != gates).sum(2).int())
        assert torch.equal(module.distances_to(gates.view(torch.int8), other.view(torch.int8)), expected)


def test_counts_of_classes():
    gates, classes = random_gates(50, 999), torch.arange(50) % 3
    classes[:9] = 1
    expected = torch.stack([gates[classes == m].sum(0) for m in range(3)])
    assert torch.equal(module.open_counts(PackedGates.pack(gates), classes), expected)


def test_a_dead_gate_is_never_drawn_open():
    assert module.bernoulli(torch.zeros(200), 2000, torch.Generator().manual_seed(0)).sum() == 0
    assert module.bernoulli(torch.ones(200), 2000, torch.Generator().manual_seed(0)).all()


def test_drawn_rates_are_unbiased():
    rates = torch.tensor([0.001, 0.1, 0.5, 0.73, 0.999])
    n = 200_000
    drawn = module.bernoulli(rates, n, torch.Generator().manual_seed(3)).float().mean(0)
    standard_error = (rates * (1 - rates) / n).sqrt()
    assert ((drawn - rates).abs() < 5 * standard_error).all()

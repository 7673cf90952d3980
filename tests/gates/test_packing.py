import pytest
import torch

from netprism.gates.packing import PackedGates, some_positions


@pytest.mark.parametrize("shape", [(1,), (7,), (8,), (9,), (3, 5, 5), (2, 8, 8)])
@pytest.mark.parametrize("n", [1, 5])
def test_unpacking_gives_the_gates_back(n, shape):
    gates = torch.rand(n, *shape, generator=torch.Generator().manual_seed(0)) < 0.4
    packed = PackedGates.pack(gates)
    assert packed.bits.dtype == torch.uint8
    assert packed.bits.shape == (n, -(-gates[0].numel() // 8))
    assert packed.shape == shape
    assert len(packed) == n
    assert torch.equal(packed.unpack(), gates)


def test_one_gate_a_sample_needs_no_gate_dimension():
    gates = torch.tensor([True, False, True])
    assert torch.equal(PackedGates.pack(gates).unpack(), gates)


def test_the_layout_is_the_documented_one():
    # 10 gates, 2 bytes: gate i is bit i // 2 of byte i % 2
    for i in range(10):
        gates = torch.zeros(1, 10, dtype=torch.bool)
        gates[0, i] = True
        assert PackedGates.pack(gates).bits[0, i % 2] == 1 << (i // 2)


@pytest.mark.parametrize("max_gates", [2, 5, 10, 23, 1000])
def test_runs_cover_every_gate_once_in_its_place(max_gates):
    gates = torch.rand(4, 37, generator=torch.Generator().manual_seed(1)) < 0.5
    packed = PackedGates.pack(gates)
    rebuilt = torch.full((4, 40), -1, dtype=torch.int8)
    for place, run in packed.runs(max_gates):
        assert run.shape[1] <= max_gates
        assert (rebuilt[:, place] == -1).all()
        rebuilt[:, place] = run
    assert torch.equal(rebuilt[:, :37].bool(), gates)
    assert (rebuilt[:, 37:] == 0).all()


def test_every_position_is_as_likely_as_any_other_one():
    counts = torch.stack([some_positions(10, 4, seed).bincount(minlength=10) for seed in range(2000)]).double()
    # 2.5 positions in a stretch: each is taken with probability .4, those that two stretches share too
    assert (counts.mean(0) - 0.4).abs().max() < 4 * (0.4 * 0.6 / 2000) ** 0.5


def test_concatenation_joins_samples():
    gates = torch.rand(6, 3, 4) < 0.5
    joined = PackedGates.concatenate([PackedGates.pack(gates[:2]), PackedGates.pack(gates[2:])])
    assert torch.equal(joined.unpack(), gates)


def test_other_types_are_refused_by_name():
    with pytest.raises(TypeError, match=r"gates are torch\.float32; expected torch\.bool"):
        PackedGates.pack(torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"gates have shape \(\); expected"):
        PackedGates.pack(torch.tensor(True))

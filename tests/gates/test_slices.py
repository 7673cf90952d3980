import pytest
import torch

from netprism.gates.packing import PackedGates
from netprism.gates.slices import GateSlices, deal

SIZES = {"a": 75, "b": 8, "c": 401}  # 10, 1 and 51 bytes


@pytest.fixture
def gates():
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(7, d, generator=generator) < 0.5 for name, d in SIZES.items()}


@pytest.mark.parametrize("ranks", [1, 2, 5, 62, 100])
def test_each_byte_of_a_sample_is_dealt_once_and_as_many_to_each_rank(gates, ranks):
    columns = deal({name: PackedGates.pack(layer) for name, layer in gates.items()}, ranks)
    owners = {name: [0] * width for name, width in (("a", 10), ("b", 1), ("c", 51))}
    for of_rank in columns:
        for name, part in of_rank.items():
            for byte in range(part.start, part.stop):
                owners[name][byte] += 1
    assert all(times == 1 for of_layer in owners.values() for times in of_layer)
    widths = [sum(part.stop - part.start for part in of_rank.values()) for of_rank in columns]
    assert max(widths) - min(widths) <= 1


def test_the_slices_of_all_ranks_are_the_gates(gates):
    packed = {name: PackedGates.pack(layer) for name, layer in gates.items()}
    bits = torch.cat([layer.bits for layer in packed.values()], dim=1)
    columns, start, planes = deal(packed, 3), 0, {name: [] for name in gates}
    for rank in range(3):
        stop = start + sum(part.stop - part.start for part in columns[rank].values())
        own = GateSlices.of_columns([bits[:4, start:stop], bits[4:, start:stop]], packed, [columns[rank]])
        assert own.samples == 7
        for name in own.parts:
            planes[name].append(own.gates(name).unpack().view(7, 8, -1))
        start = stop
    for name, layer in gates.items():
        assert torch.equal(torch.cat(planes[name], dim=2).flatten(1)[:, : SIZES[name]], layer)

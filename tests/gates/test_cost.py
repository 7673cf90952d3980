"""What many samples cost is said before it begins, and refused where there is no room for it."""

from itertools import pairwise

import pytest
import torch

from netprism.gates import cost, transformation_complexity
from netprism.gates.hamming import block_rows

GATES = {"relu": torch.rand(64, 40, generator=torch.Generator().manual_seed(0)) > 0.5}


def test_few_samples_are_measured_without_a_word(caplog):
    transformation_complexity(GATES)
    assert not caplog.records


def test_many_are_announced_with_memory_and_time(monkeypatch, caplog):
    monkeypatch.setattr(cost, "MANY", 64)
    transformation_complexity(GATES)
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith("distances of 64 samples need 0.0 GB and, of 40 gates, about ")


def test_more_than_there_is_room_for_is_refused_before_it_begins(monkeypatch):
    monkeypatch.setattr(cost, "MANY", 64)
    monkeypatch.setattr(cost, "free_bytes", lambda: 1_000_000)
    with pytest.raises(ValueError, match=r"^distances of 64 samples need 0.0 GB and 0.0 GB are free; expected fewer"):
        transformation_complexity(GATES)


def test_free_memory_is_that_of_this_machine():
    free = cost.free_bytes()
    assert free is None or 1e6 < free < 1e14


def test_the_memory_of_many_samples():
    assert cost.needed_bytes(20_000, layers=19) == pytest.approx(2.27e9, rel=0.01)
    assert cost.needed_bytes(20_000, layers=19, ranks=4) == pytest.approx(2.41e9, rel=0.01)


def test_the_sums_of_all_blocks_grow_with_the_samples_and_not_with_their_pairs():
    assert [len(block_rows(n)) for n in (1, 128, 129, 8192, 20_000, 50_000)] == [1, 1, 2, 64, 64, 64]
    for n in (129, 8193, 20_001):
        blocks = block_rows(n)
        assert (blocks[0].start, blocks[-1].stop) == (0, n)
        assert all(one.stop == other.start for one, other in pairwise(blocks))

from functools import partial

import pytest
import torch
from ranks import on_ranks
from torchmetrics import MetricCollection

from netprism.distributed import RemoteRankError, all_gather_object
from netprism.gates import pair_sums
from netprism.gates.entropy import transformation_complexity
from netprism.gates.packing import PackedGates
from netprism.metrics import TransformationComplexity


@pytest.fixture
def samples():
    generator = torch.Generator().manual_seed(0)
    gates = {
        "conv": torch.rand(30, 3, 5, 5, generator=generator) < 0.3,
        "linear": torch.rand(30, 13, generator=generator) < 0.6,
    }
    return gates, torch.arange(30) % 4


def rows(gates, index):
    return {name: layer[index] for name, layer in gates.items()}


@pytest.mark.parametrize("packed", [False, True])
def test_batches_give_what_the_function_gives(samples, packed):
    gates, labels = samples
    metric = TransformationComplexity()
    for index in torch.arange(30).split(7):
        batch = rows(gates, index)
        if packed:
            batch = {name: PackedGates.pack(layer) for name, layer in batch.items()}
        metric.update(batch, labels[index])
    found, expected = metric.compute(), transformation_complexity(gates, labels)
    assert {name: value.item() for name, value in found.items()} == expected.quantities()
    result = metric.complexity()
    assert result.entropy == expected.entropy
    assert result.suffix_entropy == expected.suffix_entropy
    assert result.class_information == expected.class_information
    assert result.total_correlation == expected.total_correlation
    assert result.joint_entropy == expected.joint_entropy
    assert all(torch.equal(result.open_on[name], gates) for name, gates in expected.open_on.items())


def test_options_reach_the_function(samples):
    gates, labels = samples
    metric = TransformationComplexity("variance", alpha=0.2, total_correlation=False)
    metric.update(gates, labels)
    expected = transformation_complexity(gates, labels, bandwidth="variance", alpha=0.2, total_correlation=False)
    assert metric.compute()["entropy"] == expected.joint_entropy
    assert "total_correlation" not in metric.compute()


def test_without_labels(samples):
    metric = TransformationComplexity()
    metric.update(samples[0])
    assert "class_information" not in metric.compute()


def test_reset_forgets(samples):
    gates, labels = samples
    metric = TransformationComplexity()
    metric.update(gates, labels)
    metric.reset()
    metric.update(rows(gates, slice(0, 10)), labels[:10])
    assert metric.compute()["entropy"] == transformation_complexity(rows(gates, slice(0, 10))).joint_entropy


def test_after_a_reset_other_layers_may_come(samples):
    metric = TransformationComplexity()
    metric.update(samples[0])
    metric.reset()
    metric.update({"other": torch.eye(3, dtype=torch.bool)}, [0, 1, 1])
    assert "entropy/other" in metric.compute()
    assert list(metric.complexity().entropy) == ["other"]


def test_state_is_one_bit_a_gate(samples):
    metric = TransformationComplexity()
    metric.update(samples[0])
    assert sum(part.numel() for part in metric.bits) == 30 * (10 + 2)  # ceil(75 / 8) and ceil(13 / 8) bytes


def test_a_process_group_is_refused():
    with pytest.raises(ValueError, match="process_group is given; expected None"):
        TransformationComplexity(process_group=0)


def test_another_shape_is_named(samples):
    gates, _ = samples
    metric = TransformationComplexity()
    metric.update(gates)
    with pytest.raises(ValueError, match=r"layer 'linear' has gates of shape \(12,\); expected \(13,\)"):
        metric.update(gates | {"linear": gates["linear"][:, :12]})
    with pytest.raises(ValueError, match=r"labels have shape \(3,\); expected \(30,\)"):
        metric.update(gates, torch.zeros(3, dtype=torch.int64))


def complexity_of_rank(rank, gates, labels, options):
    """Rank 0 has 21 samples in 6 batches, rank 1 has 9 in 2, rank 2 has none."""
    metric = TransformationComplexity(**options)
    for index in (torch.arange(21).split(4), torch.arange(21, 30).split(7), [torch.arange(0)])[rank]:
        metric.update(rows(gates, index), labels[index])
    kept, looked_at, blocks = list(metric.bits), [], pair_sums.distance_blocks
    pair_sums.distance_blocks = lambda layer, own: looked_at.append((min(own), *layer.bits.shape)) or blocks(layer, own)
    result = metric.complexity()
    assert all(now is before for now, before in zip(metric.bits, kept, strict=True))  # as before the exchange
    every = [[call for call in of_rank if call[0] == 0] for of_rank in all_gather_object(looked_at)]  # of block 0
    assert sum(width for of_rank in every for *_, width in of_rank) == 10 + 2  # each byte of a sample on one rank,
    assert all(sum(width for *_, width in of_rank) == 4 for of_rank in every)  # a third of them on each
    assert all(samples == 30 for of_rank in every for *_, samples, _ in of_rank)
    return scalars(result)


def scalars(result):
    return [*result.quantities().items(), *(gates.tolist() for gates in result.open_on.values())]


@pytest.mark.parametrize(
    ("rows", "distances", "options"),
    [
        (7, 2**29, {}),  # five blocks for three ranks
        (7, 800, {"bandwidth": "variance", "alpha": 0.3}),  # one or two at a time
        (128, 1, {"alpha": 0.004}),  # one block; narrow kernels, so that independent gates are drawn
    ],
)
def test_uneven_ranks_share_the_gates_and_agree_with_one_process(samples, monkeypatch, rows, distances, options):
    gates, labels = samples  # in the order of ranks, so that sums are bitwise equal
    monkeypatch.setattr("netprism.gates.slices._MESSAGE", 30)  # two samples in a message
    monkeypatch.setattr("netprism.gates.hamming._ROWS", rows)
    monkeypatch.setattr("netprism.gates.pair_sums.DISTANCES", distances)
    expected = scalars(transformation_complexity(gates, labels, **options))
    for found in on_ranks(3, partial(complexity_of_rank, gates=gates, labels=labels, options=options)):
        assert found == expected


def other_layers(rank):
    metric = TransformationComplexity()
    metric.update({"relu": torch.eye(3 + rank, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"layer 'relu' of process 1 has gates of shape \(4,\); expected .* \(3,\)"):
        metric.compute()


def test_a_rank_with_other_layers_is_named_on_all_of_them():
    on_ranks(2, other_layers)


def failing(rank):
    metric = TransformationComplexity()
    metric.update({"relu": torch.eye(3, dtype=torch.bool)})
    if rank == 1:
        pair_sums.distance_blocks = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError if rank == 1 else RemoteRankError, match="division by zero"):
        metric.compute()


def test_a_rank_that_fails_between_two_messages_ends_all():
    on_ranks(2, failing)


def test_a_metric_without_samples_says_so():
    with pytest.warns(UserWarning, match="before"), pytest.raises(ValueError, match="expected a call of update"):
        TransformationComplexity().compute()


def test_it_works_in_a_collection_epoch_after_epoch_and_takes_the_options_of_a_metric(samples):
    gates, labels = samples
    narrow, wide = TransformationComplexity(), TransformationComplexity(alpha=0.2, sync_on_compute=False)
    both = MetricCollection({"narrow": narrow, "wide": wide})  # one compute group: the second is not updated again
    for _ in range(2):
        for index in torch.arange(30).split(7):
            both.update(rows(gates, index), labels[index])
        found = both.compute()
        for name, alpha in (("narrow", None), ("wide", 0.2)):
            expected = transformation_complexity(gates, labels, alpha=alpha).quantities()
            assert {key: found[f"{name}_{key}"].item() for key in expected} == expected
        both.reset()
    assert not wide.sync_on_compute


def test_other_layers_after_a_reset(samples):
    metric = TransformationComplexity()
    metric.update(*samples)
    metric.reset()
    other = {"relu": torch.eye(4) > 0}
    metric.update(other)
    assert metric.complexity().joint_entropy == transformation_complexity(other).joint_entropy


def test_the_default_bandwidth_follows_what_precedes_the_gates(samples):
    gates, _ = samples
    tokens = PackedGates(PackedGates.pack(gates["conv"]).bits, (3, 5, 5), "linear")
    metric = TransformationComplexity()
    metric.update({"tokens": tokens})
    expected = transformation_complexity({"tokens": tokens}, alpha=0.01).joint_entropy
    assert metric.compute()["entropy"] == expected == transformation_complexity({"tokens": tokens}).joint_entropy

from functools import partial

import pytest
import torch
from ranks import on_ranks
from torchmetrics import MetricCollection

from netprism.distributed import all_gather_object
from netprism.gates import pair_sums
from netprism.gates.entropy import transformation_complexity
from netprism.gates.hamming import block_rows
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
    assert all(torch.equal(result.activation_rates[name], rate) for name, rate in expected.activation_rates.items())


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


def test_another_shape_is_named(samples):
    gates, _ = samples
    metric = TransformationComplexity()
    metric.update(gates)
    with pytest.raises(ValueError, match=r"layer 'linear' has gates of shape \(12,\); expected \(13,\)"):
        metric.update(gates | {"linear": gates["linear"][:, :12]})
    with pytest.raises(ValueError, match=r"labels have shape \(3,\); expected \(30,\)"):
        metric.update(gates, torch.zeros(3, dtype=torch.int64))


def complexity_of_rank(rank, gates, labels):
    """Rank 0 has 21 samples in 6 batches, rank 1 has 9 in 2, rank 2 has none."""
    metric = TransformationComplexity()
    for index in (torch.arange(21).split(4), torch.arange(21, 30).split(7), [torch.arange(0)])[rank]:
        metric.update(rows(gates, index), labels[index])
    looked_at = []
    blocks = pair_sums.distance_blocks
    pair_sums.distance_blocks = lambda layer, own: looked_at.append(len(own)) or blocks(layer, own)
    result = scalars(metric.complexity())
    every = all_gather_object(looked_at[0])
    assert sum(every) == len(block_rows(30))
    assert max(every) - min(every) <= 1
    return result


def scalars(result):
    joint = [result.joint_entropy, result.joint_class_information, result.joint_total_correlation]
    return [*joint, *result.entropy.values(), *result.total_correlation.values()]


@pytest.mark.parametrize("rows", [7, 128])
def test_uneven_ranks_share_the_pairs_and_agree_with_one_process(samples, monkeypatch, rows):
    gates, labels = samples  # in the order in which ranks gather them, so that sums are bitwise equal
    monkeypatch.setattr("netprism.gates.hamming._ROWS", rows)  # five blocks for three ranks, or one
    expected = scalars(transformation_complexity(gates, labels))
    for found in on_ranks(3, partial(complexity_of_rank, gates=gates, labels=labels)):
        assert found == expected


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

import pytest
import torch
from torchmetrics import MetricCollection

from netprism.discarding import concentration
from netprism.metrics import DiscardingMetric


def maps(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {layer: torch.randn(count, 3, 4, 4, generator=generator) - 3 for layer in ("conv", "fc")}


def masks(count):
    found = torch.zeros(count, 1, 4, 4, dtype=torch.bool)
    found[:, :, 1:3, 1:3] = True
    found[0] = True  # all object: does not count
    return found


def test_batches_give_what_all_images_give():
    metric, entropy, objects = DiscardingMetric(["conv", "fc"]), maps(10), masks(10)
    for rows in (slice(0, 4), slice(4, 10)):
        metric.update({layer: values[rows] for layer, values in entropy.items()}, objects[rows])
    found = metric.compute()
    assert found.keys() == {"SID/conv", "SID/fc", "concentration/conv", "concentration/fc"}
    for layer, values in entropy.items():
        assert found[f"SID/{layer}"] == pytest.approx(values.double().mean().item())
        each = concentration(values.double(), objects)
        assert found[f"concentration/{layer}"] == pytest.approx(each[1:].mean().item())
        assert each[0].isnan()


def test_the_concentration_is_nan_where_no_mask_counts_and_absent_without_masks():
    metric = DiscardingMetric(["conv", "fc"])
    metric.update(maps(2), torch.ones(2, 1, 4, 4, dtype=torch.bool))
    assert metric.compute()["concentration/fc"].isnan()
    metric.reset()
    metric.update(maps(2))
    assert metric.compute().keys() == {"SID/conv", "SID/fc"}


def test_it_works_in_a_collection():
    metrics = {"sid": DiscardingMetric(["conv"]), "ru": DiscardingMetric(["fc"], "RU")}
    both = MetricCollection(metrics)
    both.update(maps(3))
    assert both.compute().keys() == {"SID/conv", "RU/fc"}

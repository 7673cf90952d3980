import math

import torch

from netprism.knowledge.points import KnowledgePointCounts
from netprism.metrics.knowledge_points import KnowledgePointMetric


def counts(draws, images):
    mask = torch.rand(images, 5, generator=draws) < 0.5
    return KnowledgePointCounts(mask, mask & (torch.rand(images, 5, generator=draws) < 0.5), mask.long(), mask.float())


def test_the_metric_is_the_mean_over_the_images_of_all_batches():
    draws = torch.Generator().manual_seed(0)
    batches = [{"conv": counts(draws, images), "fc": counts(draws, images)} for images in (3, 7, 0)]
    metric = KnowledgePointMetric(["conv", "fc"], sync_on_compute=False)
    for batch in batches:
        metric.update(batch)
    found = metric.compute()
    for layer in ("conv", "fc"):
        points, reliable = (sum(getattr(b[layer], key) for b in batches) for key in ("points", "reliable_points"))
        assert found[f"points/{layer}"].item() == points / 10
        assert found[f"reliable/{layer}"].item() == reliable / 10
        assert found[f"ratio/{layer}"].item() == reliable / points
    assert len(found) == 6


def test_the_ratio_of_no_points_is_not_a_number():
    nothing = torch.zeros(2, 5, dtype=torch.bool)
    metric = KnowledgePointMetric(["conv"])
    found = metric({"conv": KnowledgePointCounts(nothing, nothing, nothing.long(), nothing.float())})
    assert found["points/conv"] == found["reliable/conv"] == 0
    assert math.isnan(found["ratio/conv"])

import math

import pytest
import torch
from reference import regions as reference
from torch.nn import functional as F

from netprism.knowledge.points import check_tau, knowledge_points


def test_posterior_of_knowledge_points_is_that_of_the_formula():
    draws = torch.Generator().manual_seed(0)
    h = torch.randn(2, 3, 3, generator=draws, dtype=torch.float64)
    directions = F.normalize(torch.randn(4, 3, generator=draws, dtype=torch.float64), dim=1)
    priors = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    found = knowledge_points(h, directions, priors, torch.tensor([0, 3]), strength=2.5)
    scaled = h * 2.5 / h.norm(dim=2).mean()
    for i in range(2):
        for r in range(3):
            expected = reference.posterior_3d(scaled[i, r], directions, priors, kappa_max=1000)
            assert found.confidence[i, r].item() == pytest.approx(expected.max().item(), rel=1e-9)
            assert found.classes[i, r] == expected.argmax()
            assert found.mask[i, r] == (expected.max() > 0.4)
            assert found.reliable[i, r] == ((expected.max() > 0.4) & (expected.argmax() == [0, 3][i]))
    assert (found.points, found.reliable_points) == (int(found.mask.sum()), int(found.reliable.sum()))
    assert found.ratio == found.reliable_points / found.points


def test_a_knowledge_point_is_more_certain_than_tau_and_nothing_else():
    draws = torch.Generator().manual_seed(1)
    case = torch.randn(3, 5, 3, generator=draws), torch.eye(3), torch.full((3,), 1 / 3)
    labels = torch.tensor([0, 1, 2])
    confidence = knowledge_points(*case, labels).confidence.flatten().sort()[0]
    for rank in range(len(confidence) - 1):  # tau between two neighbours
        found = knowledge_points(*case, labels, tau=float(confidence[rank : rank + 2].mean()))
        assert found.points == len(confidence) - rank - 1


def test_regions_without_strength_are_no_knowledge_points():
    for strength in (None, 1.0):
        found = knowledge_points(
            torch.zeros(2, 3, 3), torch.eye(3), torch.full((3,), 1 / 3), torch.tensor([0, 1]), strength=strength
        )
        assert (found.points, found.reliable_points) == (0, 0)
        assert math.isnan(found.ratio)
        assert torch.allclose(found.confidence, torch.full((2, 3), 1 / 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([0, 3])}, "a label is 3; expected 0 to 2"),
        ({"tau": 0.2}, "tau is 0.2; expected >= 1 / C = 0.333 and < 1"),
        ({"strength": 0.0}, "strength is 0.0; expected a number > 0"),
        ({"regions": torch.full((2, 3, 3), math.nan)}, "the strength of features has nan in it"),
        ({"directions": torch.eye(2)}, r"shapes of regions, directions and priors are \(2, 3, 3\), \(2, 2\), \(3,\)"),
    ],
)
def test_bad_input_of_knowledge_points_is_named(change, message):
    arguments = {
        "regions": torch.rand(2, 3, 3), "directions": torch.eye(3), "priors": torch.full((3,), 1 / 3),
        "labels": torch.tensor([0, 1]),
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        knowledge_points(**(arguments | change))


@pytest.mark.parametrize("tau", [0.0, 1.0, 7.0, -0.1, math.nan])
def test_a_confidence_that_all_or_no_regions_exceed_is_refused(tau):
    with pytest.raises(ValueError, match=r"tau is .*; expected > 0 and < 1"):
        check_tau(tau)
    check_tau(0.05)  # 1 / C may be smaller

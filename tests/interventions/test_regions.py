import pytest
import torch

from netprism.interventions import region_changes
from netprism.interventions.regions import KINDS

EAST, NORTH, NOWHERE = [9.0, 0.0], [0.0, 9.0], [0.01, 0.01]
HALF = torch.full((2,), 0.5)


def test_each_kind_on_paper():
    paths = {
        "redirected": [EAST, EAST, NORTH],
        "damaged": [EAST, NOWHERE, NORTH],
        "created": [NOWHERE, NOWHERE, EAST],
        "lost": [EAST, EAST, NOWHERE],
        "as before": [EAST, NOWHERE, EAST],
        "never": [NOWHERE, EAST, NOWHERE],
    }
    path = torch.tensor(list(paths.values())).movedim(0, 1)[None]  # one image, three steps, six regions
    found = region_changes(torch.cat([path, path[:, :1].expand(1, 3, 6, 2)]), torch.eye(2), HALF, tau=0.6)
    assert found.kinds.tolist() == [[1, 2, 3, 4, 0, 0], [0] * 6]
    assert found.counts() == dict.fromkeys(KINDS, 0.5)


def test_directions_and_strengths_along_the_attack():
    path = torch.tensor([[[[3.0, 0.0], [0.0, 2.0]], [[0.0, 3.0], [0.0, 4.0]], [[-6.0, 0.0], [0.0, 4.0]]]])
    found = region_changes(path, torch.eye(2), HALF, tau=0.6)
    assert found.cosine.tolist() == pytest.approx([1, 0.5, 0])
    assert found.strength.tolist() == pytest.approx([0, 0.4, 1])
    assert region_changes(torch.zeros(1, 2, 3, 2), torch.eye(2), HALF, tau=0.6).strength.tolist() == [-1, -1]


def test_what_decides_for_the_wrong_class_after_and_was_worth_before():
    """Three images of class 0 with three regions; the first is taken for class 1, the others are not."""
    before, after = torch.tensor([EAST, NORTH, NOWHERE]), torch.tensor([NORTH, NORTH, EAST])
    path = torch.stack([before, after]).expand(3, 2, 3, 2)
    true, wrong = torch.zeros(3, dtype=torch.long), torch.tensor([1, -1, -1])
    found = region_changes(path, torch.eye(2), HALF, classes=(true, wrong), tau=0.6)
    assert found.utilities.tolist() == pytest.approx([1, 0], abs=1e-6)
    assert found.before() == pytest.approx({"utility": 0.5, "new": 0.5})
    none = region_changes(path, torch.eye(2), HALF, classes=(true, wrong.clamp(max=-1)), tau=0.6).before()
    assert none["new"] != none["new"], "NaN"
    assert len(region_changes(path, torch.eye(2), HALF, tau=0.6).utilities) == 0, "no classes, no regions"


def test_bad_input():
    with pytest.raises(ValueError, match="expected \\(N, S \\+ 1, R, d\\) with S >= 1"):
        region_changes(torch.zeros(1, 1, 3, 2), torch.eye(2), HALF)
    with pytest.raises(ValueError, match="tau is 0.4; expected >= 1 / C"):
        region_changes(torch.zeros(1, 2, 3, 2), torch.eye(2), HALF, tau=0.4)

import pytest
import torch
from reference import discarding as reference

from netprism.discarding.concentration import box_mask, concentration, segment_mask


def test_concentration_is_background_less_object():
    generator = torch.Generator().manual_seed(0)
    entropy = torch.randn(3, 2, 5, 4, generator=generator)
    mask = torch.rand(3, 5, 4, generator=generator) < 0.4
    expected = [reference.concentration(h, m) for h, m in zip(entropy, mask, strict=True)]
    torch.testing.assert_close(concentration(entropy, mask), torch.tensor(expected))
    torch.testing.assert_close(concentration(entropy, mask.unsqueeze(1).int()), torch.tensor(expected))
    torch.testing.assert_close(concentration(entropy, mask.unsqueeze(1).expand(3, 2, 5, 4)), torch.tensor(expected))


def test_it_is_positive_where_the_object_is_kept():
    entropy = torch.full((1, 3, 4, 4), -1.0)
    entropy[..., :2, :2] = -4.0
    assert concentration(entropy, box_mask(torch.tensor([[0, 0, 2, 2]]), (4, 4))).item() == 3.0


def test_all_or_nothing_has_no_concentration():
    masks = torch.stack([torch.ones(4, 4), torch.zeros(4, 4), torch.eye(4)])
    assert concentration(torch.randn(3, 1, 4, 4), masks).isnan().tolist() == [True, True, False]


def test_a_cap_on_one_side_does_not_leak_into_the_other():
    entropy = torch.tensor([[[[1.0, float("inf")]]]])
    assert concentration(entropy, torch.tensor([[[0, 1]]])).item() == -float("inf")


def test_a_mask_of_another_size_is_named():
    with pytest.raises(ValueError, match=r"mask is \(1, 5, 5\), entropy map \(1, 3, 4, 4\)"):
        concentration(torch.zeros(1, 3, 4, 4), torch.zeros(1, 5, 5))


def test_boxes_scale_with_the_image():
    boxes = torch.tensor([[0.0, 100.0, 50.0, 200.0], [25.0, 0.0, 100.0, 50.0]])  # in 200 x 100 pixels
    masks = box_mask(boxes, (8, 4), original=(200, 100))
    assert masks.shape == (2, 1, 8, 4)
    first = torch.zeros(8, 4, dtype=torch.bool)
    first[4:, :2] = True
    second = torch.zeros(8, 4, dtype=torch.bool)
    second[:2, 1:] = True
    assert torch.equal(masks[0, 0], first)
    assert torch.equal(masks[1, 0], second)
    each = box_mask(boxes, (8, 4), original=torch.tensor([[200, 100], [100, 50]]))
    assert torch.equal(each[0, 0], first)
    assert torch.equal(each[1, 0, :4, 2:], torch.ones(4, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"boxes are \(4,\); expected \(N, 4\)"):
        box_mask(boxes[0], (8, 4))


def test_segments_are_resized_by_the_nearest_pixel():
    segments = torch.zeros(1, 4, 4, dtype=torch.uint8)
    segments[:, :2, 2:] = 7
    small = segment_mask(segments, (2, 2))
    assert small.tolist() == [[[[False, True], [False, False]]]]
    assert torch.equal(segment_mask(small, (4, 4))[:, 0], segments != 0)
    with pytest.raises(ValueError, match=r"segments are \(4, 4\)"):
        segment_mask(segments[0], (2, 2))

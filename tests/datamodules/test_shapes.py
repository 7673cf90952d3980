import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import multiclass_accuracy

from netprism.datamodules import Shapes
from netprism.datamodules.shapes import SHAPES, SegmentedImages, draw


@pytest.fixture(scope="module")
def many():
    """1200 images as in a training split, in [0, 1], with labels and masks."""
    source = Shapes(train_images=1200).read("train")
    return source.images.float() / 255, source.targets, source.masks


def vertices(points, step):
    """Corners of the polygon that visits every `step`-th of `points` on a circle."""
    angles = [2 * math.pi * k / points for k in range(0, points * step, step)]
    return [(math.cos(angle), math.sin(angle)) for angle in angles]


def polygon_holds(corners, x, y):
    """Whether a point is in a polygon that may cross itself: its corners wind around the point."""
    turned = 0.0
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        turn = math.atan2(y1 - y, x1 - x) - math.atan2(y0 - y, x0 - x)
        turned += (turn + math.pi) % (2 * math.pi) - math.pi
    return abs(turned) > 1


GRID = ((torch.arange(301) + 0.5) / 301 - 0.5) * 2.2


@pytest.mark.parametrize("name", SHAPES)
def test_all_shapes_have_the_same_area(name):
    inside = SHAPES[name](GRID.expand(301, 301), GRID[:, None].expand(301, 301))
    assert inside.double().mean() * 2.2**2 == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(("name", "points", "step", "radius"), [("star", 5, 2, 0.9438), ("triangle", 3, 1, -0.8774)])
def test_stars_and_triangles_are_those_of_the_geometry_book(name, points, step, radius):
    corners = [(radius * x, radius * y) for x, y in vertices(points, step)]
    u, v = torch.rand(2, 500, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = [polygon_holds(corners, x, y) for x, y in zip(u.tolist(), v.tolist(), strict=True)]
    assert SHAPES[name](u, v).tolist() == expected


def test_masks_lie_in_the_image_and_have_the_promised_areas(many):
    _, _, masks = many
    assert not any(edge.any() for edge in (masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]))
    share = masks.float().mean((1, 2))
    assert (0.045 < share.min(), share.max() < 0.127, abs(share.mean() - 0.085) < 0.003) == (True, True, True)


def test_every_object_is_told_from_its_ground_in_every_channel(many):
    images, _, masks = many
    inside, outside = masks[:, None], ~masks[:, None]
    means = [(images * part).sum((2, 3)) / part.sum((2, 3)) for part in (inside, outside)]
    assert (means[0] - means[1]).abs().min() > 0.15  # .3, less what black and white cut off


def test_the_mask_is_exact_to_the_pixel():
    """The same noise, twice: only pixels of the mask differ when the colour of the shape does."""
    labels = torch.arange(6)
    image, masks = draw(labels, 32, torch.Generator().manual_seed(5))
    swapped, other = draw((labels + 1) % 6, 32, torch.Generator().manual_seed(5))
    changed = (image != swapped).any(1)
    assert not changed[~(masks | other)].any()
    assert not changed[masks & other].any()
    assert changed[masks ^ other].all()


def test_nothing_but_the_shape_tells_the_label(many):
    """Colours, contrast, area, place and extent of texture: a linear and a small non-linear reader are at chance."""
    images, labels, masks = many
    inside, outside = masks[:, None], ~masks[:, None]
    parts = [(images * part).sum((2, 3)) / part.sum((2, 3)) for part in (inside, outside)]
    spread = [
        ((images - mean[:, :, None, None]) * part).square().sum((2, 3)) / part.sum((2, 3))
        for mean, part in zip(parts, (inside, outside), strict=True)
    ]
    y, x = [(masks.sum(axis) * torch.arange(32)).sum(1) / masks.sum((1, 2)) for axis in (2, 1)]
    features = torch.cat([*parts, *spread, masks.float().mean((1, 2))[:, None], x[:, None], y[:, None]], 1)
    features = (features - features.mean(0)) / features.std(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reader = nn.Sequential(nn.Linear(features.shape[1], 32), nn.ReLU(), nn.Linear(32, 6))
    optimizer = torch.optim.Adam(reader.parameters(), 0.01, weight_decay=1e-3)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(reader(features[:800]), labels[:800]).backward()
        optimizer.step()
    accuracy = multiclass_accuracy(reader(features[800:]), labels[800:], 6, average="micro")
    assert accuracy < 1 / 6 + 0.06  # three standard errors of 400 guesses


def test_boxes_enclose_the_masks(many):
    *_, masks = many
    boxes = SegmentedImages(torch.zeros(len(masks), 1, 1, 1), torch.zeros(len(masks)), masks).boxes
    for mask, (left, top, right, bottom) in zip(masks[:50], boxes.tolist(), strict=False):
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        assert (left, top) == (columns.min(), rows.min())
        assert (right, bottom) == (columns.max() + 1, rows.max() + 1)


def test_monitor_images_come_with_their_masks():
    data = Shapes(train_images=60, test_images=30, train_samples=20)
    dataset = data.monitor_dataset("train")
    source = data.read("train")
    assert (len(dataset), len(dataset.masks), len(dataset.boxes)) == (20, 20, 20)
    for number in (0, 19):
        image, label, mask = dataset[number]
        original = int(dataset.indices[number])
        torch.testing.assert_close(image * 0.293 + 0.5, source.images[original] / 255)
        assert label == source.targets[original] == dataset.targets[number]
        assert torch.equal(mask, source.masks[original])
        assert torch.equal(mask, dataset.masks[number])
    images, labels, masks = next(iter(DataLoader(dataset, batch_size=4)))
    assert (images.shape, labels.shape, masks.shape, masks.dtype) == ((4, 3, 32, 32), (4,), (4, 32, 32), torch.bool)
    assert len(data.monitor_dataset("test")[0]) == 3


def test_training_batches_are_images_and_labels():
    data = Shapes(train_images=12, test_images=6, batch_size=6, augment=True)
    assert [len(batch) for batch in data.train_dataloader()] == [2, 2]
    assert [len(batch) for batch in data.val_dataloader()] == [2]


def test_images_are_normalised(many):
    images, labels, _ = many
    normalised = (images - torch.tensor(Shapes.mean)[:, None, None]) / torch.tensor(Shapes.std)[:, None, None]
    assert normalised.mean((0, 2, 3)).abs().max() < 0.06
    assert (normalised.std((0, 2, 3)) - 1).abs().max() < 0.02
    assert labels.bincount().tolist() == [200] * 6


def test_images_depend_on_seed_and_split_alone():
    torch.manual_seed(0)
    first = Shapes(train_images=12, test_images=12)
    train, test = first.read("train"), first.read("test")
    torch.manual_seed(1)
    again = Shapes(train_images=12).read("train")
    assert torch.equal(again.images, train.images)
    assert torch.equal(again.masks, train.masks)
    other = Shapes(train_images=12, seed=1).read("train")
    assert not torch.equal(train.masks, test.masks)
    assert not torch.equal(other.masks, train.masks)


def test_reading_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    Shapes(train_images=6).read("train")
    assert torch.equal(torch.get_rng_state(), before)


def test_other_sizes(no_network):
    data = Shapes(image_size=48, train_images=7, test_images=1, root="/nonexistent")
    data.prepare_data()
    data.setup("fit")
    image, _, mask = data.monitor_dataset("train")[6]
    assert (image.shape, mask.shape, data.shape) == ((3, 48, 48), (48, 48), (3, 48, 48))


@pytest.mark.parametrize(
    ("argument", "value", "least"), [("image_size", 15, 16), ("train_images", 0, 1), ("test_images", 0, 1)]
)
def test_impossible_numbers_are_named(argument, value, least):
    with pytest.raises(ValueError, match=f"^{argument} is {value}: it must be at least {least}$"):
        Shapes(**{argument: value})


def test_masks_must_match_images():
    with pytest.raises(ValueError, match=r"^2 images have 1 masks"):
        SegmentedImages(torch.zeros(2, 1, 4, 4), torch.zeros(2), torch.zeros(1, 4, 4, dtype=torch.bool))

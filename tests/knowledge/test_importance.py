import itertools
import math

import pytest
import torch
from reference import regions as reference
from torch.nn import functional as F

from netprism.knowledge.groups import group_importance, groups_of, match_regions
from netprism.knowledge.importance import network_similarity, region_features, regional_importance
from netprism.knowledge.points import knowledge_points
from netprism.knowledge.region_projection import RegionLosses, fit_region_projection


def planted(count=60, side=4, channels=16, classes=5, patches=3, seed=0):
    """Maps of noise regions and, at random places, regions with the pattern of the class; confident logits."""
    draws = torch.Generator().manual_seed(seed)
    patterns = torch.randn(classes, channels, generator=draws)
    labels = torch.arange(count) % classes
    noise = torch.randn(count, side**2, channels, generator=draws)
    mask = torch.rand(count, side**2, generator=draws).argsort(dim=1) < patches
    features = torch.where(mask[..., None], patterns[labels][:, None] + 0.3 * noise, noise)
    logits = 10 * F.one_hot(labels, classes) + 0.5 * torch.randn(count, classes, generator=draws)
    return features.transpose(1, 2).unflatten(2, (side, side)), logits, mask, labels


def area_under_roc(scores, positive):
    """The probability that a positive has a higher score than a negative."""
    above, below = scores[positive][:, None], scores[~positive]
    return ((above > below).double() + 0.5 * (above == below)).mean().item()


def steps_of(count, steps, num_compared, seed):
    """The documented draws: each step a random permutation's head."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(count, generator=generator)[:num_compared].tolist() for _ in range(steps)]


@pytest.mark.parametrize("kappa", [None, 40.0])
def test_importance_is_that_of_the_whole_array_and_autograd(kappa):
    draws = torch.Generator().manual_seed(1)
    features = torch.randn(9, 6, 2, 3, generator=draws, dtype=torch.float64).relu() + 0.01
    logits = torch.randn(9, 4, generator=draws, dtype=torch.float64) * 6
    found = regional_importance(features, logits, kappa=kappa, steps=6, num_compared=5, seed=3)
    for sample in (0, 4, 8):
        w, v = reference.importance(
            features.flatten(2).transpose(1, 2), logits, sample, steps_of(9, 6, 5, 3), kappa=kappa or 12.0
        )
        assert torch.allclose(found.regions[sample], w, rtol=0, atol=1e-9)
        assert torch.allclose(found.channels[sample], v, rtol=0, atol=1e-9)


def test_importance_of_some_samples_is_their_importance_among_all():
    features, logits, *_ = planted(count=20)
    everything = regional_importance(features, logits)
    some = torch.tensor([13, 2, 7])
    for memory in (1, 2**28):
        found = regional_importance(features, logits, of=some, memory=memory)
        assert torch.allclose(found.regions, everything.regions[some], rtol=0, atol=1e-5)
        assert torch.allclose(found.channels, everything.channels[some], rtol=0, atol=1e-5)


def test_importance_sums_to_1_and_leaves_the_random_state_alone():
    features, logits, *_ = planted(count=20)
    before = torch.get_rng_state()
    found = regional_importance(features, logits)
    assert torch.equal(torch.get_rng_state(), before)
    for weights in (found.regions, found.channels):
        assert (weights >= 0).all()
        assert torch.allclose(weights.sum(dim=1), torch.ones(20))


@pytest.mark.parametrize(("channels", "side"), [(8, 4), (16, 4), (64, 4), (16, 8)])
def test_importance_finds_planted_patterns(channels, side):
    features, logits, mask, _ = planted(channels=channels, side=side)
    assert area_under_roc(regional_importance(features, logits).regions, mask) > 0.99


def test_the_papers_kappa_saturates_where_there_are_few_channels():
    # kappa' = 1000 is 2 a channel for its 512 channels, and 62 for these 16
    features, logits, mask, _ = planted(channels=16)
    assert area_under_roc(regional_importance(features, logits, kappa=1000).regions, mask) < 0.6
    features, logits, mask, _ = planted(channels=512, count=30)
    assert area_under_roc(regional_importance(features, logits, kappa=1000, steps=10).regions, mask) > 0.95


def test_one_region_has_all_importance():
    for features in (torch.rand(8, 5), torch.rand(8, 5, 1), torch.rand(8, 5, 1, 1)):
        found = regional_importance(features, torch.randn(8, 3))
        assert torch.equal(found.regions, torch.ones(8, 1))


def test_constant_and_dead_features_have_even_importance():
    # Where all regions are alike there is no gradient that tells them apart.
    for features in (torch.zeros(8, 5, 2, 2), torch.ones(8, 5, 2, 2)):
        found = regional_importance(features, torch.randn(8, 3))
        assert torch.allclose(found.regions, torch.full((8, 4), 0.25))


@pytest.mark.parametrize(
    ("features", "logits", "options", "message"),
    [
        (torch.full((5, 2, 2, 2), math.nan), torch.randn(5, 3), {}, "features is NaN or infinite"),
        (torch.rand(5, 2, 2, 2), torch.full((5, 3), math.inf), {}, "logits is NaN or infinite"),
        (torch.rand(5, 2, 2, 2), torch.randn(5, 3).softmax(1), {}, "logits is already a probability"),
        (torch.rand(5, 2, 2, 2), torch.randn(4, 3), {}, "length of logits is 4; expected 5"),
        (
            torch.rand(5, 2, 2, 2, 2),
            torch.randn(5, 3),
            {},
            r"shape of features is \(5, 2, 2, 2, 2\); expected \(N, K, H, W\)",
        ),
        (
            torch.rand(2, 2, 2, 2),
            torch.randn(2, 3),
            {},
            "length of features is 2; expected at least 3",
        ),
        (torch.rand(5, 2, 2, 2), torch.randn(5, 3), {"num_compared": 1}, "num_compared is 1; expected at least 2"),
    ],
)
def test_bad_input_of_importance_is_named(features, logits, options, message):
    with pytest.raises(ValueError, match=message):
        regional_importance(features, logits, **options)


def test_large_maps_are_averaged_over_cells():
    maps = torch.arange(16.0).view(1, 1, 4, 4)
    assert region_features(maps, max_grid=2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert region_features(maps, max_grid=4).flatten().tolist() == list(range(16))
    assert region_features(torch.rand(2, 3, 2, 8), max_grid=4).shape == (2, 8, 3)
    assert region_features(torch.rand(2, 3).bfloat16()).dtype == torch.float32


def test_matching_regions_are_the_most_similar_ones():
    regions = torch.randn(7, 6, 3, generator=torch.Generator().manual_seed(0))
    found = match_regions(regions, group_size=4, memory=1000)
    assert sorted(set(found.samples.flatten().tolist())) == list(range(7))
    for group, samples in enumerate(found.samples.tolist()):
        assert len(set(samples)) == 4
        for a, i in enumerate(samples):
            for b, j in enumerate(samples):
                cosines = F.cosine_similarity(regions[i][:, None], regions[j][None], dim=2)
                assert torch.equal(found.rows[group, a, :, b].long() - 6 * b, cosines.argmax(dim=1))
                assert torch.allclose(found.cosines[group, a, :, b], cosines.amax(dim=1), atol=1e-5)


def test_groups_hold_all_samples_and_equally_many():
    for count, size, groups in ((500, 21, 24), (20, 20, 1), (5, 20, 1), (21, 20, 2)):
        found = groups_of(count, size, seed=0)
        assert found.shape == (groups, min(size, count))
        assert set(found.flatten().tolist()) == set(range(count))
        assert all(len(set(group)) == len(group) for group in found.tolist())


def test_the_first_step_in_one_group_is_that_of_regional_importance():
    features, logits, *_ = planted(count=12)  # from the second on, v of regional_importance is not even
    expected = regional_importance(features, logits, num_compared=12, steps=1).regions
    found = group_importance(match_regions(region_features(features), group_size=12), logits, steps=1)
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("channels", "side"), [(8, 4), (16, 4), (64, 4), (16, 8)])
def test_importance_in_groups_finds_planted_patterns(channels, side):
    features, logits, mask, _ = planted(channels=channels, side=side)
    found = group_importance(match_regions(region_features(features)), logits)
    assert area_under_roc(found, mask) > 0.98


def random_case(count=6, regions=4, channels=5):
    draws = torch.Generator().manual_seed(2)

    def normal(*shape):
        return torch.randn(*shape, generator=draws, dtype=torch.float64)

    importance = torch.rand(count, regions, generator=draws, dtype=torch.float64)
    importance /= importance.sum(dim=1, keepdim=True)
    return (
        normal(count, regions, 3),
        normal(count, regions, channels),
        importance,
        normal(count, 4) * 5,
        normal(count, 3),
    )


def losses_of(features, importance, logits, samples, unmatched=None, **options):
    """The losses of projected regions (N, R, d') in one group of all samples, and their slope."""
    matches = match_regions(features, group_size=len(features))
    if unmatched is not None:
        matches.rows[matches.rows % features.shape[1] == unmatched] -= 1
    losses = RegionLosses(matches, importance, network_similarity(logits), samples, **options)
    order = matches.samples.flatten()

    def evaluate(projected):
        values, slope = losses(projected[order].transpose(1, 2).contiguous())
        return values, torch.empty_like(projected).index_copy_(0, order, slope.transpose(1, 2))

    return evaluate


def test_losses_are_those_of_the_formulas():
    projected, features, importance, logits, samples = random_case()
    losses = losses_of(features, importance, logits, samples, kappa_max=100)
    for scale in (0.3, 3.0):
        (similar, align), _ = losses(scale * projected)
        expected = reference.similarity_loss(scale * projected, features, importance, logits, kappa_max=100)
        assert similar.item() == pytest.approx(expected, rel=1e-9)
        assert align.item() == pytest.approx(reference.align_loss(projected, samples, importance), rel=1e-12)


def test_the_slope_is_that_of_the_weighted_sum():
    projected, features, importance, logits, samples = random_case(count=4, regions=2)
    losses = losses_of(features, importance, logits, samples, align_weight=0.7)
    found, step = losses(projected)[1], 1e-6
    for place in itertools.product(*map(range, projected.shape)):
        moved = torch.zeros_like(projected)
        moved[place] = step
        (up, up_align), (down, down_align) = (losses(projected + sign * moved)[0] for sign in (1, -1))
        expected = (up - down + 0.7 * (up_align - down_align)) / (2 * step)
        assert found[place].item() == pytest.approx(expected.item(), abs=1e-7)


def test_regions_of_no_importance_or_strength_have_no_slope():
    projected, features, importance, logits, samples = random_case()
    importance[:, 1] = 0
    projected[0, 2] = 0
    slope = losses_of(features, importance, logits, samples, unmatched=1)(projected)[1]  # nor are others compared
    assert slope.isfinite().all()
    assert (slope[:, 1] == 0).all()
    assert (slope[0, 2] == 0).all()
    assert (slope[1:, 0] != 0).all()


def planted_fit(**options):
    features, logits, _, labels = planted(count=60, channels=64)
    directions = F.normalize(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-1, -1, 0], [0, 0, -1]]), dim=1)
    regions = region_features(features)
    importance = group_importance(match_regions(regions), logits)
    fitted = fit_region_projection(regions, 3 * directions[labels], importance, logits, **options)
    return knowledge_points(fitted(regions), directions, torch.full((5,), 0.2), labels), fitted


def test_twice_the_steps_find_the_same_knowledge_points():
    found, fitted = planted_fit(steps=100)
    again, fitted_again = planted_fit(steps=200)
    assert again.points == pytest.approx(found.points, rel=0.02)
    assert fitted_again.matrix.norm().item() == pytest.approx(fitted.matrix.norm().item(), rel=0.02)


def test_the_scale_of_features_does_not_matter():
    _, features, importance, logits, samples = random_case(count=8)
    one, other = (
        fit_region_projection(scale * features, samples, importance, logits)(scale * features) for scale in (1.0, 1e3)
    )
    assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)


def test_features_that_are_0_stay_0():
    _, features, importance, logits, samples = random_case()
    fitted = fit_region_projection(0 * features, samples, importance, logits)
    assert (fitted(0 * features) == 0).all()
    assert fitted.losses.isfinite().all()


def test_knowledge_points_find_planted_patterns():
    features, logits, mask, labels = planted(count=60, channels=64)
    importance = regional_importance(features, logits).regions
    # the sample projection of an ideal network: one direction for each class
    directions = F.normalize(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-1, -1, 0], [0, 0, -1]]), dim=1)
    regions = region_features(features)
    fitted = fit_region_projection(regions, 3 * directions[labels], importance, logits, steps=100)
    found = knowledge_points(fitted(regions), directions, torch.full((5,), 0.2), labels, strength=1.0)
    assert area_under_roc(found.confidence, mask) > 0.95
    assert found.reliable[mask].float().mean() > 0.9

import math

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch import nn
from torch.nn import functional as F

from netprism.knowledge.sample_projection import (
    SampleProjector,
    divergence,
    fit_projection,
    lbfgs,
    output_entropy,
    projection_step,
    rotation_onto,
    soft_targets,
    strength_correlation,
)
from netprism.knowledge.vmf import kappa_of_strength
from netprism.metrics.projected_samples import ProjectedSamples


def planted(count=400, size=12, classes=6, seed=0):
    """Features that hold six categories along +-x, +-y, +-z, each as surely as it is strong, and what a network says.

    The outputs are the posterior of that very model: a projection that finds it has KL 0.
    """
    draws = torch.Generator().manual_seed(seed)
    mu = torch.cat([torch.eye(3), -torch.eye(3)]).double()[:classes]
    labels = torch.arange(count) % classes
    strengths = 0.3 + 2.7 * torch.rand(count, 1, generator=draws, dtype=torch.float64)
    o = F.normalize(mu[labels] + 0.3 * torch.randn(count, 3, generator=draws, dtype=torch.float64), dim=1)
    evidence = kappa_of_strength(strengths, 3, 10.0) * o @ mu.T
    embedding = torch.linalg.qr(torch.randn(size, size, generator=draws, dtype=torch.float64))[0][:3]
    return (strengths * o) @ embedding, 4 * evidence, strengths.squeeze(1)


def test_a_planted_projection_is_found():
    features, logits, strengths = planted()
    projection = fit_projection(features, logits)
    g, targets = projection(features), soft_targets(logits)
    assert divergence(targets, projection.log_posterior(g)).mean() < 2e-3
    found = g.detach().norm(dim=1)
    assert torch.corrcoef(torch.stack([found, strengths]))[0, 1] > 0.99
    assert strength_correlation(found, output_entropy(targets)) < -0.9
    cosines = projection.directions @ projection.directions.T
    assert torch.allclose(
        cosines, torch.block_diag(*[torch.ones(1, 1)] * 6).double() - torch.eye(6).roll(3, 1), atol=0.1
    )


def test_a_common_mean_changes_nothing_but_without_the_center():
    features, logits, _ = planted()
    moved = features + torch.linspace(1, 3, 12).double()
    for center in (True, False):
        here, there = (fit_projection(f, logits, steps=5, center=center)(f) for f in (features, moved))
        assert torch.allclose(here, there, atol=1e-6) == center


def test_the_fit_is_the_same_each_time_and_leaves_random_numbers_alone():
    features, logits, _ = planted()
    before = torch.get_rng_state()
    first, second = (fit_projection(features, logits, steps=5).matrix for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_start_has_small_strengths():
    features, logits, _ = planted()
    projection = SampleProjector(12, 6)
    projection_step(projection, features, soft_targets(logits), torch.optim.SGD([projection.matrix], 0.0))
    assert 0 < projection(features).norm(dim=1).max() < 0.4


def test_directions_and_priors_are_the_sums_of_the_specification():
    features, logits, _ = planted(count=30)
    targets = soft_targets(logits)
    projection = SampleProjector(12, 6)
    projection_step(projection, features, targets, torch.optim.SGD([projection.matrix], 0.5))
    moved = features - features.mean(0)
    g = (moved / moved.norm(dim=1).mean()) @ projection.matrix.detach().T
    for y in range(6):
        total = sum(targets[x, y] * kappa_of_strength(g[x].norm(), 3, 10.0) * g[x] / g[x].norm() for x in range(len(g)))
        assert torch.allclose(projection.directions[y], total / total.norm(), atol=1e-10)
        assert projection.priors[y].item() == pytest.approx(targets[:, y].mean().item())
    q = projection.log_posterior(g).exp()
    direct = sum(
        targets[x, y] * math.log(targets[x, y] / q[x, y]) for x in range(len(g)) for y in range(6) if targets[x, y] > 0
    )
    assert divergence(targets, q.log()).sum().item() == pytest.approx(direct.item())


def test_the_gradient_is_that_of_kl_with_the_directions_following():
    features, logits, _ = planted(count=40)
    targets = soft_targets(logits)
    projection = SampleProjector(12, 6)
    still = torch.optim.SGD([projection.matrix], 0.0)
    projection_step(projection, features, targets, still)
    with torch.no_grad():
        projection.matrix[0, 0] += 1e-5
        up = projection_step(projection, features, targets, still)
        projection.matrix[0, 0] -= 2e-5
        down = projection_step(projection, features, targets, still)
        projection.matrix[0, 0] += 1e-5
    projection_step(projection, features, targets, still)
    assert projection.matrix.grad[0, 0].item() == pytest.approx((up - down) / 2e-5, rel=1e-4)


def test_batches_that_remember_come_near_the_whole():
    features, logits, _ = planted()
    targets = soft_targets(logits)
    whole = fit_projection(features, logits)
    best = divergence(targets, whole.log_posterior(whole(features))).mean().item()
    projection = SampleProjector(12, 6)
    optimizer = torch.optim.Adam([projection.matrix], 0.05)
    for step in range(100):
        part = slice(100 * (step % 4), 100 * (step % 4) + 100)
        projection_step(projection, features[part], targets[part], optimizer, 0.75 * projection.sums)
    assert divergence(targets, projection.log_posterior(projection(features))).mean() < best + 0.01
    assert projection.sums[:, -1].sum().item() == pytest.approx(400, rel=1e-6)  # a memory of four batches


def test_the_next_epoch_is_turned_onto_the_last():
    features, logits, _ = planted()
    first = fit_projection(features, logits)
    turned = fit_projection(features, logits)
    turned.rotate(torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)).double())[0])
    q = turned.log_posterior(turned(features))
    assert torch.allclose(q, first.log_posterior(first(features)), atol=1e-9)
    second = fit_projection(2 * features, logits, initial=first, steps=50)
    assert (second.directions * first.directions).sum(1).min() > 0.999
    turned.rotate(rotation_onto(turned.directions, first.directions))
    assert torch.allclose(turned.directions, first.directions, atol=1e-9)


def test_rotation_onto_finds_a_known_rotation():
    points = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).double()
    turn = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]).double()
    assert torch.allclose(rotation_onto(points, points @ turn.T), turn, atol=1e-12)


def test_correlation_and_entropy_worked_out_on_paper():
    assert output_entropy(torch.tensor([[1.0, 0.0], [0.5, 0.5]])).tolist() == pytest.approx([0, math.log(2)])
    assert strength_correlation(torch.tensor([1.0, 2, 3]), torch.tensor([5.0, 3, 1])) == pytest.approx(-1)
    assert strength_correlation(torch.tensor([1.0, 2, 3]), torch.tensor([0.0, 1, 0])) == pytest.approx(0)
    assert math.isnan(strength_correlation(torch.ones(3), torch.arange(3.0)))


def test_temperature_softens():
    logits = torch.tensor([[4.0, 0.0]])
    assert soft_targets(logits, 4.0)[0, 0].item() == pytest.approx(1 / (1 + math.exp(-1)))


def test_the_metric_is_the_mean_over_all_batches():
    features, logits, _ = planted(count=31)
    targets = soft_targets(logits)
    projection = fit_projection(features, logits, steps=5)
    metric = ProjectedSamples()
    for part in (slice(0, 10), slice(10, 31)):
        g = projection(features[part]).detach()
        metric.update(g, projection.log_posterior(g), targets[part])
    g = projection(features).detach()
    found = metric.compute()
    assert torch.equal(found["g"], g)
    assert torch.equal(found["categories"], targets.argmax(1))
    assert found["KL"].item() == pytest.approx(divergence(targets, projection.log_posterior(g)).mean().item())
    correlation = strength_correlation(g.norm(dim=1), output_entropy(targets))
    assert found["strength_uncertainty_corr"].item() == pytest.approx(correlation)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, z: (f, z.softmax(1)), "logits is already a probability"),
        (lambda f, z: (f, z * math.nan), "logits is NaN or infinite"),
        (lambda f, z: (f * math.inf, z), "features is NaN or infinite"),
        (lambda f, z: (f[:1].expand_as(f), z), "covariance of features and outputs is 0"),
        (lambda f, z: (0 * f, z), "covariance of features and outputs is 0"),
        (lambda f, z: (f, z[:1].expand_as(z)), "covariance of features and outputs is 0"),
        (lambda f, z: (f[1:], z), "length of features is 39; expected 40"),
        (lambda f, z: (f, z[:, 0]), r"shape of logits is \(40,\)"),
        (lambda f, z: (f, z[:, :2]), "dimensions is 3; expected 2 to 2 with features of size 12 and 2 categories"),
    ],
)
def test_bad_input_is_named(change, message):
    features, logits, _ = planted(count=40)
    with pytest.raises(ValueError, match=message):
        fit_projection(*change(features, logits))


def test_bad_settings_are_named():
    features, logits, _ = planted(count=40)
    with pytest.raises(ValueError, match="temperature is 0; expected > 0"):
        soft_targets(logits, 0)
    projection = fit_projection(features, logits, steps=2)
    with pytest.raises(ValueError, match="size of a feature is 11; expected 12"):
        projection_step(projection, features[:, 1:], soft_targets(logits), lbfgs([projection.matrix]))


def test_on_real_digits_strength_tells_sureness_better_than_pca():
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        features, logits = net[:2](x[::3]), net(x[::3])
    uncertainty = output_entropy(soft_targets(logits))
    ours = fit_projection(features, logits, steps=50)(features)
    pca = torch.tensor(PCA(3).fit_transform(features))
    correlations = [strength_correlation(points.norm(dim=1), uncertainty) for points in (ours.detach(), pca)]
    assert correlations[0] < -0.7
    assert correlations[0] < correlations[1]

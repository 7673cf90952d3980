"""Functions refuse numbers from which they would make nonsense, each in a line that names the argument."""

import math

import pytest
import torch
from torch import nn

from netprism.components import (
    cross_validate,
    reliable_part,
    round_trips,
    sampled_shapley_values,
    shapley_values,
    significance,
)
from netprism.discarding import (
    box_mask,
    concentration,
    reconstruction_uncertainty,
    segment_mask,
    strict_information_discarding,
)
from netprism.discarding.noise import water_filling_sigma
from netprism.gates import PackedGates, kde_entropy, pairwise_hamming, record_gates, transformation_complexity
from netprism.interventions import adversarial_distances, minimal_attack, pgd, prune, share_weights
from netprism.knowledge import (
    concentration_from_resultant_length,
    fit_kappa,
    fit_mixture,
    kappa_of_strength,
    knowledge_points,
    log_normalizer,
    log_posterior,
    mean_resultant_length,
    region_features,
    regional_importance,
    soft_targets,
)
from netprism.metrics import ComponentMetric

NAN, INF = math.nan, math.inf
WHOLE, COMPLEX = torch.tensor([1, 2, 5]), torch.tensor([1 + 1j])
LINEAR = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
IMAGES = torch.linspace(0.1, 0.9, 12).view(3, 4)
UNIT = torch.eye(3)
FEATURES = torch.rand(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))
LOGITS = torch.eye(2)[[0, 1, 0, 1, 0]] * 8
GATES = torch.eye(4, dtype=torch.bool)


def at(values, index, number):
    """The values with another number in one place."""
    changed = values.clone()
    changed.view(-1)[index] = number
    return changed


def cases(function, right, **wrong):
    """(function, all arguments, the name of the wrong one) for each wrong value of each argument."""
    for name, values in wrong.items():
        for number, value in enumerate(values):  # a value's repr may hold an address, which differs between workers
            yield pytest.param(function, right | {name: value}, id=f"{function.__name__}-{name}-{number}")


def discarded(**options):
    return strict_information_discarding(LINEAR, "0", num_vjps=2, measure_ratio=False, **options)


def rebuilt(**options):
    return reconstruction_uncertainty(LINEAR, "0", nn.Linear(4, 4), num_vjps=2, **options)


def recorded(**options):
    with record_gates(LINEAR, **options):
        LINEAR(IMAGES)


def joined(parts):
    return PackedGates.concatenate([PackedGates.pack(part) for part in parts])


def measured(approximations, feature):
    metric = ComponentMetric([4])
    metric.update(feature, approximations)
    return metric.compute()


def worth(value=None, **options):
    return shapley_values(value or (lambda coalitions: coalitions.sum(1)), **options)


def sampled(**options):
    return sampled_shapley_values(lambda coalitions: coalitions.sum(1), **options)


POINTS = {"regions": FEATURES.flatten(2)[..., :3], "directions": UNIT, "priors": torch.ones(3) / 3}
POINTS |= {"labels": torch.tensor([0, 1, 2, 0, 1])}
PHI = torch.arange(8.0).view(4, 2)
TABLE = [
    *cases(mean_resultant_length, {"kappa": UNIT, "d": 3}, kappa=[WHOLE, COMPLEX, -UNIT, UNIT * NAN], d=[1, 0, -3]),
    *cases(log_normalizer, {"kappa": UNIT, "d": 3}, kappa=[WHOLE, -UNIT, UNIT * NAN, UNIT / 0], d=[1, 0]),
    *cases(
        concentration_from_resultant_length,
        {"length": UNIT, "d": 3}, length=[WHOLE, -UNIT, UNIT * 1.1, UNIT * NAN, UNIT / 0], d=[1],
    ),
    *cases(
        kappa_of_strength,
        {"l": UNIT, "d": 3, "kappa_max": 10.0, "noise": 1.0},
        l=[WHOLE, -UNIT, UNIT * NAN], d=[1], kappa_max=[0, -1, NAN], noise=[0, -1, NAN],
    ),
    *cases(fit_kappa, {}, samples=[WHOLE, UNIT.long(), UNIT * NAN, UNIT * 2, UNIT[:1], UNIT[:0], torch.ones(3)]),
    *cases(
        fit_mixture,
        {"samples": UNIT, "components": 2},
        samples=[UNIT * NAN, UNIT.long(), UNIT[0]], components=[0, 4, -1], steps=[-1], restarts=[0],
    ),
    *cases(
        log_posterior,
        {"features": UNIT, "directions": UNIT, "priors": torch.ones(3) / 3, "kappa_max": 10.0},
        features=[at(UNIT, 0, NAN), at(UNIT, 0, INF)],
        directions=[at(UNIT, 0, NAN), UNIT.long(), UNIT[0]],
        priors=[torch.tensor([1.0, -0.5, 0.5]), torch.zeros(3), at(torch.ones(3), 1, NAN), torch.ones(2), WHOLE],
        kappa_max=[0, NAN, -1], noise=[0, NAN, -1],
    ),
    *cases(
        knowledge_points,
        POINTS,
        regions=[at(POINTS["regions"], 0, NAN), at(POINTS["regions"], 0, INF), POINTS["regions"][0]],
        directions=[at(UNIT, 0, NAN), UNIT[:, :2], UNIT[0]],
        priors=[torch.tensor([1.0, -0.5, 0.5]), torch.zeros(3), torch.full((3,), NAN), torch.ones(2)],
        labels=[
            POINTS["labels"][:, None], POINTS["labels"] / 2, POINTS["labels"] - 1, POINTS["labels"] + 1,
            POINTS["labels"][:3],
        ],
        strength=[0.0, -1.0, NAN, INF], tau=[0.0, 1.0, NAN, -1.0, 0.1], kappa_max=[0.0, NAN],
    ),
    *cases(
        regional_importance,
        {"features": FEATURES, "logits": LOGITS},
        features=[at(FEATURES, 0, NAN), at(FEATURES, 0, INF), FEATURES * 1e30, FEATURES[:2]],
        logits=[at(LOGITS, 0, NAN), LOGITS[:3], LOGITS.softmax(1), LOGITS[0]],
        of=[torch.tensor([-1]), torch.tensor([5]), torch.tensor([], dtype=torch.long)],
        kappa=[NAN, INF, -1.0], learning_rate=[NAN, -1.0], momentum=[NAN, INF], temperature=[0.0, NAN],
        steps=[0, -1], num_compared=[1],
    ),
    *cases(region_features, {}, features=[at(FEATURES, 0, NAN), FEATURES[0, 0, 0], FEATURES[None, None]]),
    *cases(soft_targets, {"logits": LOGITS}, logits=[at(LOGITS, 0, INF), LOGITS[0]], temperature=[0.0, -1.0, NAN]),
    *cases(
        significance,
        {"approximations": [PHI / 2], "feature": PHI},
        approximations=[[], [PHI[:2]], [PHI[:, :1]], [PHI / 2, PHI[:1]], [at(PHI, 0, NAN)]],
        feature=[at(PHI, 0, NAN), torch.ones(4, 2), PHI[:0], PHI.long(), PHI[:, :1]],
    ),
    *cases(
        measured, {"approximations": [PHI / 2], "feature": PHI},
        approximations=[[PHI[:, :1]], [at(PHI, 0, NAN)]], feature=[PHI[:, :1], torch.ones(4, 2)],
    ),
    *cases(
        worth, {"players": 3}, players=[0, -1], samples=[0, 1, -5],
        value=[lambda c: c.sum(1) * NAN, lambda c: c, lambda c: c.sum(1) / 0.0],
    ),
    *cases(sampled, {"players": 3, "samples": 10}, players=[0], samples=[0, 1]),
    *cases(
        reliable_part,
        {"psi": PHI.repeat(1, 2), "readouts": [torch.ones(1, 4)] * 2},
        psi=[at(PHI.repeat(1, 2), 0, NAN), PHI], readouts=[[torch.ones(1, 4)], [torch.ones(1, 3)] * 2],
        rounds=[-1],
    ),
    *cases(
        round_trips, {"covariance": UNIT, "readouts": [UNIT[:1]] * 2}, covariance=[at(UNIT, 0, NAN)], rounds=[-1]
    ),
    *cases(
        cross_validate,
        {"ratios": PHI.repeat(3, 1).numpy(), "performance": torch.arange(12.0).numpy()},
        ratios=[at(PHI.repeat(3, 1), 0, NAN).numpy()], performance=[[1.0, 2.0]], repeats=[0, -1],
    ),
    *cases(
        discarded, {"x": IMAGES},
        x=[at(IMAGES, 0, NAN), IMAGES.long()], alpha=[0, -1, NAN, INF], max_sigma=[0, -1, NAN], scale=[0, -1, NAN],
        method=["exact"], noise_samples=[],
    ),
    *cases(
        rebuilt, {"x": IMAGES},
        x=[at(IMAGES, 0, NAN), IMAGES.long()], alpha=[0, -1, NAN, INF], max_sigma=[0, -1, NAN, INF],
        scale=[0, -1, NAN, INF], noise_samples=[1, 0], steps=[-1], method=["exact"], center=["nothing"],
    ),
    *cases(
        water_filling_sigma, {"norms": UNIT, "budget": 1.0},
        norms=[-UNIT, UNIT * NAN, UNIT.long()], budget=[NAN, -1.0, INF], max_sigma=[0.0, -1.0, NAN],
    ),
    *cases(
        concentration, {"entropy_map": FEATURES, "mask": torch.ones(5, 2, 2)}, mask=[torch.ones(4, 2, 2)]
    ),
    *cases(box_mask, {"size": (4, 4)}, boxes=[torch.ones(4), torch.ones(2, 3)]),
    *cases(segment_mask, {"size": (4, 4)}, segments=[torch.ones(4), torch.ones(2, 3, 4, 4)]),
    *cases(
        kde_entropy, {"distances": 1 - UNIT, "bandwidth": 1.0},
        distances=[(1 - UNIT) * NAN, -(1 - UNIT), (1 - UNIT) / UNIT.flip(0), UNIT, UNIT[:2], UNIT[:0]],
        bandwidth=[-1.0, NAN], labels=[torch.tensor([0, 1])],
    ),
    *cases(pairwise_hamming, {}, gates=[UNIT, torch.tensor(True), GATES[:, :0]]),
    *cases(
        transformation_complexity, {"gates": {"a": GATES}},
        gates=[{}, {"a": GATES.float()}, {"a": GATES, "b": GATES[:2]}], labels=[torch.tensor([0, 1])],
        alpha=[0.0, -1.0, NAN], bandwidth=["wide"],
    ),
    *cases(joined, {}, parts=[[torch.ones(2, 8).bool(), torch.ones(2, 7).bool()], [], [torch.ones(2, 4)]]),
    *cases(recorded, {}, layers=[[], ["nope"], 0], kinds=[["rleu"]]),
    *cases(
        pgd, {"model": LINEAR, "x": IMAGES},
        x=[IMAGES.long(), at(IMAGES, 0, NAN), IMAGES * 300], eps=[0, -1, NAN], steps=[0, -1], step_size=[0, NAN],
        labels=[torch.tensor([0, 1, 2]), torch.tensor([0])],
    ),
    *cases(minimal_attack, {"model": LINEAR, "x": IMAGES, "targets": torch.tensor([0, 1, 0])}, x=[at(IMAGES, 0, NAN)]),
    *cases(
        adversarial_distances, {"model": LINEAR, "batches": [(IMAGES, torch.tensor([0, 1, 0]))]},
        batches=[[(at(IMAGES, 0, NAN), torch.tensor([0, 1, 0]))]], num_classes=[0, -1],
    ),
    *cases(prune, {"model": LINEAR}, s=[NAN, -1.0], layers=[["nope"]]),
    *cases(share_weights, {"model": LINEAR}, linear_bits=[0, -1], layers=[["nope"]]),
]  # fmt: skip


@pytest.mark.parametrize(("function", "arguments"), TABLE)
def test_nonsense_is_refused_by_name(function, arguments):
    with pytest.raises((ValueError, TypeError)) as caught:
        function(**arguments)
    frames = [entry.frame.f_globals["__name__"] for entry in caught.traceback]
    assert frames[-1].startswith("netprism."), f"not refused on purpose: {caught.value}"
    assert "\n" not in str(caught.value)


def test_there_are_as_many_as_it_says():
    assert len(TABLE) >= 150


def test_samples_that_are_all_the_same_have_an_infinite_concentration():
    same = torch.nn.functional.normalize(torch.tensor([[1.0, 2.0, 3.0]]), dim=1).repeat(5, 1)
    assert fit_kappa(same).item() == INF
    assert fit_kappa(same.bfloat16()).item() == INF
    apart = torch.nn.functional.normalize(same + torch.linspace(-0.01, 0.01, 15).view(5, 3), dim=1)
    assert 100 < fit_kappa(apart).item() < INF

"""The published standard deviations of Ren et al. 2020, figure 3, as samples: what our functions say of them."""

import csv
from itertools import groupby
from pathlib import Path

import pytest
import torch

from netprism.components.measures import significance
from netprism.metrics import ComponentMetric
from netprism.studies.measures import orders as largest_and_mean_order

PUBLISHED = Path(__file__).parents[3] / "shared" / "data" / "published_task_n_components.csv"


def samples(spread):
    """Samples of f and all Phi^(l) that have exactly the published standard deviations: `(64, 1 + L)`, float64.

    A standard deviation of a difference is a covariance: those of f with all Phi^(l), and of neighbours, are published.
    Of Phi^(l) and Phi^(k) that are no neighbours none is. Here they have what both have in common with f and Phi^(l-1).
    """
    feature, component, up_to_order, unexplained = spread
    count = len(component)
    gram = torch.diag(torch.cat([feature[:1], up_to_order]).square())
    for i in range(1, count + 1):
        gram[0, i] = gram[i, 0] = (gram[0, 0] + gram[i, i] - unexplained[i - 1] ** 2) / 2
        if i > 1:
            gram[i - 1, i] = gram[i, i - 1] = (gram[i - 1, i - 1] + gram[i, i] - component[i - 1] ** 2) / 2
            known = [0, i - 1]
            others = gram[1 : i - 1][:, known] @ torch.linalg.solve(gram[known][:, known], gram[known, i])
            gram[1 : i - 1, i] = gram[i, 1 : i - 1] = others
    draws = torch.randn(64, count + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    uncorrelated = torch.linalg.qr(draws - draws.mean(0))[0] * 8  # of variance 1: their squares sum to 64
    return uncorrelated @ torch.linalg.cholesky(gram).T


@pytest.fixture(scope="module")
def published():
    """{n: (orders, samples of f and all Phi^(l), E|f - Phi^(l)|^2 / Var f as published)}; order 97 of Task-26 left out.

    There the released training has diverged: 1.41 times the variance of the feature is unexplained.
    """
    if not PUBLISHED.is_file():
        pytest.skip("the published figures lie outside the project and are not here")
    with PUBLISHED.open() as file:
        rows = [row for row in csv.DictReader(file) if (row["task_relus"], row["order"]) != ("26", "97")]
    found = {}
    for relus, group in groupby(rows, key=lambda row: int(row["task_relus"])):
        of_task = list(group)
        columns = ("std_feature", "std_component", "std_up_to_order", "std_unexplained")
        spread = torch.tensor([[float(row[c]) for row in of_task] for c in columns], dtype=torch.float64)
        found[relus] = [int(row["order"]) for row in of_task], samples(spread), (spread[3] / spread[0]) ** 2
    return found


def test_tasks_of_more_relus_have_the_published_fraction_above_order_4(published):
    fractions = []
    for orders, table, unexplained in published.values():
        feature, *phis = table[:, :, None].unbind(1)
        fractions.append(significance(phis, feature)[1:].sum().item())
        metric = ComponentMetric(orders)
        metric.update(feature, phis)
        found = metric.compute()
        assert sum(found[f"significance/{order}"] for order in orders[1:]) == pytest.approx(fractions[-1], rel=1e-9)
        assert [found[f"unexplained/{order}"].item() for order in orders] == pytest.approx(unexplained.tolist())
    assert list(published) == [0, 2, 8, 26, 80]
    assert fractions == pytest.approx([0.011, 0.017, 0.024, 0.142, 0.485], abs=5e-4)


def test_the_mean_order_rises_with_the_task_and_order_4_stays_the_largest(published, tmp_path):
    """The measure of the study `components/task_n` on the published figures: docs/interventions.md has the numbers."""
    found = []
    for orders, table, _ in published.values():
        feature, *phis = table[:, :, None].unbind(1)
        keys = ",".join(f"val/significance/{order}" for order in orders)
        values = ",".join(map(str, significance(phis, feature).tolist()))
        (tmp_path / "metrics.csv").write_text(f"epoch,{keys}\n0,{values}\n")
        found += largest_and_mean_order(tmp_path)
    assert [row["largest"] for row in found] == [4] * 5
    assert [row["mean"] for row in found] == pytest.approx([4.34, 4.38, 4.62, 5.35, 7.58], abs=5e-3)

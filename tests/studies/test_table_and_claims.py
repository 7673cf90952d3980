import math

import pytest

from netprism.studies.claims import check, rank_correlation
from netprism.studies.table import markdown, plus_minus, summarise

RECORDS = [
    {"weight": weight, "seed": seed, "H": 9.0 - weight + seed, "accuracy": 0.5 + 0.1 * seed * weight}
    for weight in (0, 1, 3)
    for seed in (0, 1, 2)
]


def test_mean_and_spread_over_seeds_by_hand():
    row = summarise(RECORDS, ["weight"], ["H"])[2]
    assert row == {"weight": 3, "n": 3, "H": 7.0, "H sd": 1.0}


def test_a_run_without_a_number_is_not_left_out_in_silence():
    rows = summarise([{"a": 1, "H": 1.0}, {"a": 1, "H": math.nan}], ["a"], ["H"])
    assert math.isnan(rows[0]["H"])
    assert "none" in markdown(rows, ["a"], ["H"], str)


def test_markdown_has_labels_and_the_digits_of_the_spread():
    lines = markdown(
        summarise(RECORDS, ["weight"], ["H"]), ["weight"], ["H"], lambda name: {"H": "H, bits"}.get(name, name)
    ).splitlines()
    assert lines[0] == "| weight | runs | H, bits |"
    assert lines[-1] == "| 3 | 3 | 7.0 ± 1.0 |"
    assert plus_minus(0.5, math.nan) == "0.5"


def test_every_seed_that_falls_confirms():
    verdict = check({"says": "it falls", "falls": "H", "along": "weight"}, RECORDS)
    assert str(verdict) == "agrees: 3 of 3 seeds"
    assert "-1" in verdict.measured
    assert str(check({"says": "it rises", "rises": "H", "along": "weight"}, RECORDS)) == "does not agree: 0 of 3 seeds"


def test_a_seed_in_which_nothing_varies_does_not_confirm():
    verdict = check({"says": "it rises", "rises": "accuracy", "along": "weight"}, RECORDS)
    assert str(verdict) == "in part: 2 of 3 seeds"


def test_two_settings_and_a_bound():
    claim = {"says": "more", "higher": "H", "of": {"weight": 0}, "than": {"weight": [1, 3]}}
    assert check(claim, RECORDS).measured == "difference 2 ± 0"
    assert check({"says": "below", "below": "H", "value": 8, "where": {"weight": 3}}, RECORDS).confirmed == 2
    assert check({"says": "two quantities", "higher": "H", "than": "accuracy"}, RECORDS).confirmed == 3


def test_an_unknown_claim_is_refused():
    with pytest.raises(ValueError, match="expected `says` and one of rises"):
        check({"says": "x", "growing": "H"}, RECORDS)
    with pytest.raises(ValueError, match="claim is about 'TC'; expected one of weight"):
        check({"says": "x", "above": "TC"}, RECORDS)


def test_rank_correlation_against_scipy():
    from scipy.stats import spearmanr

    x, y = [1.0, 2.0, 2.0, 5.0, 4.0], [3.0, 1.0, 4.0, 4.0, 9.0]
    assert rank_correlation(x, y) == pytest.approx(spearmanr(x, y).statistic)
    assert math.isnan(rank_correlation([1, 2], [3, 3]))

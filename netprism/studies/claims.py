"""What a paper found, as statements that each seed confirms or does not.

    - says: the entropy falls with the weight
      falls: H                      # or rises: the rank correlation with `along` is below (above) 0
      along: model.weight
      where: {model.prior_only: true}
    - says: the network of 20 layers discards more
      higher: SID                   # or lower: the difference of two means is above (below) 0
      of: {experiment: classify/a}
      than: {experiment: classify/b}    # or another quantity: than: RU
    - says: strength follows entropy
      below: correlation            # or above
      value: -0.8

A statement is checked seed by seed, on the mean of that seed's records: with few seeds, how many agree says more than
a test with its assumptions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from netprism.studies.table import grouped, mean_and_spread, plus_minus

SIGNS = {"rises": 1, "falls": -1, "higher": 1, "lower": -1, "above": 1, "below": -1}
OPTIONS = {"says", "along", "where", "of", "than", "value", *SIGNS}


@dataclass(frozen=True)
class Verdict:
    """A statement, what was measured for it, and the number of seeds that confirm it."""

    says: str
    measured: str
    confirmed: int
    seeds: int

    def __str__(self) -> str:
        """The words of the page."""
        if not self.seeds:
            return "not measured"
        word = "agrees" if self.confirmed == self.seeds else "does not agree" if not self.confirmed else "in part"
        return f"{word}: {self.confirmed} of {self.seeds} seeds"


def check(claim: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> Verdict:
    """Returns the verdict on one claim.

    Raises:
        ValueError: The claim is none of those above.
    """
    kinds = [kind for kind in SIGNS if kind in claim]
    if len(kinds) != 1 or "says" not in claim or claim.keys() - OPTIONS:
        raise ValueError(f"claim is {dict(claim)}; expected `says` and one of {', '.join(SIGNS)}")
    kind = kinds[0]
    quantity, sign = str(claim[kind]), SIGNS[kind]
    chosen = matching(records, claim.get("where", {}))
    found = {seed: _statistic(kind, quantity, claim, rows) for (seed,), rows in grouped(chosen, ["seed"]).items()}
    values = [value for value in found.values() if not math.isnan(value)]
    confirmed = sum(value * sign > 0 for value in values)
    name = {"rises": "rank correlation", "falls": "rank correlation", "higher": "difference", "lower": "difference"}
    text = f"{name.get(kind, quantity)} {plus_minus(*mean_and_spread(values))}"
    if kind in ("above", "below"):
        shift = float(claim.get("value", 0))
        text = f"{quantity} {plus_minus(*mean_and_spread([value + shift for value in values]))}"
    return Verdict(str(claim["says"]), text, confirmed, len(found))


def _statistic(kind: str, quantity: str, claim: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> float:
    if kind in ("rises", "falls"):
        along = str(claim["along"])
        means = {place: _mean(quantity, members) for (place,), members in grouped(rows, [along]).items()}
        numbers = [float(place) if isinstance(place, int | float) else float(i) for i, place in enumerate(means)]
        return rank_correlation(numbers, list(means.values()))
    if kind in ("above", "below"):
        return _mean(quantity, rows) - float(claim.get("value", 0))
    than = claim["than"]
    if isinstance(than, str):
        return _mean(quantity, matching(rows, claim.get("of", {}))) - _mean(than, matching(rows, claim.get("of", {})))
    return _mean(quantity, matching(rows, claim.get("of", {}))) - _mean(quantity, matching(rows, than))


def matching(records: Sequence[Mapping[str, Any]], where: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the records that have the values of `where`; a list there means one of its values."""
    return [
        record
        for record in records
        if all(
            record.get(key) in value if isinstance(value, list) else record.get(key) == value
            for key, value in where.items()
        )
    ]


def _mean(quantity: str, rows: Sequence[Mapping[str, Any]]) -> float:
    if rows and quantity not in rows[0]:
        raise ValueError(f"claim is about {quantity!r}; expected one of {', '.join(rows[0])}")
    return fmean(float(row[quantity]) for row in rows) if rows else math.nan


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Returns Spearman's rank correlation, ties with their mean rank; NaN where one of both does not vary.

    >>> rank_correlation([1, 2, 3], [10, 30, 20])
    0.5
    """
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if not (math.isnan(a) or math.isnan(b))]
    if len(pairs) < 2:
        return math.nan
    a, b = (_ranks([pair[i] for pair in pairs]) for i in (0, 1))
    mean_a, mean_b = fmean(a), fmean(b)
    spread = math.sqrt(sum((u - mean_a) ** 2 for u in a) * sum((v - mean_b) ** 2 for v in b))
    return sum((u - mean_a) * (v - mean_b) for u, v in zip(a, b, strict=True)) / spread if spread else math.nan


def _ranks(values: Sequence[float]) -> list[float]:
    return [sum(other < value for other in values) + (values.count(value) - 1) / 2 for value in values]

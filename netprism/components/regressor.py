"""How well a network's accuracy or loss follows from its reliable and unreliable components: a linear regression.

A network is eight numbers, for l = 4, 7, 13, 25,

    Var[new reliable]/Var[f],    new reliable   = Phi^(l),reli   - Phi^(l'),reli,
    Var[new unreliable]/Var[f],  new unreliable = Phi^(l),unreli - Phi^(l'),unreli,

l' the next shallower order (at the first one, nothing is subtracted). `netprism.lightning_modules.ReliableDisentangler`
writes the table that holds them.

Source: "Disentanglement, Visualization and Analysis of Complex Features in DNNs", appendix K, table 2, figure 18.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import ShuffleSplit, cross_val_score

Floats = NDArray[np.float64]

ORDERS = (4, 7, 13, 25)


@dataclass(frozen=True)
class CrossValidation:
    """How far a regression is off on networks that it has not seen, in the unit of what it predicts.

    Attributes:
        error: mean absolute error over all splits.
        spread: standard deviation of a split's mean absolute error.
        lowest: of the values that were to be predicted, over all networks.
        highest: likewise.
    """

    error: float
    spread: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Plane:
    """Networks as points of a plane, and the regression over it.

    Attributes:
        points: `(n, 2)`, the two first principal components of the networks' numbers.
        explained: share of the numbers' variance that each of the two has.
        slopes: `(2,)` of the regression.
        intercept: its value at the origin, the mean of what is predicted.
    """

    points: Floats
    explained: Floats
    slopes: Floats
    intercept: float


def component_ratios(rows: Sequence[Mapping[str, Any]], orders: Sequence[int] = ORDERS) -> Floats:
    """The numbers of one network: Var[new reliable]/Var[f] of all orders, then Var[new unreliable]/Var[f] of all.

    Args:
        rows: one for each order, or more: `order`, `var_feature`, `var_reliable_component`, `var_unreliable_component`,
            numbers or what `float` takes (a `csv.DictReader`'s rows). Variances in any unit that they share.
        orders: which to take.

    Returns:
        `(2 * len(orders),)`, >= 0.

    Raises:
        ValueError: an order without a row or with two, a feature without variance, a number that is not finite.

    Example:
        >>> row = {"order": 4, "var_feature": 2, "var_reliable_component": 1.5, "var_unreliable_component": 0.5}
        >>> component_ratios([row], orders=(4,)).tolist()
        [0.75, 0.25]
    """
    by_order = {int(row["order"]): row for row in rows}
    if len(by_order) < len(rows):
        raise ValueError(f"orders {[int(row['order']) for row in rows]} repeat: give the rows of one network at a time")
    missing = [order for order in orders if order not in by_order]
    if missing:
        raise ValueError(f"no row of order {missing[0]}; there are {', '.join(map(str, by_order)) or 'none'}")
    ratios = []
    for part in ("reliable", "unreliable"):
        for order in orders:
            whole = float(by_order[order]["var_feature"])
            if not whole > 0:
                raise ValueError(f"var_feature is {whole} at order {order}; expected a variance > 0")
            ratios.append(float(by_order[order][f"var_{part}_component"]) / whole)
    return _finite(np.array(ratios), "the ratios of a network")


def cross_validate(
    ratios: ArrayLike, performance: ArrayLike, splits: int = 1000, test_share: float = 0.2, seed: int = 0
) -> CrossValidation:
    """Mean absolute error of a linear regression with an intercept, fitted on random parts of the networks.

    Cost: one least-squares fit a split; 1000 of them took 1.6 s on one core.

    Args:
        ratios: `(n, features)`, a row a network (`component_ratios`), or any other numbers to compare with.
        performance: `(n,)`, accuracy or loss.
        splits: how many random ones.
        test_share: the share of the networks that is predicted.
        seed: of the splits.

    Raises:
        ValueError: other shapes, fewer networks than the regression has unknowns, numbers that are not finite.
    """
    x, y = _checked(ratios, performance)
    shuffle = ShuffleSplit(splits, test_size=test_share, random_state=seed)
    seen = len(next(shuffle.split(x))[0])
    if seen <= x.shape[1]:
        raise ValueError(f"{seen} networks to fit {x.shape[1] + 1} unknowns: there must be as many or more")
    errors = -cross_val_score(LinearRegression(), x, y, cv=shuffle, scoring="neg_mean_absolute_error")
    return CrossValidation(float(errors.mean()), float(errors.std()), float(y.min()), float(y.max()))


def fit_plane(ratios: ArrayLike, performance: ArrayLike) -> Plane:
    """Networks in the plane of their two principal components, and the linear regression over it.

    Args:
        ratios: `(n, features)`, two or more features.
        performance: `(n,)`.

    Raises:
        ValueError: other shapes, numbers that are not finite.
    """
    x, y = _checked(ratios, performance)
    pca = PCA(n_components=2, svd_solver="full")  # full: nothing random
    points = pca.fit_transform(x)
    fitted = LinearRegression().fit(points, y)
    return Plane(points, pca.explained_variance_ratio_, fitted.coef_, float(fitted.intercept_))


def _checked(ratios: ArrayLike, performance: ArrayLike) -> tuple[Floats, Floats]:
    x, y = np.asarray(ratios, dtype=np.float64), np.asarray(performance, dtype=np.float64)
    if x.ndim != 2 or y.shape != (len(x),):
        raise ValueError(f"shapes are {x.shape} and {y.shape}; expected (networks, features) and (networks,)")
    return _finite(x, "the ratios"), _finite(y, "the performance")


def _finite(values: Floats, what: str) -> Floats:
    if not np.isfinite(values).all():
        raise ValueError(f"{what} have values that are not finite: {values[~np.isfinite(values)][0]}")
    return values

"""How well a network's accuracy or loss follows from its reliable and unreliable components: a linear regression.

A network is described by eight numbers, for l = 4, 7, 13, 25,

    Var[new reliable]/Var[f],    new reliable   = Phi^(l),reli   - Phi^(l'),reli,
    Var[new unreliable]/Var[f],  new unreliable = Phi^(l),unreli - Phi^(l'),unreli,

with l' the next shallower order (at the first one, nothing is subtracted).
`netprism.lightning_modules.ReliableDisentangler` writes the table that holds them.

Source: Ren et al. 2020, appendix K, tables 2 and 3, figure 18, https://arxiv.org/abs/2006.15920.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GroupShuffleSplit, ShuffleSplit

from netprism.checks import check_number
from netprism.components.disentangler import FEW_ORDERS

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class CrossValidation:
    """The errors of a regression on networks that it has not seen, in the unit of what it predicts.

    Attributes:
        error: Mean absolute error over all random divisions of the networks.
        spread: Standard deviation of the mean absolute error of one division.
        lowest: Lowest of the values that were to be predicted, over all networks.
        highest: Highest of these values.
        weights: Weight of each number, mean over the divisions: alpha of the reliable parts, then beta of the others.
        weight_spreads: Standard deviation of each weight over the divisions. They share most of their networks, so that
            other networks would change the weights by more.
        intercept: Value where all numbers are 0, mean over the divisions.
    """

    error: float
    spread: float
    lowest: float
    highest: float
    weights: tuple[float, ...]
    weight_spreads: tuple[float, ...]
    intercept: float


@dataclass(frozen=True)
class Plane:
    """Networks as points of a plane, and the regression over it.

    Attributes:
        points: Array `(n, 2)`, the first two principal components of the networks' numbers.
        explained: Fraction of the numbers' variance that each of the two has.
        slopes: Array `(2,)`, the slopes of the regression.
        intercept: Value of the regression at the origin, the mean of what is predicted.
    """

    points: Floats
    explained: Floats
    slopes: Floats
    intercept: float


def component_ratios(rows: Sequence[Mapping[str, Any]], orders: Sequence[int] = FEW_ORDERS) -> Floats:
    """Returns the numbers of one network: Var[new reliable]/Var[f] of all orders, then Var[new unreliable]/Var[f].

    Args:
        rows: A row for each order, or for more: `order`, `var_feature`, `var_reliable_component`,
            `var_unreliable_component`, as numbers or what `float` takes (the rows of a `csv.DictReader`). The variances
            have any unit that they share.
        orders: The orders to take.

    Returns:
        `(2 * len(orders),)`, >= 0.

    Raises:
        ValueError: An order has no row or two, a feature has no variance, or a number is not finite.

    Example:
        >>> row = {"order": 4, "var_feature": 2, "var_reliable_component": 1.5, "var_unreliable_component": 0.5}
        >>> component_ratios([row], orders=(4,)).tolist()
        [0.75, 0.25]
    """
    by_order = {int(row["order"]): row for row in rows}
    if len(by_order) < len(rows):
        raise ValueError(f"orders are {[int(row['order']) for row in rows]}; expected each once, of one network")
    missing = [order for order in orders if order not in by_order]
    if missing:
        raise ValueError(f"order {missing[0]} has no row; there are {', '.join(map(str, by_order)) or 'none'}")
    ratios = []
    for part in ("reliable", "unreliable"):
        for order in orders:
            whole = float(by_order[order]["var_feature"])
            if not whole > 0:
                raise ValueError(f"var_feature is {whole} at order {order}; expected a variance > 0")
            ratios.append(float(by_order[order][f"var_{part}_component"]) / whole)
    return _finite(np.array(ratios), "the ratios of a network")


def cross_validate(
    ratios: ArrayLike,
    performance: ArrayLike,
    repeats: int = 1000,
    test_fraction: float = 0.2,
    seed: int = 0,
    groups: Sequence[Hashable] | None = None,
) -> CrossValidation:
    """Returns the error of a linear regression with an intercept, fitted on random parts of the networks.

    Cost: one least-squares fit per repeat; 1000 of them took .2 s on one core.

    Args:
        ratios: Array `(n, features)`, a row per network (`component_ratios`), or any other numbers to compare with.
        performance: Array `(n,)`, accuracy or loss.
        repeats: Number of random divisions of the networks.
        test_fraction: Fraction of the networks, or of the groups, that is predicted.
        seed: Seed of the divisions.
        groups: The n groups of the networks. A group is predicted as a whole: with the seeds of one setting in a group,
            no network is predicted from one that differs by its initial weights alone. None divides the networks.

    Raises:
        ValueError: The shapes do not fit, there are fewer networks than the regression has unknowns, or a number is not
            finite.
    """
    x, y = _checked(ratios, performance)
    check_number("repeats", repeats, least=1)
    number: NDArray[np.int64] | None = None
    if groups is not None:
        if len(groups) != len(y):
            raise ValueError(f"the number of groups is {len(groups)}; expected {len(y)}, one per network")
        known = list(dict.fromkeys(groups))
        number = np.array([known.index(group) for group in groups])
    kind = ShuffleSplit if groups is None else GroupShuffleSplit
    parts = list(kind(repeats, test_size=test_fraction, random_state=seed).split(x, y, number))
    seen = min(len(part) for part, _ in parts)
    if seen <= x.shape[1]:
        raise ValueError(f"the number of networks to fit is {seen}; expected {x.shape[1] + 1} or more, one per unknown")
    errors, weights, intercepts = np.empty(repeats), np.empty((repeats, x.shape[1])), np.empty(repeats)
    for i, (fitted, predicted) in enumerate(parts):
        weights[i], intercepts[i] = _fit(x[fitted], y[fitted])
        errors[i] = np.abs(x[predicted] @ weights[i] + intercepts[i] - y[predicted]).mean()
    return CrossValidation(
        float(errors.mean()),
        float(errors.std()),
        float(y.min()),
        float(y.max()),
        tuple(weights.mean(axis=0).tolist()),
        tuple(weights.std(axis=0).tolist()),
        float(intercepts.mean()),
    )


def predict_performance(ratios: ArrayLike, performance: ArrayLike, others: ArrayLike) -> Floats:
    """Returns the performance of other networks, predicted by a linear regression with an intercept; not clipped.

    Args:
        ratios: Array `(n, features)` of the networks that the regression is fitted on. Where these leave a weight open,
            as a feature that does not vary does, it is the smallest one.
        performance: Array `(n,)`, accuracy or loss of these.
        others: Array `(m, features)` of the networks to predict.

    Returns:
        `(m,)`.

    Raises:
        ValueError: The shapes do not fit, there are fewer networks than the regression has unknowns, or a number is not
            finite.

    Source: Ren et al. 2020, appendix K, table 3, https://arxiv.org/abs/2006.15920.

    Example:
        >>> round(predict_performance([[0.0], [1.0]], [0.5, 0.75], [[3.0]]).item(), 3)
        1.25
    """
    x, y = _checked(ratios, performance)
    new = _finite(np.asarray(others, dtype=np.float64), "the ratios")
    if new.ndim != 2 or new.shape[1] != x.shape[1]:
        raise ValueError(f"others has the shape {new.shape}; expected (networks, {x.shape[1]})")
    if len(y) <= x.shape[1]:
        raise ValueError(
            f"the number of networks to fit is {len(y)}; expected {x.shape[1] + 1} or more, one per unknown"
        )
    weights, intercept = _fit(x, y)
    predicted: Floats = new @ weights + intercept
    return predicted


def fit_plane(ratios: ArrayLike, performance: ArrayLike) -> Plane:
    """Returns networks in the plane of their first two principal components, and the linear regression over it.

    Args:
        ratios: Array `(n, features)`, two or more features.
        performance: Array `(n,)`.

    Raises:
        ValueError: The shapes do not fit, or a number is not finite.
    """
    x, y = _checked(ratios, performance)
    pca = PCA(n_components=2, svd_solver="full")  # full: nothing random
    points = pca.fit_transform(x)
    fitted = LinearRegression().fit(points, y)
    return Plane(points, pca.explained_variance_ratio_, fitted.coef_, float(fitted.intercept_))


def _fit(x: Floats, y: Floats) -> tuple[Floats, float]:
    mean_x, mean_y = x.mean(axis=0), y.mean()
    weights: Floats = np.linalg.lstsq(x - mean_x, y - mean_y, rcond=None)[0]
    return weights, float(mean_y - mean_x @ weights)


def _checked(ratios: ArrayLike, performance: ArrayLike) -> tuple[Floats, Floats]:
    x, y = np.asarray(ratios, dtype=np.float64), np.asarray(performance, dtype=np.float64)
    if x.ndim != 2 or y.shape != (len(x),):
        raise ValueError(f"shapes are {x.shape} and {y.shape}; expected (networks, features) and (networks,)")
    return _finite(x, "the ratios"), _finite(y, "accuracies or losses")


def _finite(values: Floats, what: str) -> Floats:
    if not np.isfinite(values).all():
        raise ValueError(f"{what} have the value {values[~np.isfinite(values)][0]}; expected finite numbers")
    return values

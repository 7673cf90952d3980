"""How well accuracy and loss follow from the components of the networks of a study, beside what is known without them.

A record is of a network and an order: `label`, `seed` and `train samples` of the network, `order`, `reliable` and
`unreliable`, as `netprism.studies.measures.reliable_components` measures them, `accuracy`, `loss`, and `train accuracy`
where that is known.

Source: Ren et al. 2020, appendix K, tables 2 and 3, figure 18, https://arxiv.org/abs/2006.15920.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from netprism.components.regressor import Floats, component_ratios, cross_validate, fit_plane
from netprism.studies.table import grouped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Records = Sequence[Mapping[str, Any]]
Rows = list[dict[str, Any]]
NEEDED = ("label", "train samples", "order", "reliable", "unreliable", "accuracy", "loss")


@dataclass(frozen=True)
class Networks:
    """The n networks of a study.

    Attributes:
        orders: The L orders.
        ratios: Array `(n, 2 L)` of `netprism.components.component_ratios`.
        labels: Their architectures.
        settings: Architecture and number of training images; networks of one setting differ by their seeds.
        known: {what: array (n, k)}, numbers that need no components.
        performance: {accuracy or loss: array (n,)}.
    """

    orders: list[int]
    ratios: Floats
    labels: list[str]
    settings: list[tuple[str, float]]
    known: dict[str, Floats]
    performance: dict[str, Floats]

    @classmethod
    def of(cls, records: Records) -> Networks:
        """Collects the records of each network.

        Raises:
            ValueError: A column is not there, or an order of a network.
        """
        if missing := [name for name in NEEDED if not records or name not in records[0]]:
            raise ValueError(f"the records have no {missing[0]!r}; expected {', '.join(NEEDED)}, and seed")
        networks = list(grouped(records, ["label", "train samples", "seed"]).values())
        orders = sorted({int(record["order"]) for record in records})
        rows = [
            [
                {
                    "order": record["order"],
                    "var_feature": 1,
                    **{f"var_{part}_component": record[part] for part in ("reliable", "unreliable")},
                }
                for record in network
            ]
            for network in networks
        ]

        def column(name: str) -> Floats:
            return np.array([float(network[0][name]) for network in networks])

        known = {"log training images": np.log(column("train samples"))[:, None]}
        if "train accuracy" in records[0]:
            known["training accuracy"] = column("train accuracy")[:, None]
        return cls(
            orders,
            np.array([component_ratios(network, orders) for network in rows]),
            [str(network[0]["label"]) for network in networks],
            [(str(network[0]["label"]), float(network[0]["train samples"])) for network in networks],
            known | {"nothing: the mean of the others": np.zeros((len(networks), 1))},
            {name: column(name) for name in ("accuracy", "loss")},
        )


def tables(records: Records, repeats: int = 1000) -> dict[str, Rows]:
    """Returns the errors of the regressions and the weights of the one from all numbers.

    Cost: 7 CPU seconds for 1000 divisions and 36 networks.

    Args:
        records: As above.
        repeats: Number of random divisions of the networks, four fifths to fit and one fifth to predict.

    Returns:
        `regressor`: a row per set of numbers; mean absolute error of accuracy and of loss, nats, and its standard
        deviation over the divisions, of single networks ("network") and of settings with all their seeds ("setting").
        `weights`: a row per number, with mean and standard deviation of its weight over divisions of settings.

    Raises:
        ValueError: There are too few networks, or the records have not what is needed.
    """
    of = Networks.of(records)
    half = len(of.orders)
    sets = {
        f"the {2 * half} numbers": of.ratios,
        f"the {half} reliable ones": of.ratios[:, :half],
        f"the {half} unreliable ones": of.ratios[:, half:],
        **of.known,
        f"log training images and the {2 * half}": np.hstack([of.known["log training images"], of.ratios]),
    }
    divided = (
        {"network": None, "setting": of.settings} if len(set(of.settings)) < len(of.settings) else {"network": None}
    )
    errors: Rows = []
    for name, numbers in sets.items():
        row: dict[str, Any] = {"from": name}
        for what, performance in of.performance.items():
            for new, groups in divided.items():
                found = cross_validate(numbers, performance, repeats, groups=groups)
                row |= {f"{what}, new {new}": found.error, f"{what}, new {new} sd": found.spread}
        errors.append(row)
    weights: Rows = [
        {"number": f"{part}, order {order}", "symbol": f"{symbol}_{order}"}
        for part, symbol in (("reliable", "alpha"), ("unreliable", "beta"))
        for order in of.orders
    ]
    for what, performance in of.performance.items():
        found = cross_validate(of.ratios, performance, repeats, groups=divided.get("setting"))
        for row, weight, spread in zip(weights, found.weights, found.weight_spreads, strict=True):
            row |= {what: weight, f"{what} sd": spread}
    return {"regressor": errors, "weights": weights}


def planes(records: Records, folders: Sequence[Path] = ()) -> dict[str, Figure]:
    """Returns the figure of accuracy over the plane of the numbers' two principal components.

    Args:
        records: As above.
        folders: Folders of the runs; not used.
    """
    from netprism.figures.regressor import regression_plane

    of = Networks.of(records)
    accuracy = of.performance["accuracy"]
    what = "test accuracy, %" if accuracy.max() > 1 else "test accuracy"  # published ones are in per cent
    return {"regressor": regression_plane(fit_plane(of.ratios, accuracy), accuracy.tolist(), of.labels, what)}

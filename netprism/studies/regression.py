"""How well accuracy and loss follow from the components of the networks of a study, beside what is known without them.

A record is of a network and an order: `label`, `seed` and `train samples` of the network, `order`, `reliable` and
`unreliable`, as `netprism.studies.measures.reliable_components` measures them, `accuracy`, `loss`, and `train accuracy`
where that is known. A network with the label `A, compressed` was made from the one with the label `A`, of the same seed
and number of images.

Source: Ren et al. 2020, appendix K, tables 2 and 3, figure 18, https://arxiv.org/abs/2006.15920.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from netprism.components.regressor import Floats, component_ratios, cross_validate, fit_plane, predict_performance
from netprism.studies.table import grouped, mean_and_spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Records = Sequence[Mapping[str, Any]]
Rows = list[dict[str, Any]]
COMPRESSED = ", compressed"
NEEDED = ("label", "train samples", "order", "reliable", "unreliable", "accuracy", "loss")


@dataclass(frozen=True)
class Networks:
    """The n networks of a study.

    Attributes:
        orders: The L orders.
        ratios: Array `(n, 2 L)` of `netprism.components.component_ratios`.
        labels: Their architectures.
        settings: Architecture and number of training images; networks of one setting differ by their seeds.
        seeds: Their seeds.
        known: {what: array (n, k)}, numbers that need no components.
        performance: {accuracy or loss: array (n,)}.
    """

    orders: list[int]
    ratios: Floats
    labels: list[str]
    settings: list[tuple[str, float]]
    seeds: list[Any]
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
            [network[0].get("seed") for network in networks],
            known | {"nothing: the mean of the others": np.zeros((len(networks), 1))},
            {name: column(name) for name in ("accuracy", "loss")},
        )

    def sets(self) -> dict[str, Floats]:
        """Returns {words: array (n, k)}: all numbers, halves of them, and what is known without them."""
        half = len(self.orders)
        return {
            f"the {2 * half} numbers": self.ratios,
            f"the {half} reliable ones": self.ratios[:, :half],
            f"the {half} unreliable ones": self.ratios[:, half:],
            **self.known,
            f"log training images and the {2 * half}": np.hstack([self.known["log training images"], self.ratios]),
        }


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
    divided = (
        {"network": None, "setting": of.settings} if len(set(of.settings)) < len(of.settings) else {"network": None}
    )
    errors: Rows = []
    for name, numbers in of.sets().items():
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


@dataclass(frozen=True)
class Predictions:
    """Compressed networks, predicted by regressions over the uncompressed ones.

    Attributes:
        of: All networks.
        compressed: Positions of the m compressed ones.
        originals: Positions of the networks that these were made from.
        fitted: Positions of the uncompressed ones.
        known: {numbers: {accuracy or loss: array (m,)}}, fitted on all uncompressed networks.
        new: The same, fitted on those of other settings, so that no seed of the original is among them.
    """

    of: Networks
    compressed: list[int]
    originals: list[int]
    fitted: list[int]
    known: dict[str, dict[str, Floats]]
    new: dict[str, dict[str, Floats]]

    @classmethod
    def over(cls, of: Networks) -> Predictions:
        """Predicts the compressed ones among networks.

        Raises:
            ValueError: None is compressed, or the original of one is not there.
        """
        place = {(*setting, seed): i for i, (setting, seed) in enumerate(zip(of.settings, of.seeds, strict=True))}
        compressed = [i for i, label in enumerate(of.labels) if label.endswith(COMPRESSED)]
        if not compressed:
            raise ValueError(f"no label ends with {COMPRESSED!r}; expected networks that are compressed")
        fitted = [i for i in range(len(of.labels)) if i not in compressed]
        originals = []
        for i in compressed:
            label, samples = of.settings[i][0].removesuffix(COMPRESSED), of.settings[i][1]
            if (label, samples, of.seeds[i]) not in place:
                raise ValueError(f"{of.labels[i]!r} of {samples:g} images and seed {of.seeds[i]} has no original; "
                                 f"expected one with the label {label!r}")  # fmt: skip
            originals.append(place[label, samples, of.seeds[i]])
        known: dict[str, dict[str, Floats]] = {}
        new: dict[str, dict[str, Floats]] = {}
        for name, x in of.sets().items():
            known[name], new[name] = {}, {}
            for what, y in of.performance.items():
                known[name][what] = predict_performance(x[fitted], y[fitted], x[compressed])
                others = [[j for j in fitted if of.settings[j] != of.settings[i]] for i in originals]
                new[name][what] = np.array(
                    [predict_performance(x[o], y[o], x[[i]])[0] for o, i in zip(others, compressed, strict=True)]
                )
        before = {what: y[originals] for what, y in of.performance.items()}
        known["what it was before compression"] = new["what it was before compression"] = before
        return cls(of, compressed, originals, fitted, known, new)


def compressed(records: Records) -> dict[str, Rows]:
    """Returns accuracy and loss of compressed networks as the regression over the uncompressed ones predicts them.

    Args:
        records: As above; some labels end with ", compressed".

    Returns:
        `predicted`: a row per setting, with what was measured before and after compression, the prediction from all
        component numbers, fitted on all uncompressed networks, and its error with its sign; mean and standard deviation
        over the seeds. `errors`: a row per set of numbers, with the mean absolute error over the compressed networks of
        a seed, its mean and standard deviation over the seeds; "known setting" is fitted on all uncompressed networks,
        "new setting" without those of the setting that is predicted.

    Raises:
        ValueError: There are too few networks, none is compressed or one has no original, or the records have not what
            is needed.

    Source: Ren et al. 2020, appendix K, table 3, https://arxiv.org/abs/2006.15920.
    """
    found = Predictions.over(Networks.of(records))
    of, places = found.of, np.array(found.compressed)
    all_numbers = next(iter(found.known.values()))
    groups: dict[tuple[str, float], list[int]] = {}
    for i, place in enumerate(found.compressed):
        groups.setdefault(of.settings[place], []).append(i)
    rows: Rows = []
    for (label, samples), members in groups.items():
        row: dict[str, Any] = {"network": label.removesuffix(COMPRESSED), "training images": int(samples)}
        for what, y in of.performance.items():
            before, after = y[found.originals][members], y[places[members]]
            made = all_numbers[what][members]
            for name, values in (("before", before), ("after", after), ("predicted", made), ("error", made - after)):
                row[f"{what} {name}"], row[f"{what} {name} sd"] = mean_and_spread(values.tolist())
        rows.append(row)
    seeds = [of.seeds[place] for place in found.compressed]
    errors: Rows = []
    for name in found.known:
        row = {"from": name}
        for what, y in of.performance.items():
            for kind, predictions in (("known", found.known), ("new", found.new)):
                wrong = np.abs(predictions[name][what] - y[places])
                means = [float(wrong[[s == seed for s in seeds]].mean()) for seed in dict.fromkeys(seeds)]
                row[f"{what}, {kind} setting"], row[f"{what}, {kind} setting sd"] = mean_and_spread(means)
        errors.append(row)
    return {"predicted": rows, "errors": errors}


def predictions(records: Records, folders: Sequence[Path] = ()) -> dict[str, Figure]:
    """Returns the figure of predicted over measured accuracy and loss, of compressed and of uncompressed networks.

    Args:
        records: As above; some labels end with ", compressed".
        folders: Folders of the runs; not used.
    """
    from netprism.figures.regressor import predicted_performance

    found = Predictions.over(Networks.of(records))
    of = found.of
    all_numbers = next(iter(found.known.values()))
    panels = {}
    for what, y in of.performance.items():
        own = predict_performance(of.ratios[found.fitted], y[found.fitted], of.ratios[found.fitted])
        panels[what if what == "accuracy" else f"{what}, nats"] = {
            "uncompressed, fitted": (y[found.fitted], own),
            "compressed, predicted": (y[found.compressed], all_numbers[what]),
        }
    return {"predicted": predicted_performance(panels)}

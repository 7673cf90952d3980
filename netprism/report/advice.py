"""What of a run needs the eye of its user, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from netprism.report.run import Run, Series
from netprism.report.words import split_key

SATURATED = 0.9  # H / log2 n: nearly all images differ, the estimate has reached its ceiling
COLLAPSED = 0.01  # bits: a layer whose gates are the same for all images


def warnings(run: Run, ended: bool | None = None) -> list[str]:
    """Returns sentences about a run, each with what to do; an empty list where there is nothing to say.

    Args:
        run: The run.
        ended: Whether the training has ended well; None for what its folder says.
    """
    found = faults(run.curves, run.settings)
    if not run.curves:
        found.insert(0, "Nothing was logged: the run ended before its first epoch.")
    if not (run.is_finished if ended is None else ended):
        found.insert(0, f"The training did not end. Continue it with: make resume RUN={run.path}")
    return found


def faults(curves: Mapping[str, Series], settings: Mapping[str, Any]) -> list[str]:
    """Returns sentences about numbers over epochs, each with what to do.

    Args:
        curves: {key: {epoch: value}}.
        settings: Config as {dotted name: value}, for the number of classes.
    """
    return [*_numbers(curves), *_layers(curves, settings)]


def _numbers(curves: Mapping[str, Series]) -> Iterator[str]:
    for key, series in curves.items():
        quantity, layer = split_key(key)
        last = _last(series)
        missing = [epoch for epoch, value in series.items() if not math.isfinite(value)]
        if missing and not quantity.startswith(("knowledge/ratio", "knowledge/strength")):
            yield f"{key} is NaN or infinite in epoch {_listed(missing)}: lower the learning rate, or clip gradients."
        if key == "penalty/nonfinite_skips" and last > 0:
            yield f"The complexity loss left out a layer {last:g} times, as not finite: lower its weight."
        if quantity.endswith("gates/saturation") and not layer and last > SATURATED:
            yield (
                f"The entropy is at {last:.0%} of what this number of images can show: differences are compressed. "
                "Raise num_images of GatingEntropy."
            )
        if quantity == "penalty/acceptance" and last < 0.05:
            yield f"The sampler of {layer} accepts {last:.0%} of its proposals: its gradients mean little."


def _layers(curves: Mapping[str, Series], settings: Mapping[str, Any]) -> Iterator[str]:
    flat = [k for k, s in curves.items() if k.startswith("gates/entropy/") and _last(s) < COLLAPSED]
    if flat:
        names = ", ".join(split_key(key)[1] for key in flat)
        yield f"All images open the same gates in {names}: the layer is dead or linear for these images."
    worse = [k for k, s in curves.items() if k.startswith("components/unexplained/") and _last(s) > 1]
    if worse:
        yield (
            f"Disentangler nets explain less than a constant ({', '.join(worse)}): raise steps of FeatureComponents; "
            "significance and contribution mean nothing there."
        )
    classes = settings.get("model.num_classes")
    chance = [
        split_key(k)[1]
        for k, s in curves.items()
        if k.startswith("knowledge/ratio/") and isinstance(classes, int) and _last(s) <= 1 / classes
    ]
    if chance:
        yield f"Knowledge points of {', '.join(chance)} are right no more often than chance, 1/{classes}."


def _last(series: Series) -> float:
    """The last finite value, NaN where there is none (which no comparison takes)."""
    return next((value for value in reversed(series.values()) if math.isfinite(value)), math.nan)


def _listed(epochs: list[int]) -> str:
    shown = ", ".join(map(str, epochs[:3]))
    return shown if len(epochs) <= 3 else f"{shown}, ... ({len(epochs)} in all)"

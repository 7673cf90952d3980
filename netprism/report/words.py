"""What the logged keys mean, in words that need no paper: the headline of a run comes first."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Meaning:
    """What a quantity says.

    Attributes:
        text: One sentence.
        unit: Its unit; empty for a fraction.
        headline: Whether it belongs to the few numbers that are shown first.
    """

    text: str
    unit: str = ""
    headline: bool = False


_MEANINGS = {
    "accuracy": Meaning("Fraction of the images that are classified correctly.", "", True),
    "loss": Meaning("Loss of the task; lower is better.", "nats", True),
    "gates/entropy": Meaning("Clusters that the gates make of these images, counted softly: 2^H.", "bits", True),
    "gates/saturation": Meaning("The entropy as a fraction of the most that this number of images can show."),
    "gates/suffix_entropy": Meaning("Entropy of the gates of this layer and of all behind it.", "bits"),
    "gates/input_information": Meaning("What the gates tell of the input.", "bits"),
    "gates/class_information": Meaning("What the gates tell of the class.", "bits", True),
    "gates/suffix_class_information": Meaning("What gates from this layer on tell of the class.", "bits"),
    "gates/marginal_entropy": Meaning("Entropy of independent gates that are open as often.", "bits"),
    "gates/total_correlation": Meaning("How far gates are from independent, smoothed by the kernel.", "bits"),
    "gates/conditional_total_correlation": Meaning("The same among images of one class.", "bits"),
    "discarding/SID": Meaning("How much a pixel may change before the layer reacts: more is discarded.", "nats", True),
    "discarding/unseen": Meaning("Fraction of the pixels on which the layer does not depend."),
    "discarding/RU": Meaning("How uncertain the input stays when it is reconstructed from the layer.", "nats"),
    "discarding/concentration": Meaning("How much more is discarded of the background than of the object.", "nats"),
    "knowledge/points": Meaning("Regions of an image that decide for a class by themselves.", "regions"),
    "knowledge/reliable": Meaning("Regions that decide for the right class by themselves.", "regions"),
    "knowledge/ratio": Meaning("Fraction of the deciding regions that decide for the right class.", "", True),
    "knowledge/strength_uncertainty_corr": Meaning("Correlation of a feature's strength with the output's entropy."),
    "components/significance": Meaning("Fraction of the feature's variance that this order makes.", "", True),
    "components/unexplained": Meaning("Fraction of the feature that nets of this order leave unexplained."),
    "components/contribution": Meaning("What the component contributes to a lower task loss.", "nats"),
    "components/effectiveness": Meaning("Contribution per unit of the component's strength.", "nats per unit"),
    "components/overfitting": Meaning("Fraction of the contribution that test images do not see."),
    "attack/accuracy": Meaning("Fraction of the images that are classified correctly under attack.", "", True),
    "attack/clean_accuracy": Meaning("The same of the same images without the attack."),
    "attack/cosine": Meaning("Cosine between regional features before and after the attack.", "", True),
    "attack/strength": Meaning("Relative change of the strength of regional features under attack."),
    "attack/redirected": Meaning("Regions that decide for another class after the attack.", "regions"),
    "attack/damaged": Meaning("The same, by way of a step where they decide for none.", "regions"),
    "attack/created": Meaning("Regions that decide for a class only after the attack.", "regions"),
    "attack/lost": Meaning("Regions that decide for no class any more after the attack.", "regions"),
    "agreement": Meaning("Fraction of the images that student and teacher give the same class.", "", True),
    "val/unexplained": Meaning("Fraction of the teacher's feature that the student leaves unexplained.", "", True),
    "val/significance": Meaning("Fraction of the feature's variance that this order makes.", "", True),
    "reliability": Meaning("Fraction of the component that networks of other seeds have learned as well.", "", True),
    "penalty/complexity": Meaning("What the complexity loss lowers, up to a constant that drifts.", "nats", True),
    "penalty/train_test_gap": Meaning("Test loss minus training loss.", "nats", True),
}
_UNKNOWN = Meaning("")


def split_key(key: str) -> tuple[str, str]:
    """Returns the quantity of a key and its layer or order, which may be "".

    Example:
        >>> split_key("gates/test/entropy/layer1.0.relu"), split_key("val/accuracy")
        (('gates/test/entropy', 'layer1.0.relu'), ('val/accuracy', ''))
    """
    parts = key.split("/")
    depth = 3 if len(parts) > 2 and parts[1] == "test" else 2
    return "/".join(parts[:depth]), "/".join(parts[depth:])


def meaning(key: str) -> Meaning:
    """Returns what a key says; an empty text where nothing is known of it."""
    quantity = split_key(key)[0].replace("/test/", "/")
    for name in (quantity, quantity.rpartition("/")[2], quantity.partition("/")[0]):
        if name in _MEANINGS:
            return _MEANINGS[name]
    plain = quantity.rpartition("/")[2].removeprefix("train_").removeprefix("val_").removeprefix("test_")
    return _MEANINGS.get(plain.removesuffix("_epoch"), _UNKNOWN)


def is_headline(key: str) -> bool:
    """Returns whether a key, of a whole network or of a layer, belongs to those that are shown first."""
    return meaning(key).headline


def headlines(keys: list[str]) -> list[str]:
    """Returns the keys to show first: whole networks' before those of the first and the last layer."""
    chosen: dict[str, list[str]] = {}
    for key in filter(is_headline, keys):
        chosen.setdefault(split_key(key)[0], []).append(key)
    found: list[str] = []
    for quantity, own in chosen.items():
        found += [quantity] if quantity in own else dict.fromkeys((own[0], own[-1]))
    return found

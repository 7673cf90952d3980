"""netprism: shows what a network has learned while it learns it.

The names below are loaded when they are first used, so that `import netprism` takes milliseconds and no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from netprism.analysis import Analysis as Analysis
    from netprism.analysis import analyze as analyze
    from netprism.callbacks import ComplexityPenalty as ComplexityPenalty
    from netprism.callbacks import ExactResume as ExactResume
    from netprism.callbacks import FeatureComponents as FeatureComponents
    from netprism.callbacks import GatingEntropy as GatingEntropy
    from netprism.callbacks import InformationDiscarding as InformationDiscarding
    from netprism.callbacks import KnowledgePoints as KnowledgePoints
    from netprism.components import shapley_values as shapley_values
    from netprism.components import significance as significance
    from netprism.discarding import concentration as concentration
    from netprism.discarding import reconstruction_uncertainty as reconstruction_uncertainty
    from netprism.discarding import strict_information_discarding as strict_information_discarding
    from netprism.gates import ComplexityLoss as ComplexityLoss
    from netprism.gates import record_gates as record_gates
    from netprism.gates import transformation_complexity as transformation_complexity
    from netprism.knowledge import kappa_of_strength as kappa_of_strength
    from netprism.knowledge import knowledge_points as knowledge_points
    from netprism.knowledge import regional_importance as regional_importance
    from netprism.lightning_modules import Classifier as Classifier
    from netprism.lightning_modules import Disentangler as Disentangler
    from netprism.taps import tap as tap

__version__ = "0.1.0"

_HOMES = {
    "analysis": ("analyze", "Analysis"),
    "callbacks": (
        "GatingEntropy",
        "ComplexityPenalty",
        "FeatureComponents",
        "InformationDiscarding",
        "KnowledgePoints",
        "ExactResume",
    ),
    "gates": ("record_gates", "transformation_complexity", "ComplexityLoss"),
    "components": ("significance", "shapley_values"),
    "discarding": ("strict_information_discarding", "reconstruction_uncertainty", "concentration"),
    "knowledge": ("kappa_of_strength", "regional_importance", "knowledge_points"),
    "lightning_modules": ("Classifier", "Disentangler"),
    "taps": ("tap",),
}
_HOME = {name: f"netprism.{home}" for home, names in _HOMES.items() for name in names}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever is asked for
    """Loads a public name."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    import difflib

    close = difflib.get_close_matches(name, _HOME)
    raise AttributeError(
        f"module 'netprism' has no attribute {name!r}" + (f", did you mean {close[0]!r}?" if close else "")
    )


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted({*globals(), *_HOME})

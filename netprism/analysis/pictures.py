"""The pictures of an analysis: those of the monitors that need no epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from netprism.callbacks import FeatureComponents, GatingEntropy, InformationDiscarding, KnowledgePoints
from netprism.callbacks._entropy_maps import maps_by_layer
from netprism.callbacks._monitor import Monitor
from netprism.figures import components, discarding, gating_entropy, knowledge
from netprism.figures._common import save

TO_A_PICTURE = 8  # images


def draw(monitors: Mapping[str, Sequence[Monitor]], folder: Path) -> list[Path]:
    """Draws the pictures of each network, and maps of several networks also in one grid.

    Args:
        monitors: {network: monitors that have measured}.
        folder: Folder whose `figures`, `maps` and `tables` are written to.
    """
    paths: list[Path] = []
    looked: dict[str, InformationDiscarding] = {}
    for network, own in monitors.items():
        prefix = f"{network}_" if len(monitors) > 1 else ""
        for monitor in own:
            name = f"{prefix}{monitor.name}"
            if isinstance(monitor, InformationDiscarding):
                looked[network] = monitor
                paths += _maps(monitor.images, folder / "maps", name)
            elif isinstance(monitor, GatingEntropy):
                rates = gating_entropy.activation_rate_histograms(monitor.rates)
                paths.append(save(rates, folder / "figures" / f"{name}_activation_rates.png"))
            elif isinstance(monitor, KnowledgePoints) and monitor.frames:
                paths += _points(monitor, folder / "figures", name)
            elif isinstance(monitor, FeatureComponents):
                found = monitor.history, monitor.found, monitor.maps, monitor.channels
                paths += components.draw(*found, folder / "figures", name)
                paths += components.tabulate(monitor.found, folder / "tables", name)
    return paths + (_side_by_side(looked, folder / "maps") if len(looked) > 1 else [])


def _maps(images: Mapping[str, Tensor], folder: Path, name: str) -> list[Path]:
    """Eight images a picture, with one map per layer."""
    paths = []
    for quantity in ("SID", "RU"):
        layers = maps_by_layer(images, quantity)
        shown = images["x"] if layers and images["x"].dim() == 4 else images["x"][:0]
        for number, start in enumerate(range(0, len(shown), TO_A_PICTURE)):
            few = slice(start, start + TO_A_PICTURE)
            path = folder / f"{name}_{quantity}_{number:03}.png"
            chosen = {layer: values[few] for layer, values in layers.items()}
            paths.append(discarding.maps(shown[few], chosen, path, f"{quantity}, nats"))
    return paths


def _side_by_side(looked: Mapping[str, InformationDiscarding], folder: Path) -> list[Path]:
    """The first images, and the maps of all networks in one scale."""
    first = next(iter(looked.values()))
    maps = {
        (f"{network}\n{layer}" if i == 0 else f"{layer}{' ' * number}"): values[:TO_A_PICTURE]
        for number, (network, monitor) in enumerate(looked.items())
        for i, (layer, values) in enumerate(maps_by_layer(monitor.images, "SID").items())
    }
    is_same = all(monitor.indices == first.indices for monitor in looked.values())
    if not is_same or first.images["x"].dim() != 4 or not len(first.images["x"]):
        return []
    return [discarding.maps(first.images["x"][:TO_A_PICTURE], maps, folder / "all_SID.png", "SID, nats")]


def _points(monitor: KnowledgePoints, folder: Path, name: str) -> list[Path]:
    paths = [save(knowledge.ellipsoids(monitor.frames[-1]), folder / f"{name}_ellipsoids.png")]
    if monitor.images is not None and monitor.last:
        paths.append(save(knowledge.outlines(monitor.images, monitor.last), folder / f"{name}_regions.png"))
    return paths + knowledge.turnable_pages(monitor.frames, folder, name)

"""Regional features of trained networks: is their importance what they contribute, and what becomes of them in depth?

Each function gets the folder of a run with `KnowledgePoints`, whose layers it looks at. Features are those of test
images. Torch is loaded by those that need it.

Source: Li et al. 2021, figures 4 and 5, table 2, https://arxiv.org/abs/2111.03505.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netprism.studies.measures import options_of, tested_network

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from netprism.knowledge.epoch_projection import NetworkFeatures
    from netprism.knowledge.points import KnowledgePointCounts

Rows = list[dict[str, Any]]


def importance(run: Path, images: int = 200, explained: int = 20, permutations: int = 40) -> Rows:
    """Returns a row per layer: correlations of the regions' importance w, means over images.

    A region's Shapley value is its mean gain in the margin of the true class, over random orders in which the regions
    of a map replace their mean over the images.

    Args:
        run: Folder of a run.
        images: Number of test images.
        explained: Number of them whose Shapley values are estimated, in the last layer.
        permutations: Number of random orders.

    Returns:
        projected, raw: Pearson's correlation over the regions of w with the strength of the projected feature h, and of
        the feature f as it is. Of the last layer, NaN of others: shapley, the correlation of w with the Shapley values;
        shapley_projected and shapley_raw, that of the strengths with them.

    Cost: `explained` x `permutations` x (R + 1) runs of what follows the last layer of R regions, at most.

    Source: Li et al. 2021, section 4, figure 5 and table 2, https://arxiv.org/abs/2111.03505.
    """
    from netprism.knowledge import fit_projection, fit_region_projection, regional_importance
    from netprism.knowledge.importance import row_correlations

    seen = _Seen.by(run, images)
    logits = seen.features.logits
    projection = fit_projection(seen.features.samples, logits, dimensions=min(3, logits.shape[1]))
    g = projection(seen.features.samples).detach().float()
    rows: Rows = []
    for layer in seen.layers:
        regions = seen.features.regions(layer)
        w = regional_importance(regions.transpose(1, 2), logits, num_compared=50).regions
        h = fit_region_projection(regions, g, w, logits)(regions).detach()
        quantities = {"": w.double(), "_projected": h.norm(dim=2).double(), "_raw": regions.norm(dim=2).double()}
        row: dict[str, Any] = {"layer": layer}
        row |= {kind[1:]: _mean(row_correlations(quantities[""], quantities[kind])) for kind in ("_projected", "_raw")}
        row |= {f"shapley{kind}": math.nan for kind in quantities}
        if layer == seen.layers[-1]:
            values = shapley_of_regions(seen.net, seen.x, seen.labels, layer, seen.features, explained, permutations)
            for kind, quantity in quantities.items():
                row[f"shapley{kind}"] = _mean(row_correlations(quantity[: len(values)], values))
        rows.append(row)
    return rows


def shapley_of_regions(
    net: nn.Module,
    x: Tensor,
    labels: Tensor,
    layer: str,
    features: NetworkFeatures,
    explained: int,
    permutations: int,
) -> Tensor:
    """Returns Shapley values of the regions of a layer, for the margin of the true class, `(explained, R)`, float64.

    Args:
        net: The network.
        x: Images `(N, ...)`, over which the map of absent regions is the mean.
        labels: Their classes `(N,)`.
        layer: The layer.
        features: Features of the network, for the rows and columns of regions.
        explained: Number of images, the first ones.
        permutations: Number of random orders of the regions.
    """
    import torch
    import torch.nn.functional as F

    from netprism.components.network_split import SplitNetwork
    from netprism.components.shapley import sampled_shapley_values

    rows, columns = features.grid(layer)
    found = []
    with torch.no_grad():
        cut = SplitNetwork(net, layer)
        cut.feature(x[:2])
        if cut.ending:  # it would be cut before the layer's last activation
            cut = SplitNetwork(net, cut.ending)
        cut.find_head(x[:2])
        maps = torch.cat([cut.feature(part) for part in x.split(128)])
        mean = maps.mean(dim=0)
        for one, label in zip(maps[:explained], labels[:explained].tolist(), strict=True):

            def margin(members: Tensor, one: Tensor = one, label: int = label) -> Tensor:
                present = members.view(-1, 1, rows, columns).float()
                present = F.interpolate(present, size=one.shape[1:], mode="nearest").bool()
                logits = torch.cat([cut.head(torch.where(some, one, mean)) for some in present.split(512)])
                others = logits.clone()
                others[:, label] = -torch.inf
                return logits[:, label] - others.amax(dim=1)

            found.append(sampled_shapley_values(margin, rows * columns, permutations).values)
    return torch.stack(found)


@dataclass(frozen=True)
class _Seen:
    """Test images, and what the network of a run makes of them."""

    net: nn.Module
    x: Tensor
    labels: Tensor
    layers: list[str]
    features: NetworkFeatures

    @classmethod
    def by(cls, run: Path, images: int) -> _Seen:
        from netprism.knowledge.epoch_projection import network_features
        from netprism.taps import last_linear

        layers = layers_of(run)
        net, x, labels = tested_network(run)
        x, labels = x[:images], labels[:images]
        return cls(net, x, labels, layers, network_features(net, partial(net, x), layers, last_linear(net)))


def layers_of(run: Path) -> list[str]:
    """Returns the layers whose knowledge points a run has counted.

    Raises:
        ValueError: It has counted none.
    """
    given = options_of(run, "trainer.callbacks")
    for callback in [given] if isinstance(given, Mapping) else given or []:
        if str(callback.get("class_path")).endswith("KnowledgePoints") and callback["init_args"].get("layers"):
            return list(callback["init_args"]["layers"])
    raise ValueError(f"{run} has no KnowledgePoints with layers; expected a run with that callback")


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else math.nan


def followed(run: Path, images: int = 200) -> Rows:
    """Returns a row per layer: how discriminative those regions are that decide correctly in the last layer.

    They are the reliable knowledge points of the last layer; where a layer has finer regions, the mean of those inside
    one of the last layer is taken.

    Args:
        run: Folder of a run.
        images: Number of test images.

    Returns:
        cosine, spread: Mean and standard deviation over these regions of the cosine of their projected feature with the
        direction of the true class; all: the mean cosine of all regions; strength: mean of their norm; regions: their
        number per image. NaN where there are none.

    Source: Li et al. 2021, figure 4, https://arxiv.org/abs/2111.03505.
    """
    import torch.nn.functional as F

    from netprism.figures.knowledge import along_layers

    seen = _Seen.by(run, images)
    projected = _Projected.of(seen)
    towards, strengths = along_layers(projected.frame(seen.labels), projected.found)
    rows: Rows = []
    for layer, cosines, norms in zip(seen.layers, towards.double(), strengths.double(), strict=True):
        of_all = F.cosine_similarity(projected.h[layer], projected.directions[seen.labels][:, None], dim=2)
        row = {"layer": layer, "cosine": _mean(cosines), "spread": float(cosines.std()) if len(cosines) > 1 else 0.0}
        row |= {"all": float(of_all.mean()), "strength": _mean(norms), "regions": len(cosines) / len(seen.x)}
        rows.append(row)
    return rows


def densities(records: Sequence[Mapping[str, Any]], folders: Sequence[Path]) -> dict[str, Figure]:
    """Returns the picture of the regions through the layers, of the first run of each network and data set.

    Args:
        records: Not used: the picture is of the networks.
        folders: Folders of the runs.

    Source: Li et al. 2021, figure 4 and the contour maps of the supplement, https://arxiv.org/abs/2111.03505.
    """
    from netprism.analysis.networks import data_of_run
    from netprism.figures.regions import class_planes, region_densities

    first: dict[str, Path] = {}
    for folder in folders:
        net, data = (
            str(options_of(folder, key)).rpartition(".")[2]
            for key in ("model.init_args.net.class_path", "data.class_path")
        )
        first.setdefault(f"{net}, {data}", folder)
    rows = {}
    for title, folder in first.items():
        seen = _Seen.by(folder, 200)
        projected = _Projected.of(seen)
        classes = data_of_run(str(folder / "checkpoints" / "best.ckpt"), None).classes
        names = list(classes) or [str(number) for number in range(len(projected.directions))]
        chosen = class_planes(projected.h, projected.found, projected.directions, seen.labels, names)
        if chosen:
            rows[title] = chosen
    return {"densities": region_densities(rows)} if rows else {}


@dataclass(frozen=True)
class _Projected:
    """Regional features of layers, projected to where the classes are directions, and the knowledge points."""

    h: dict[str, Tensor]
    found: dict[str, tuple[tuple[int, int], KnowledgePointCounts]]
    directions: Tensor

    @classmethod
    def of(cls, seen: _Seen) -> _Projected:
        from netprism.knowledge.epoch_projection import EpochProjection

        projection = EpochProjection(seen.features)
        projection.fit_samples(seen.features)
        for layer in seen.layers:
            projection.fit_regions(layer, seen.features)
        counts = projection.count(seen.features, seen.labels)
        found = {layer: (seen.features.grid(layer), counts[layer]) for layer in seen.layers}
        return cls(projection(seen.features), found, projection.samples.directions.float())

    def frame(self, labels: Tensor) -> dict[str, Any]:
        """What `netprism.figures.knowledge.along_layers` reads, of all images."""
        layers = {
            layer: {"points": h.flatten(0, 1), "labels": labels.repeat_interleave(h.shape[1])}
            for layer, h in self.h.items()
        }
        return {"directions": self.directions, "layers": layers}

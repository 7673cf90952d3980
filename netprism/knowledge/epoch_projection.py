"""The projections of a network's sample and regional features, continued from epoch to epoch.

The fit of sample features starts from the one before and is rotated onto it, and the regions' fit starts from the
directions of the samples, so that what moves from epoch to epoch is the network.

Source: Li et al. 2021, sections 3.2 to 3.4, https://arxiv.org/abs/2111.03505.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from netprism.distributed import all_gather_object, run_on_all_ranks
from netprism.knowledge.groups import group_importance, match_regions
from netprism.knowledge.importance import region_features, region_maps
from netprism.knowledge.points import KnowledgePointCounts, check_tau, knowledge_points
from netprism.knowledge.region_projection import RegionProjector, fit_region_projection
from netprism.knowledge.sample_projection import SampleProjector, fit_projection
from netprism.taps import tap


@dataclass(frozen=True)
class NetworkFeatures:
    """What a network computes from N images.

    Attributes:
        maps: Layer -> regional features as maps `(N, K, rows, columns)`.
        samples: Sample features f, `(N, d)`.
        logits: Logits, `(N, C)`.
    """

    maps: dict[str, Tensor]
    samples: Tensor
    logits: Tensor

    def regions(self, layer: str) -> Tensor:
        """Regional features `(N, R, K)` of a layer."""
        return region_features(self.maps[layer])

    def grid(self, layer: str) -> tuple[int, int]:
        """Rows and columns of a layer's regions."""
        rows, columns = self.maps[layer].shape[2:]
        return rows, columns


@torch.no_grad()
def network_features(
    model: nn.Module,
    run: Callable[[], object],
    layers: Sequence[str],
    logits_layer: str,
    *,
    max_grid: int = 8,
    relative_to: nn.Module | None = None,
) -> NetworkFeatures:
    """Runs a network and reads its features.

    Args:
        model: The network, or a module that contains it.
        run: Function that calls `model` once.
        layers: Names of layers with feature maps; a layer whose feature is a vector has one region.
        logits_layer: Name of the layer whose input is the sample feature, and whose output the logits.
        max_grid: Larger maps are averaged over cells, to at most this number of rows and columns.
        relative_to: Part of `model` as seen from which layers are named.

    Raises:
        ValueError: A layer does not exist, or its feature is not a map or a vector.
    """
    tapped = partial(tap, model, detach=True, relative_to=relative_to)
    with (
        tapped(layers) as features,
        tapped([logits_layer]) as logits,
        tapped([logits_layer], inputs=True) as samples,
    ):
        run()
    maps = {layer: region_maps(features[layer], max_grid) for layer in layers}
    return NetworkFeatures(maps, samples[logits_layer].flatten(1), logits[logits_layer])


def check_layers(layers: str | Sequence[str], reference_layer: str | None) -> list[str]:
    """Returns layers without duplicates.

    Raises:
        ValueError: There is none, or `reference_layer` is not among them.
    """
    unique = list(dict.fromkeys([layers] if isinstance(layers, str) else layers))
    if not unique:
        raise ValueError("layers is empty; expected at least one layer")
    if reference_layer not in (None, *unique):
        raise ValueError(f"reference_layer is {reference_layer!r}; expected None or one of {', '.join(unique)}")
    return unique


class EpochProjection(nn.Module):
    """Projects sample and regional features of one network, and counts its knowledge points.

    All ranks must call the fits with the features of the same images. Only the comparison of regions is distributed
    over the ranks; they all get the result of one process.

    Args:
        like: Features of some images, whose shapes are those of all features to come.
        reference_layer: The layer whose mean strength all layers are scaled to; None for the last.
        tau: The least confidence of a knowledge point, at least 1 / C.
        steps: Largest number of L-BFGS steps for the regions of a layer.
        num_compared: Number of images of a random group that each is compared with.
        align_weight: Weight alpha of L_align.
        kappa_max: Concentration of regions without noise.
        temperature: Temperature T of the softened outputs.
        seed: Seed of the fits.

    Attributes:
        samples: Sample projection; its `scale` is 0 until the first fit.
        regions: Projection of each layer's regions.
        strengths: Mean strength of each layer's projected regions over the images of the last fit, `(L,)`.
    """

    strengths: Tensor

    def __init__(
        self,
        like: NetworkFeatures,
        reference_layer: str | None = None,
        *,
        tau: float = 0.4,
        steps: int = 100,
        num_compared: int = 20,
        align_weight: float = 1.0,
        kappa_max: float = 1000.0,
        temperature: float = 4.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        size, categories = like.samples.shape[1], like.logits.shape[1]
        check_tau(tau, categories)
        self.layers = check_layers(list(like.maps), reference_layer)
        self.reference = self.layers.index(reference_layer or self.layers[-1])
        self.tau, self.steps, self.num_compared, self.align_weight = tau, steps, num_compared, align_weight
        self.kappa_max, self.temperature, self.seed = kappa_max, temperature, seed
        self.samples = SampleProjector(size, categories, min(3, size, categories))
        self.regions = nn.ModuleList(RegionProjector(m.shape[1], len(self.samples.matrix)) for m in like.maps.values())
        self.register_buffer("strengths", torch.ones(len(self.layers)))

    def projector(self, layer: str) -> RegionProjector:
        """The projection of a layer's regions."""
        found: RegionProjector = self.regions[self.layers.index(layer)]  # type: ignore[assignment]
        return found

    def fit_samples(self, features: NetworkFeatures) -> Tensor:
        """Fits the sample projection from where the last fit ended; returns g `(N, d')`.

        Raises:
            ValueError: The network has collapsed: its features are constant or not finite, or its outputs constant.
        """
        initial = self.samples if self.samples.scale > 0 else None
        dimensions = len(self.samples.matrix)
        fitted = fit_projection(
            features.samples, features.logits, dimensions=dimensions, temperature=self.temperature, initial=initial
        )
        self.samples.load_state_dict(fitted.state_dict())
        return self._g(features)

    def fit_regions(self, layer: str, features: NetworkFeatures) -> tuple[Tensor, Tensor]:
        """Fits the projection of a layer's regions, after `fit_samples`.

        Returns:
            Projected regions h `(N, R, d')`, not scaled to the reference layer, and their importance w `(N, R)`.
        """
        regions, projector = features.regions(layer), self.projector(layer)
        matches = match_regions(regions, group_size=self.num_compared + 1, seed=self.seed)
        importance = group_importance(matches, features.logits, temperature=self.temperature)
        fit = partial(fit_region_projection, regions, self._g(features).to(regions), importance, features.logits)
        options = {"align_weight": self.align_weight, "kappa_max": self.kappa_max, "temperature": self.temperature}
        fitted = run_on_all_ranks(partial(fit, matches=matches, steps=self.steps, **options))
        # Sums on a GPU may differ in the last bit between ranks: all take those of rank 0.
        projector.load_state_dict(all_gather_object({k: v.cpu() for k, v in fitted.state_dict().items()})[0])
        projected: Tensor = projector(regions).detach()
        self.strengths[self.layers.index(layer)] = projected.norm(dim=2).mean()
        return projected, importance

    @torch.no_grad()
    def forward(self, features: NetworkFeatures) -> dict[str, Tensor]:
        """Maps each layer's regional features to h `(N, R, d')`, scaled to the mean strength of the reference layer."""
        reference = self.strengths[self.reference]
        factors = torch.where((self.strengths > 0) & (reference > 0), reference / self.strengths, 1.0)
        return {
            layer: factor * self.projector(layer)(features.regions(layer))
            for layer, factor in zip(self.layers, factors, strict=True)
        }

    def count(self, features: NetworkFeatures, labels: Tensor) -> dict[str, KnowledgePointCounts]:
        """Counts knowledge points of each layer on images with true classes `(N,)`, those of the fit or others."""
        options = {"tau": self.tau, "kappa_max": self.kappa_max}
        return {
            layer: knowledge_points(h, self.samples.directions.to(h), self.samples.priors.to(h), labels, **options)
            for layer, h in self(features).items()
        }

    def _g(self, features: NetworkFeatures) -> Tensor:
        g: Tensor = self.samples(features.samples).detach()
        return g

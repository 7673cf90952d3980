"""Is the importance of regions what they contribute? A comparison with Shapley values and with projected strengths.

    python docs/studies/region_importance.py [checkpoint]

The network is ResNet-8 on digits, by default the newest run of classify/digits_resnet8. A region's Shapley value is its
mean gain in the margin of the true class, over random orders in which regions of the last stage replace their mean over
the images. The first table has the correlation of importance with projected strength, as in Li et al. 2021, table 2,
https://arxiv.org/abs/2111.03505.
"""

import sys

import torch
from torch import Tensor, nn

from netprism.callbacks._monitor_data import balanced_indices
from netprism.components.shapley import sampled_shapley_values
from netprism.datamodules import Digits
from netprism.knowledge.importance import region_features, regional_importance, row_correlations
from netprism.knowledge.region_projection import fit_region_projection
from netprism.knowledge.sample_projection import fit_projection
from netprism.runs.teachers import trained
from netprism.taps import tap

LAYERS = ["layer1", "layer2", "layer3"]
IMAGES, EXPLAINED, PERMUTATIONS = 200, 20, 40


def digits() -> tuple[Tensor, Tensor]:
    """Returns images of the training set, the same number per class, and their labels."""
    data = Digits()
    data.setup("fit")
    split = data.monitor_dataset("train")
    chosen = balanced_indices(split.targets, len(split), IMAGES, seed=0)
    return torch.stack([split[i][0] for i in chosen]), split.targets[chosen]


@torch.no_grad()
def shapley_of_regions(net: nn.Module, maps: Tensor, label: int, mean: Tensor) -> Tensor:
    """Returns the Shapley values of the R regions of one map (K, H, W), for the margin of the true class."""
    regions = maps.flatten(1)

    def margin(members: Tensor) -> Tensor:
        pooled = torch.where(members[:, None], regions, mean.flatten(1)).mean(dim=2)
        logits = net.fc(pooled)
        others = logits.clone()
        others[:, label] = -torch.inf
        return logits[:, label] - others.amax(dim=1)

    return sampled_shapley_values(margin, regions.shape[1], PERMUTATIONS).values


def main(checkpoint: str | None = None) -> None:
    """Prints the two tables."""
    net = trained("classify/digits_resnet8", checkpoint)
    images, labels = digits()
    with torch.no_grad(), tap(net, LAYERS) as features, tap(net, ["fc"], inputs=True) as samples:
        logits = net(images)
    projection = fit_projection(samples["fc"], logits, steps=100)
    g = projection(samples["fc"]).detach().float()
    print(f"ResNet-8, {IMAGES} digits\n\n| layer | regions | corr(w, strength of h) | corr(w, strength of f) |")
    print("| --- | --- | --- | --- |")
    for layer in LAYERS:
        regions = region_features(features[layer], 8)
        w = regional_importance(regions.transpose(1, 2), logits, num_compared=50).regions
        h = fit_region_projection(regions, g, w, logits)(regions)
        projected, raw = (row_correlations(w.double(), x.norm(dim=2).double()) for x in (h, regions))
        numbers = f"{projected.mean():.2f} +- {projected.std():.2f} | {raw.mean():.2f} +- {raw.std():.2f}"
        print(f"| {layer} | {regions.shape[1]} | {numbers} |", flush=True)
    maps = features["layer3"]
    shapley = torch.stack(
        [shapley_of_regions(net, maps[i], int(labels[i]), maps.mean(dim=0)) for i in range(EXPLAINED)]
    )
    found = {"w": w, "strength of h": h.norm(dim=2), "strength of f": regions.norm(dim=2)}
    print(f"\n| layer3, {EXPLAINED} digits | correlation with Shapley values |\n| --- | --- |")
    for name, values in found.items():
        own = row_correlations(values[:EXPLAINED].double(), shapley.double())
        print(f"| {name} | {own.mean():.2f} +- {own.std():.2f} |")


if __name__ == "__main__":
    main(*sys.argv[1:])

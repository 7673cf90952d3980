"""Does strength show how sure the network is? Our projection beside five others, on the same features and images.

    python docs/studies/projection_table.py [--data photos] [--checkpoint PATH]

It prints a table and, of digits, draws `docs/figures/projection_methods.png`. For a method without an origin, strength
is the distance from the mean of its points. Two bounds stand beside them: the length of the whole feature, and the
linear map whose strength has the lowest correlation with the entropy, found by searching for nothing else.

DRPR (Law et al., "Dimensionality Reduction for Representing the Knowledge of Probabilistic Models", ICLR 2019) is used
in its Gaussian form with a linear map: Q(y | x) ~ pi_y exp(-||g - m_y||^2), where m_y is the mean of g weighted with
P(y | x), with the KL(P || Q) of our own method.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE, Isomap, LocallyLinearEmbedding
from torch import Tensor, nn
from torch.nn import functional as F

from netprism.datamodules import Digits, Photos
from netprism.datamodules.base import ImageDataModule
from netprism.figures._common import save
from netprism.knowledge.sample_projection import (
    divergence,
    fit_projection,
    lbfgs,
    output_entropy,
    soft_targets,
    strength_correlation,
)
from netprism.runs.teachers import trained
from netprism.taps import tap

DIMENSIONS = 3
IMAGES = 1437  # training images
NEIGHBOURS = 100  # with fewer the graph of the digits is not connected
METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ours": lambda f, z: fit_projection(f, z)(f).detach(),
    "ours, no center": lambda f, z: fit_projection(f, z, center=False)(f).detach(),
    "DRPR": lambda f, z: gaussian_projection(f, soft_targets(z)),
    "PCA": lambda f, z: centred(PCA(DIMENSIONS), f),
    "length of f": lambda f, z: f.double(),
    "best linear map": lambda f, z: most_correlated(f, output_entropy(soft_targets(z))),
    "t-SNE": lambda f, z: centred(TSNE(DIMENSIONS, random_state=0), f),
    "LLE": lambda f, z: centred(
        LocallyLinearEmbedding(n_neighbors=NEIGHBOURS, n_components=DIMENSIONS, random_state=0), f
    ),
    "Isomap": lambda f, z: centred(Isomap(n_neighbors=NEIGHBOURS, n_components=DIMENSIONS), f),
}
DATA = {"digits": ("classify/digits_resnet8", Digits), "photos": ("classify/photos_resnet8", Photos)}
DRAWN = ("ours", "DRPR", "PCA", "t-SNE", "LLE", "Isomap")


def centred(method: PCA | TSNE | LocallyLinearEmbedding | Isomap, features: Tensor) -> Tensor:
    """Returns the points of a method of scikit-learn, with mean 0."""
    points = torch.as_tensor(method.fit_transform(features.double().numpy()))
    return points - points.mean(0)


def gaussian_projection(features: Tensor, targets: Tensor, steps: int = 200) -> Tensor:
    """Returns the points of DRPR, whose categories are points instead of directions."""
    x = features.double() - features.double().mean(0)
    x = x / x.norm(dim=1).mean()
    _, _, axes = torch.linalg.svd((targets - targets.mean(0)).T @ x, full_matrices=False)
    matrix = nn.Parameter(axes[:DIMENSIONS].contiguous())
    optimizer = lbfgs([matrix], steps)

    def closure() -> Tensor:
        optimizer.zero_grad()
        g = x @ matrix.T
        means = (targets.T @ g) / targets.sum(0).unsqueeze(1)
        log_q = F.log_softmax(-(g.unsqueeze(1) - means).square().sum(2) + targets.mean(0).log(), dim=1)
        loss = divergence(targets, log_q).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return (x @ matrix.T).detach()


def most_correlated(features: Tensor, entropies: Tensor, steps: int = 300) -> Tensor:
    """Returns the points of the linear map whose strength has the lowest correlation with the entropy."""
    x = features.double() - features.double().mean(0)
    x = x / x.norm(dim=1).mean()
    matrix = nn.Parameter(torch.as_tensor(PCA(DIMENSIONS).fit(x.numpy()).components_.copy()))
    offset = nn.Parameter(torch.zeros(DIMENSIONS, dtype=torch.float64))
    optimizer = lbfgs([matrix, offset], steps)
    wanted = (entropies - entropies.mean()) / (entropies - entropies.mean()).norm()

    def closure() -> Tensor:
        optimizer.zero_grad()
        strengths = (x @ matrix.T + offset).norm(dim=1)
        strengths = strengths - strengths.mean()
        correlation = strengths @ wanted / strengths.norm()
        correlation.backward()
        return correlation

    optimizer.step(closure)
    return (x @ matrix.T + offset).detach()


def features_and_logits(net: nn.Module, data: ImageDataModule) -> tuple[Tensor, Tensor]:
    """Returns the inputs of the last layer, and the outputs, for 1437 training images."""
    data.setup("fit")
    dataset = data.monitor_dataset("train")
    chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:IMAGES]
    images = torch.stack([dataset[index][0] for index in chosen.tolist()])
    with torch.no_grad(), tap(net, "fc", detach=True, inputs=True) as features:
        logits = net(images)
    return features["fc"], logits


def main() -> None:
    """Prints the table and draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=DATA, default="digits")
    parser.add_argument("--checkpoint", help="checkpoint of the experiment; by default that of its newest run")
    given = parser.parse_args()
    experiment, data = DATA[given.data]
    features, logits = features_and_logits(trained(experiment, given.checkpoint), data())
    soft, sharp = output_entropy(soft_targets(logits)), output_entropy(soft_targets(logits, 1.0))
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    panels = dict(zip(DRAWN, figure.subplots(2, 3).flat, strict=True))
    print("| method | correlation, outputs at T = 4 | at T = 1 |\n| --- | --- | --- |")
    for name, method in METHODS.items():
        strengths = method(features, logits).norm(dim=1)
        correlation = strength_correlation(strengths, soft)
        print(f"| {name} | {correlation:.2f} | {strength_correlation(strengths, sharp):.2f} |", flush=True)
        if name in panels:
            axes = panels[name]
            axes.scatter(strengths, soft, s=1.5, color="tab:blue")
            axes.set_title(f"{name}: {correlation:.2f}", fontsize="medium")
            axes.spines[["top", "right"]].set_visible(False)
            axes.set(xlabel="strength", ylabel="entropy of the output, nats")
    if given.data == "digits":
        save(figure, Path(__file__).parents[1] / "figures" / "projection_methods.png")


if __name__ == "__main__":
    main()

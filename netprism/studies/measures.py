"""What studies compute from finished runs, from their curves or from their networks.

Each function gets the folder of a run and returns rows; a study names it as its `measure`. Torch is loaded by those
that need it.
"""

from __future__ import annotations

import csv
import math
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netprism.studies.claims import rank_correlation
from netprism.studies.values import curves

if TYPE_CHECKING:
    from torch import Tensor, nn

    from netprism.datamodules import ImageDataModule
    from netprism.datamodules.base import Split
    from netprism.knowledge.points import KnowledgePointCounts

Rows = list[dict[str, Any]]


def orders(run: Path, prefix: str = "val/significance/") -> Rows:
    """Returns one row: the order with the largest component, and the mean order, weighted by significance.

    Args:
        run: Folder of a run.
        prefix: What precedes the order in the names of the columns; the last values are read.
    """
    found: dict[int, float] = {}
    for values in curves(run).values():
        found |= {int(key.removeprefix(prefix)): value for key, value in values.items() if key.startswith(prefix)}
    if not found:
        raise ValueError(f"{run} has no {prefix}<order>; expected a run of a Disentangler")
    total = sum(found.values())
    mean = sum(order * value for order, value in found.items()) / total if total else float("nan")
    return [{"largest": max(found, key=lambda order: found[order]), "mean": mean}]


def relation(run: Path, x: str, y: str) -> Rows:
    """Returns a row per layer: Spearman's rank correlation of two logged quantities over the epochs.

    Args:
        run: Folder of a run.
        x: Column of a layer, such as `gates/entropy/*`.
        y: The other column.
    """
    logged = curves(run)
    start, end = x.split("*")
    keys = {key for values in logged.values() for key in values}
    names = sorted(key[len(start) : len(key) - len(end)] for key in keys if key.startswith(start) and key.endswith(end))
    rows: Rows = []
    for name in names:
        pair = x.replace("*", name), y.replace("*", name)
        both = [(values[pair[0]], values[pair[1]]) for values in logged.values() if all(key in values for key in pair)]
        if both:
            rows.append({"layer": name, "correlation": rank_correlation(*map(list, zip(*both, strict=True)))})
    if not rows:
        raise ValueError(f"{run} has no epoch with {x} and {y}; expected two columns of metrics.csv")
    return rows


def correlations(run: Path, columns: dict[str, str]) -> Rows:
    """Returns a row per pair of logged quantities: how they move together over the epochs.

    Two curves that both rise have a high correlation of their levels, whatever ties them. The correlation of their
    steps, from one epoch to the next, tells whether they rise and fall in the same epochs.

    Args:
        run: Folder of a run.
        columns: {name: column}, each with a value in most epochs; an epoch that lacks one of two, or has NaN, is left
            out.

    Returns:
        first, second: Names, in their order; levels, steps: Spearman's rank correlations over the epochs.
    """
    logged = curves(run)
    for name, column in columns.items():
        if not any(column in values for values in logged.values()):
            raise ValueError(f"{name} is read from {column!r}, which {run} has not logged")
    rows: Rows = []
    for (first, x), (second, y) in combinations(columns.items(), 2):
        both = [(values[x], values[y]) for values in logged.values() if x in values and y in values]
        finite = [pair for pair in both if all(map(math.isfinite, pair))]
        steps = [(after[0] - before[0], after[1] - before[1]) for before, after in pairwise(finite)]
        row: dict[str, Any] = {"first": first, "second": second}
        for kind, pairs in (("levels", finite), ("steps", steps)):
            row[kind] = rank_correlation([a for a, _ in pairs], [b for _, b in pairs])
        rows.append(row)
    return rows


def discarded(run: Path, layers: list[str], images: int = 20) -> Rows:
    """Returns a row per layer: mean SID of test images, nats, and the accuracy on the whole test set.

    Args:
        run: Folder of a run.
        layers: Names of layers.
        images: Number of test images.
    """
    from netprism.discarding import strict_information_discarding

    net, x, labels = tested_network(run)
    accuracy = _accuracy(net, x, labels)
    found = strict_information_discarding(net, layers, x[:images], num_vjps=32, seed=0)
    return [{"layer": layer, "SID": float(found[layer].mean.mean()), "accuracy": accuracy} for layer in layers]


def robustness(run: Path, layer: str, images: int = 20, classes: int = 3, steps: int = 40, eps: float = 0.05) -> Rows:
    """Returns one row: how far test images are from wrong classes, and what a layer discards.

    Args:
        run: Folder of a run.
        layer: The layer whose SID is measured.
        images: Number of test images.
        classes: Number of most probable wrong classes per image.
        steps: Steps of the smallest attack.
        eps: Largest change of a pixel in the attack whose accuracy is measured, 20 steps.

    Returns:
        distance: Mean l_2 distance of `adversarial_distances`, of pixels in [0, 1]; attacked: accuracy under `pgd`; SID
        in nats; accuracy.
    """
    from netprism.interventions import Pixels, adversarial_distances, pgd

    net, x, labels = tested_network(run)
    pixels = Pixels.of(_data(run))
    few = x[:images], labels[:images]
    distances = adversarial_distances(net, [few], num_classes=classes, steps=steps, pixels=pixels)
    attacked = pgd(net, x[:100], labels[:100], eps=eps, pixels=pixels)
    (row,) = discarded(run, [layer], images)
    return [
        {
            "distance": float(distances[distances.isfinite()].mean()),
            "attacked": _accuracy(net, attacked, labels[:100]),
            "SID": row["SID"],
            "accuracy": row["accuracy"],
        }
    ]


def knowledge(run: Path, layers: list[str], images: int = 200, logits_layer: str = "fc") -> Rows:
    """Returns a row per layer: knowledge points of test images, and how far a student is from its teacher.

    The projections of both networks are fitted apart; that of the student is rotated so that the directions of its
    classes lie on the teacher's.

    Args:
        run: Folder of a run of a classifier or a `Distillation`.
        layers: Names of layers with feature maps, of the student and of the teacher.
        images: Number of test images, on which the projections are fitted as well.
        logits_layer: Name of the layer of the logits.

    Returns:
        points, reliable: Knowledge points per image, and those of the true class; ratio: reliable / points; accuracy
        on the whole test set. Of a `Distillation`, NaN of others: turned, the mean of 1 - cos(h of the student, h of
        the teacher) over regions; strength, the mean absolute difference of their norms, divided by the mean norm of
        the teacher's.

    Source: Li et al. 2021, figure 9, https://arxiv.org/abs/2111.03505.
    """
    from torch.nn.functional import cosine_similarity

    from netprism.knowledge.epoch_projection import EpochProjection, network_features
    from netprism.knowledge.sample_projection import rotation_onto

    net, x, labels = tested_network(run)
    accuracy = _accuracy(net, x, labels)
    x, labels = x[:images], labels[:images]
    projections: list[EpochProjection] = []
    projected: list[dict[str, Tensor]] = []
    counts: dict[str, KnowledgePointCounts] = {}
    for one in (net, *_teacher(run)):
        features = network_features(one, partial(one, x), layers, logits_layer)
        projection = EpochProjection(features)
        projection.fit_samples(features)
        for layer in layers:
            projection.fit_regions(layer, features)
        counts = counts or projection.count(features, labels)
        projections.append(projection)
        projected.append(projection(features))
    rows: Rows = []
    for layer in layers:
        found = counts[layer]
        row = {"layer": layer, "points": found.points / len(x), "reliable": found.reliable_points / len(x)}
        row |= {"ratio": found.ratio, "turned": math.nan, "strength": math.nan, "accuracy": accuracy}
        if len(projected) > 1:
            own, teacher = (projection.samples.directions for projection in projections)
            h, of_teacher = (regions[layer].double() for regions in projected)
            h = h @ rotation_onto(own, teacher).T
            change = (h.norm(dim=2) - of_teacher.norm(dim=2)).abs().mean()
            row["turned"] = 1 - float(cosine_similarity(h, of_teacher, dim=2).mean())
            row["strength"] = float(change / of_teacher.norm(dim=2).mean())
        rows.append(row)
    return rows


def roles(run: Path, name: str = "attack") -> Rows:
    """Returns a row per layer: where the regions come from that an attack makes important for another class.

    Args:
        run: Folder of a run with `AttackedRegions`.
        name: The name of that monitor; the last values are read.

    Returns:
        new: Fraction of the regions with a new important role that were unimportant before, created / (created +
        redirected + damaged); broken: fraction of those important before and after that were unimportant on the way,
        damaged / (redirected + damaged). NaN where there are none.

    Source: Li et al. 2021, figures 7 and 8, https://arxiv.org/abs/2111.03505.
    """
    last: dict[str, float] = {}
    for values in curves(run).values():
        last |= values
    start = f"{name}/created/"
    rows: Rows = []
    for layer in (key.removeprefix(start) for key in last if key.startswith(start)):
        created, redirected, damaged = (last[f"{name}/{kind}/{layer}"] for kind in ("created", "redirected", "damaged"))
        both = redirected + damaged
        new, broken = created / (created + both or math.nan), damaged / (both or math.nan)
        rows.append({"layer": layer, "new": new, "broken": broken})
    if not rows:
        raise ValueError(f"{run} has no {start}<layer>; expected a run with AttackedRegions")
    return rows


def reliable_components(run: Path) -> Rows:
    """Returns a row per order: the components of the first network of a run, and what this network can do.

    Args:
        run: Folder of a finished run of a `ReliableDisentangler`.

    Returns:
        order; of test images, as fractions of Var[f]: significance, reliable and unreliable, what is new at this order
        in Phi^(l) and in its two parts, unexplained, what psi misses of f; reliability, that of Phi^(l). effectiveness,
        nats per unit of f, of the images that the network has learned; overfitting; phi_accuracy, the accuracy on test
        images with Phi^(l) in place of f. Of the network: train_samples, the number of images that it has learned,
        accuracy and loss of test images, train_accuracy and train_loss, losses in nats.

    Source: Ren et al. 2020, section 3 and appendix K, https://arxiv.org/abs/2006.15920.
    """
    import torch

    from netprism.components.measures import overfitting
    from netprism.lightning_modules import ReliableDisentangler
    from netprism.metrics import ComponentMetric
    from netprism.runs.teachers import trained

    table = run / "figures" / "reliability.csv"
    if not table.is_file():
        raise ValueError(f"{run} has no figures/reliability.csv; expected a finished run of a ReliableDisentangler")
    with table.open(encoding="utf-8", newline="") as file:
        measured = [{key: float(cell) for key, cell in row.items()} for row in csv.DictReader(file)]
    networks = [network["init_args"] for network in options_of(run, "model.init_args.teachers")]
    images = {"train": _images(networks[0]["checkpoint"], "train"), "test": _images(networks[0]["checkpoint"], "test")}
    module = ReliableDisentangler.load_from_checkpoint(
        run / "checkpoints" / "last.ckpt",  # its table is of the last epoch
        map_location="cpu",
        weights_only=True,
        teachers=[trained(**options) for options in networks],
        input_shape=tuple(images["test"][0].shape[1:]),
    ).eval()
    found = {}
    with torch.no_grad():
        for split, (x, labels) in images.items():
            module.cuts[0].find_head(x[:2])
            metric = ComponentMetric(module.orders)
            metric.update(module.cuts[0].feature(x), module(x)[0], module.cuts[0].head, labels)
            found[split] = metric.components()
    train, test = found["train"], found["test"]
    own = {"train_samples": train.samples, "accuracy": test.feature_accuracy, "loss": test.feature_loss}
    own |= {"train_accuracy": train.feature_accuracy, "train_loss": train.feature_loss}
    rows: Rows = []
    each = zip(measured, train.effectiveness or (), overfitting(train, test), test.accuracy or (), strict=True)
    for row, effectiveness, excess, accuracy in each:
        new = {name: row[f"var_{name}_component"] / row["var_feature"] for name in ("reliable", "unreliable")}
        new |= {"significance": row["var_component"] / row["var_feature"], "unexplained": row["unexplained"]}
        new |= {"reliability": row["reliability"], "effectiveness": effectiveness, "overfitting": excess}
        rows.append({"order": int(row["order"]), **new, "phi_accuracy": accuracy, **own})
    return rows


def coherency(run: Path, images: int = 8, factor: float = 4.0) -> Rows:
    """Returns a row per measure and layer: how much its map changes when the function of the network does not.

    In each block of a ResNet the first BatchNorm is divided by a factor and the convolution behind it multiplied by it,
    so that every image keeps its logits.

    Args:
        run: Folder of a run of `netprism.nets.ResNet`.
        images: Number of test images.
        factor: The factor.

    Returns:
        measure, layer, and change: the mean absolute change of the map, divided by the standard deviation of the map
        before.
    """
    import copy

    import torch

    from netprism.discarding.baselines import grad_cam, gradient_map
    from netprism.discarding.sid import strict_information_discarding
    from netprism.nets.resnet import BasicBlock

    net, x, _ = tested_network(run)
    x = x[:images]
    other, target = copy.deepcopy(net), net(x).argmax(1)
    layers = []
    with torch.no_grad():
        for name, block in other.named_modules():
            if isinstance(block, BasicBlock):
                layers.append(f"{name}.bn1")
                for parameter in (block.bn1.weight, block.bn1.bias):
                    parameter.div_(factor)
                block.conv2.weight.mul_(factor)
    if not layers:
        raise ValueError(f"{run} is no ResNet; expected netprism.nets.ResNet")
    entropies = [strict_information_discarding(one, layers, x, num_vjps=32, seed=0) for one in (net, other)]
    rows: Rows = []
    for layer in layers:
        maps = {
            "SID": [found[layer].entropy_map for found in entropies],
            "gradient map": [gradient_map(one, x, target, layer=layer) for one in (net, other)],
            "Grad-CAM": [grad_cam(one, layer, x, target) for one in (net, other)],
        }
        for measure, (before, after) in maps.items():
            change = float((after - before).abs().mean() / before.std())
            rows.append({"measure": measure, "layer": layer, "change": change})
    return rows


def alphas(run: Path, prefix: str = "alpha_") -> Rows:
    """Returns a row per bandwidth and epoch, and per bandwidth and layer after the last epoch.

    Args:
        run: Folder of a run with several `GatingEntropy`, one for each alpha: `alpha_0.01`, `alpha_0.1`, ...
        prefix: What precedes alpha in their names.

    Returns:
        alpha, epoch, layer; entropy and class_information in rows of layer "all"; suffix_entropy in those of a layer,
        of the last epoch; all in bits, NaN where a row has no such quantity.
    """
    logged = curves(run)
    names = {key.partition("/")[0] for values in logged.values() for key in values if key.startswith(prefix)}
    if not names:
        raise ValueError(f"{run} has no {prefix}<alpha>/entropy; expected several GatingEntropy with such names")
    rows: Rows = []
    for alpha, name in sorted((float(name.removeprefix(prefix)), name) for name in names):
        measured = {epoch: values for epoch, values in logged.items() if f"{name}/entropy" in values}
        for epoch, values in measured.items():
            row = {what: values[f"{name}/{what}"] for what in ("entropy", "class_information")}
            rows.append({"alpha": alpha, "epoch": epoch, "layer": "all", **row, "suffix_entropy": math.nan})
        start, last = f"{name}/suffix_entropy/", max(measured)
        layers = {key.removeprefix(start): value for key, value in measured[last].items() if key.startswith(start)}
        for layer, value in layers.items():
            row = {"entropy": math.nan, "class_information": math.nan, "suffix_entropy": value}
            rows.append({"alpha": alpha, "epoch": last, "layer": layer, **row})
    return rows


def noises(run: Path, layers: list[str], images: int = 8, steps: int = 100) -> Rows:
    """Returns a row per measure and layer: the entropy of the noise on test images, and how far it moves the features.

    Args:
        run: Folder of a run.
        layers: Names of layers.
        images: Number of test images.
        steps: Steps of the noise of Guan et al., see `netprism.discarding.baselines.input_noise_entropy`.

    Returns:
        measure, "SID" or "Guan et al."; layer; H, its mean in nats; moved, log10 of E ||h(x') - h(x)||^2 / delta_f^2;
        range, the largest of them minus the smallest one, over the layers.
    """
    import torch

    from netprism.discarding import LayerView, strict_information_discarding
    from netprism.discarding.baselines import input_noise_entropy
    from netprism.discarding.constants import GAUSSIAN
    from netprism.discarding.noise import feature_change

    net, x, _ = tested_network(run)
    few = x[:images]
    found = strict_information_discarding(net, layers, few, num_vjps=32, seed=0)
    rows: Rows = []
    for layer in layers:
        view = LayerView(net, layer)
        with torch.no_grad():
            features = torch.cat([view.feature(part).flatten(1) for part in x.split(64)])
        variance = float(features.var(0, correction=0).sum())
        entropy = {"SID": found[layer].entropy_map}
        entropy["Guan et al."] = input_noise_entropy(net, layer, few, variance=variance, steps=steps)
        for measure, each in entropy.items():
            change = feature_change(view, few, (each - GAUSSIAN).exp(), noise_samples=32, seed=1).mean()
            moved = math.log10(float(change) / found[layer].scale)
            rows.append({"measure": measure, "layer": layer, "H": float(each.mean()), "moved": moved})
    for row in rows:
        of_layers = [other["moved"] for other in rows if other["measure"] == row["measure"]]
        row["range"] = max(of_layers) - min(of_layers)
    return rows


def _data(run: Path) -> ImageDataModule:
    from netprism.analysis.networks import data_of_run

    return data_of_run(str(run / "checkpoints" / "best.ckpt"), None)


def _images(checkpoint: str, split: Split) -> tuple[Tensor, Tensor]:
    """The images of a split that the run of a checkpoint has used, all of them, with their classes."""
    import torch

    from netprism.analysis.networks import data_of_run

    data = data_of_run(checkpoint, None)
    data.setup("fit")
    chosen = data.monitor_dataset(split)
    images, labels = zip(*(chosen[i][:2] for i in range(len(chosen))), strict=True)  # type: ignore[arg-type]
    return torch.stack(images), torch.tensor(labels)


def tested_network(run: Path) -> tuple[nn.Module, Tensor, Tensor]:
    """The network of a run, with its test images and their classes, in an order that mixes the classes."""
    import torch

    from netprism.runs.teachers import trained

    data = _data(run)
    data.setup("fit")
    test = data.monitor_dataset("test")
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0)).tolist()  # type: ignore[arg-type]
    images, labels = zip(*(test[i][:2] for i in order), strict=True)
    return trained(checkpoint=str(run / "checkpoints" / "best.ckpt")), torch.stack(images), torch.tensor(labels)


def _teacher(run: Path) -> list[nn.Module]:
    """The network that the student of a run has mimicked; none of a run without a student."""
    from netprism.runs.teachers import trained

    options = options_of(run, "model.init_args.teacher.init_args")
    return [] if options is None else [trained(**options)]


def options_of(run: Path, name: str) -> Any:  # noqa: ANN401 - what an option holds
    """An option of a run; None where it has none of this name."""
    from omegaconf import OmegaConf

    return OmegaConf.select(OmegaConf.load(run / "config.yaml"), name)


def _accuracy(net: nn.Module, x: Tensor, labels: Tensor) -> float:
    import torch

    with torch.no_grad():
        seen = torch.cat([net(part).argmax(1) for part in x.split(128)])
    return float((seen == labels).float().mean())

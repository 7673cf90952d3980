"""Which maps change when nothing does: python docs/studies/coherency.py (after make train EXP=classify/digits_resnet8).

In each block of a trained ResNet-8 the first BatchNorm is divided by 4 and the convolution behind it multiplied by 4:
every image keeps its logits. SID, RU, gradient map, Grad-CAM and CAM are taken before and after, and the change of each
is printed; pictures go to docs/figures/discarding_coherency.png.

Source: figure 1 of "Quantifying Layerwise Information Discarding of Neural Networks and Beyond".
"""

import argparse
import copy
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from netprism.datamodules import Digits
from netprism.discarding.baselines import class_activation_map, grad_cam, gradient_map
from netprism.discarding.decoder import Decoder
from netprism.discarding.reconstruction import reconstruction_uncertainty
from netprism.discarding.sensitivity import features_of
from netprism.discarding.sid import strict_information_discarding
from netprism.figures._common import save
from netprism.runs.teachers import trained

LAYERS = ["layer1.0.bn1", "layer2.0.bn1", "layer3.0.bn1"]  # what is scaled
FACTOR = 4.0


def rescaled(net: nn.Module) -> nn.Module:
    """The same function with other numbers in it."""
    other = copy.deepcopy(net)
    with torch.no_grad():
        for stage in (other.layer1, other.layer2, other.layer3):
            for block in stage:
                block.bn1.weight /= FACTOR
                block.bn1.bias /= FACTOR
                block.conv2.weight *= FACTOR
    return other


def decoder_of(net: nn.Module, layer: str, images: Tensor, steps: int) -> nn.Module:
    """A small decoder of the layer, trained for a few steps: RU is about the layer, however well it is rebuilt."""
    torch.manual_seed(0)
    with torch.no_grad():
        features = torch.cat([features_of(net, layer, part)[layer] for part in images.split(64)])
    decoder = Decoder(features.shape[1:], images.shape[1:], width=8)
    optimizer = torch.optim.Adam(decoder.parameters(), 0.01)
    for step in range(steps):
        rows = torch.randint(len(images), (16,), generator=torch.Generator().manual_seed(step))
        loss = (decoder(features[rows]) - images[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return decoder.eval()


class Undone(nn.Module):
    """A decoder of the rescaled features: it takes the factor back and does what the other one did."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, features: Tensor) -> Tensor:
        """Features to images."""
        rebuilt: Tensor = self.decoder(features * FACTOR)
        return rebuilt


def maps_of(net: nn.Module, x: Tensor, target: Tensor, decoders: dict[str, nn.Module]) -> dict[str, dict[str, Tensor]]:
    """{measure: {layer: map (N, 1, H, W)}}."""
    sid = strict_information_discarding(net, LAYERS, x)
    return {
        "SID": {layer: sid[layer].entropy_map for layer in LAYERS},
        "RU": {layer: reconstruction_uncertainty(net, layer, decoders[layer], x).entropy_map for layer in LAYERS},
        "gradient map": {layer: gradient_map(net, x, target, layer=layer) for layer in LAYERS},
        "Grad-CAM": {layer: grad_cam(net, layer, x, target) for layer in LAYERS},
        "CAM": {"layer3": class_activation_map(net, "layer3", "fc", x, target)},
    }


Maps = dict[str, dict[str, Tensor]]


def changes(before: Maps, after: Maps) -> list[str]:
    """A line for each measure and layer: entropies differ by nats, the others by a factor."""
    lines = []
    for measure, layers in before.items():
        for layer, old in layers.items():
            new = after[measure][layer]
            largest = (new - old).abs().max().item()
            factor = (new.abs().mean() / old.abs().mean()).item()
            change = f"largest change {largest:.1e} nats" if measure in ("SID", "RU") else f"{factor:.4f} times"
            lines.append(f"| {measure} | {layer} | {old.mean().item():.4g} | {new.mean().item():.4g} | {change} |")
    return lines


def draw(x: Tensor, before: Maps, after: Maps, path: Path) -> Path:
    """One image: a line for each measure, before and after for each layer, in one colour scale a line."""
    figure = Figure(figsize=(1.3 * (1 + 2 * len(LAYERS)), 1.35 * len(before)), layout="constrained")
    grid = figure.subplots(len(before), 1 + 2 * len(LAYERS))
    for line, (measure, layers) in zip(grid, before.items(), strict=True):
        pairs = [(layer, side) for layer in layers for side in (before, after)]
        values = [side[measure][layer][0].mean(0).numpy() for layer, side in pairs]
        low, high = min(v.min() for v in values), max(v.max() for v in values)
        line[0].imshow(x[0, 0], cmap="gray")
        line[0].set_ylabel(measure)
        for axes, (layer, side), value in zip(line[1:], pairs, values, strict=False):
            axes.imshow(value, vmin=low, vmax=high)
            axes.set_title(f"{layer}\n{'before' if side is before else 'after'}", fontsize="x-small")
        for axes in line:
            axes.set(xticks=[], yticks=[])
        for axes in line[1 + len(pairs) :]:
            axes.remove()
    return save(figure, path)


def main() -> None:
    """Trains the decoders, measures before and after, prints a table and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="of each decoder's training")
    parser.add_argument("--out", type=Path, default=Path("docs/figures/discarding_coherency.png"))
    options = parser.parse_args()
    net = trained("classify/digits_resnet8")
    data = Digits()
    data.setup("fit")
    train, test = (data.monitor_dataset(split) for split in ("train", "test"))
    x = torch.stack([test[i][0] for i in range(4)])
    images = torch.stack([train[i][0] for i in range(512)])
    other, target = rescaled(net), net(x).argmax(1)
    print(f"largest change of a logit: {(other(x) - net(x)).abs().max().item():.1e}")
    decoders = {layer: decoder_of(net, layer, images, options.steps) for layer in LAYERS}
    before = maps_of(net, x, target, decoders)
    after = maps_of(other, x, target, {layer: Undone(decoder) for layer, decoder in decoders.items()})
    print(
        "| measure | layer | before | after | change |\n| --- | --- | --- | --- | --- |",
        *changes(before, after),
        sep="\n",
    )
    draw(x, before, after, options.out)


if __name__ == "__main__":
    main()

"""What four layers of ResNet-8 keep of digits: error of the decoders, RU and SID, and maps of the uncertainty.

    make train EXP=discarding/decoder_digits
    python docs/studies/reconstruction.py

Prints a table and draws `docs/figures/reconstruction_uncertainty.png`, from six test images, seed 0.
"""

from __future__ import annotations

from pathlib import Path

import torch

from netprism.datamodules import Digits
from netprism.discarding.reconstruction import reconstruction_uncertainty
from netprism.discarding.sensitivity import feature_scale
from netprism.discarding.sid import strict_information_discarding
from netprism.figures.discarding import maps
from netprism.lightning_modules import InputDecoder
from netprism.nets import ResNet
from netprism.runs.teachers import checkpoint_of

FIGURE = Path(__file__).parents[1] / "figures" / "reconstruction_uncertainty.png"
IMAGES = 6
COLUMNS = ("MSE", "SID", "RU", "around g(f)", "ratio")


def main() -> None:
    """Measures, prints and draws."""
    checkpoint = checkpoint_of("discarding/decoder_digits")  # the network's own weights are in it
    trained = InputDecoder.load_from_checkpoint(checkpoint, teacher=ResNet(8, in_channels=1), weights_only=True).eval()
    data = Digits().monitor_dataset("test")
    everything = torch.stack([data[number][0] for number in range(len(data))])
    images = everything[:IMAGES]
    scales = feature_scale(trained.teacher, trained.layers, everything.split(64))
    maps_of = {}
    print(f"{'layer':8}" + "".join(f"{name:>13}" for name in COLUMNS))
    for layer, scale in scales.items():
        pair = (trained.teacher, layer, trained.decoder(layer), images)
        found = reconstruction_uncertainty(*pair, scale=scale)
        around = reconstruction_uncertainty(*pair, scale=scale, center="reconstruction")
        sid = strict_information_discarding(trained.teacher, layer, images, scale=scale)
        values = (found.mse, sid.mean, found.mean, around.mean, found.ratio)
        print(f"{layer:8}" + "".join(f"{value.mean():13.3f}" for value in values), flush=True)
        maps_of[layer] = found.entropy_map
    maps(images, maps_of, FIGURE, label="RU of a pixel, nats", rows=4)


if __name__ == "__main__":
    main()

"""The command `netprism sid`: strict information discarding of any trained network on a folder of images."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from tqdm import tqdm

from netprism.analysis.networks import data_of_run
from netprism.cli.image_folder import ImageFolder, find_images
from netprism.cli.network_options import add_network_options
from netprism.datamodules.image_files import read_boxes
from netprism.discarding.concentration import concentration
from netprism.discarding.constants import ALPHA, Method
from netprism.discarding.layer_view import LayerView
from netprism.discarding.sensitivity import feature_scale
from netprism.discarding.sid import LayerDiscarding, strict_information_discarding
from netprism.figures import discarding as figures
from netprism.files import csv_text, write_text
from netprism.runs.folder import display_path
from netprism.runs.teachers import trained

EPILOG = """\
writes into --out
  sid.csv          image, layer, SID (nats) and its error, ratio (1: the constraint holds), unseen (fraction of the
                   pixels that the layer does not see), and concentration where the objects are known
  layers.png       SID, and concentration, over the layers
  maps_000.png     images and one map per layer, in one colour scale; eight images per picture

examples
  netprism sid --checkpoint runs/quickstart/ID/checkpoints/best.ckpt --images folder/
  netprism sid --net resnet18 --weights DEFAULT --images folder/ --layers layer1 layer2 layer3 layer4 \\
      --size 224 224 --mean .485 .456 .406 --std .229 .224 .225"""
COLUMNS = ("image", "layer", "SID", "error", "ratio", "unseen", "concentration")
TO_A_PICTURE = 8
SCALE_VJPS = 64  # least number of vector-Jacobian products for the feature scale, over all images


def sid(args: list[str]) -> Path:
    """Runs `netprism sid` and returns the folder of what it wrote.

    Raises:
        argparse.ArgumentError: An argument is wrong.
        ValueError: There are no images, no network, no normalisation, or a layer that does not exist.
        FileNotFoundError: There is no such checkpoint or table.
    """
    options = _parser().parse_args(args)
    net = trained(options.experiment, options.checkpoint, options.net, options.weights)
    layers = options.layers or list(getattr(net, "tap_points", ()))
    if not layers:
        raise ValueError(f"--layers is missing and {type(net).__name__} has no tap_points; expected layers")
    folder = _folder(options)
    rows, pictures = _measure(net, layers, folder, options)
    out = Path(options.out)
    write_text(out / "sid.csv", _table(rows))
    _draw(rows, pictures, out)
    print(f"{len(folder)} images, {len(layers)} layers: {display_path(out)}/sid.csv, layers.png, maps_*.png")
    return out


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="netprism sid", description=__doc__, epilog=EPILOG, exit_on_error=False, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_network_options(parser, layers="default: the network's tap_points")
    images = parser.add_argument_group("images")
    images.add_argument("--images", required=True, type=Path, help="a folder")
    images.add_argument(
        "--size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"), help="size of the images that the network gets"
    )
    images.add_argument("--mean", nargs="+", type=float, help="mean per channel, of pixels from 0 to 1")
    images.add_argument("--std", nargs="+", type=float, help="standard deviation per channel")
    images.add_argument("--masks", type=Path, help="folder of PNGs of the same names: objects are not black")
    images.add_argument("--boxes", type=Path, help="CSV: image, left, top, right, bottom, in pixels of the files")
    measure = parser.add_argument_group("measure")
    measure.add_argument("--method", choices=get_args(Method), default="linear")
    measure.add_argument("--alpha", type=float, default=ALPHA)
    measure.add_argument("--share_channels", action="store_true", help="one sigma per pixel, not per channel")
    measure.add_argument("--num_vjps", type=int, default=64, help="vector-Jacobian products per image and layer (64)")
    measure.add_argument("--max_sigma", type=float, default=1.0, help="cap of sigma, in units of the input (1)")
    measure.add_argument("--batch_size", type=int, default=8)
    measure.add_argument("--seed", type=int, default=0)
    parser.add_argument("--maps", type=int, default=32, help="number of images with maps (32)")
    parser.add_argument("--out", default="sid", help="folder (sid)")
    return parser


def _folder(options: argparse.Namespace) -> ImageFolder:
    """The images, at the given size and normalisation, otherwise at those of the checkpoint's run."""
    if options.batch_size < 1:
        raise ValueError(f"batch_size is {options.batch_size}; expected a number >= 1")
    size, mean, std = options.size, options.mean, options.std
    if size is None or mean is None or std is None:
        try:
            data = data_of_run(options.checkpoint, options.experiment)
        except ValueError as error:
            raise ValueError("the data of the network are unknown; expected --size, --mean and --std") from error
        size, mean, std = size or data.shape[1:], mean or list(data.mean), std or list(data.std)
    if len(mean) != len(std) or len(mean) not in (1, 3):
        raise ValueError(f"mean has {len(mean)} numbers and std {len(std)}; expected 1 each (grey) or 3 (colour)")
    boxes = {} if options.boxes is None else read_boxes(options.boxes)
    return ImageFolder(find_images(options.images), (size[0], size[1]), mean, std, options.masks, boxes)


def _measure(
    net: nn.Module, layers: list[str], folder: ImageFolder, options: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[dict[str, Tensor]]]:
    """Rows of the table, and what the pictures show: maps are kept of those images only."""
    steps = math.ceil(len(folder) / options.batch_size)
    images = (x for _, x, _ in tqdm(folder.batches(options.batch_size), "feature scale", steps, leave=False))
    scale = feature_scale(
        LayerView(net, layers), images, num_vjps=math.ceil(SCALE_VJPS / len(folder)), seed=options.seed
    )
    rows: list[dict[str, Any]] = []
    pictures: list[dict[str, Tensor]] = []
    for number, (names, x, masks) in enumerate(tqdm(folder.batches(options.batch_size), "SID", steps, leave=False)):
        results = strict_information_discarding(
            net, layers, x, scale=scale, alpha=options.alpha, method=options.method, num_vjps=options.num_vjps,
            share_channels=options.share_channels, max_sigma=options.max_sigma, seed=options.seed + 1000 * number,
        )  # fmt: skip
        for layer, result in results.items():
            rows += _rows(names, layer, result, masks)
        if number * options.batch_size < options.maps:
            pictures.append({"input": x} | {layer: result.entropy_map for layer, result in results.items()})
    return rows, pictures


def _rows(names: list[str], layer: str, result: LayerDiscarding, masks: Tensor | None) -> list[dict[str, Any]]:
    none = torch.full_like(result.mean, torch.nan)
    columns = {
        "SID": result.mean,
        "error": result.error,
        "ratio": result.ratio,
        "unseen": result.unseen.flatten(1).float().mean(1),
        "concentration": none if masks is None else concentration(result.entropy_map, masks),
    }
    numbers = [dict(zip(columns, row, strict=True)) for row in torch.stack(list(columns.values())).T.tolist()]
    return [{"image": name, "layer": layer, **row} for name, row in zip(names, numbers, strict=True)]


def _table(rows: list[dict[str, Any]]) -> str:
    """By image and then by layer; empty where there is no number."""

    def cell(value: object) -> object:
        return ("" if math.isnan(value) else f"{value:.6g}") if isinstance(value, float) else value

    ordered = sorted(rows, key=lambda row: str(row["image"]))
    return csv_text([{key: cell(value) for key, value in row.items()} for row in ordered], COLUMNS)


def _draw(rows: list[dict[str, Any]], pictures: list[dict[str, Tensor]], out: Path) -> None:
    titles = {"SID": "SID, nats", "concentration": "concentration, nats"}
    series: dict[str, dict[str, list[float]]] = {title: {} for title in titles.values()}
    for row in rows:
        for quantity, title in titles.items():
            series[title].setdefault(row["layer"], []).append(row[quantity])
    if all(math.isnan(row["concentration"]) for row in rows):
        del series[titles["concentration"]]
    figures.over_layers(series, out / "layers.png")
    merged = {key: torch.cat([picture[key] for picture in pictures]) for key in (pictures[0] if pictures else ())}
    images = merged.pop("input", torch.empty(0))
    for number, start in enumerate(range(0, len(images), TO_A_PICTURE)):
        chosen = {layer: values[start : start + TO_A_PICTURE] for layer, values in merged.items()}
        figures.maps(images[start : start + TO_A_PICTURE], chosen, out / f"maps_{number:03}.png", "SID, nats")

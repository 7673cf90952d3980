"""The command `netprism analyze`: every measure once on trained networks, without any training."""

from __future__ import annotations

import argparse
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netprism.cli.network_options import add_network_options
from netprism.runs.folder import display_path

if TYPE_CHECKING:
    from netprism.analysis.result import Analysis

NAMES = ("gates", "discarding", "knowledge", "components")
METHODS = ("linear", "optimized")
EPILOG = """\
writes into --out
  report.html      all of it on one page
  analysis.csv     network, quantity, layer, value, unit
  per_image.csv    image, layer, SID (nats) and its error, ratio (1: the constraint holds), unseen (fraction of the
                   pixels that the layer does not see), and concentration where the objects are known
  figures/, maps/  PNG: curves over layers, maps of images in one colour scale, eight images per picture
  tables/          components

Without --data the network looks at the images of its run. Subfolders of --data are its classes, in alphabetic order:
knowledge points and class information need them. Of a folder with train and val (or test), both are looked at.

examples
  netprism analyze --checkpoint runs/quickstart/ID/checkpoints/best.ckpt
  netprism analyze --checkpoint a/best.ckpt b/best.ckpt --data folder/ --monitors gates discarding
  netprism analyze --net torchvision.models.resnet18 --weights DEFAULT --data folder/
  netprism analyze --net my.Module --checkpoint my.ckpt --data folder/ --size 64 64 --mean 0 0 0 --std 1 1 1"""


def analyze_command(args: list[str]) -> Path:
    """Runs `netprism analyze` and returns the page.

    Raises:
        argparse.ArgumentError: An argument is wrong.
        ValueError: There are no images, no network, no normalisation, or a layer that does not exist.
        FileNotFoundError: There is no such checkpoint or table.
    """
    options = _parser().parse_args(args)
    for name, value in (("batch_size", options.batch_size), ("num_images", options.num_images)):
        if value < 1:
            raise ValueError(f"{name} is {value}; expected a number >= 1")
    from netprism.analysis.result import beside

    checkpoints = options.checkpoint or [None]
    labels = _labels(checkpoints, options.net or options.experiment)
    found = [_one(label, checkpoint, options) for label, checkpoint in zip(labels, checkpoints, strict=True)]
    result = beside(*found)
    about = {"networks": ", ".join(result.values), "images": options.data or "those of the run", "seed": options.seed}
    print(result)
    page = result.save(options.out, title=f"Analysis of {', '.join(result.values)}", about=about)
    print(f"report       {display_path(page)}", f"tables       {display_path(options.out)}/*.csv", sep="\n")
    return page


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="netprism analyze", description=__doc__, epilog=EPILOG, exit_on_error=False, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_network_options(parser, layers="of discarding, knowledge, components; default: the outermost blocks", many=True)
    images = parser.add_argument_group("images")
    images.add_argument(
        "--data", type=Path, help="a folder, one of a folder per class, or of train and val; default: the run's"
    )
    images.add_argument("--size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"), help="that the network gets")
    images.add_argument("--mean", nargs="+", type=float, help="mean per channel, of pixels from 0 to 1")
    images.add_argument("--std", nargs="+", type=float, help="standard deviation per channel")
    images.add_argument("--masks", type=Path, help="folder of PNGs of the same names: objects are not black")
    images.add_argument("--boxes", type=Path, help="CSV: image, left, top, right, bottom, in pixels of the files")
    images.add_argument("--root", help="folder of the run's images; default: that of the run")
    measure = parser.add_argument_group("measures")
    measure.add_argument("--monitors", nargs="+", choices=NAMES, help="default: the first three, as far as they fit")
    measure.add_argument("--num_images", type=int, default=64, help="of discarding and components (64)")
    measure.add_argument("--decoders", help="checkpoint of an InputDecoder of this network, for RU")
    measure.add_argument("--method", choices=METHODS, default="linear", help="of SID")
    measure.add_argument("--alpha", type=float, help="how far features may move in SID (1.5e-4)")
    measure.add_argument("--share_channels", action="store_true", help="one sigma per pixel, not per channel")
    measure.add_argument("--num_vjps", type=int, default=64, help="vector-Jacobian products per image and layer (64)")
    measure.add_argument("--max_sigma", type=float, default=1.0, help="cap of sigma, in units of the input (1)")
    measure.add_argument("--maps", type=int, default=32, help="number of images with maps (32)")
    measure.add_argument("--batch_size", type=int, default=8, help="of discarding (8)")
    measure.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps; auto: a GPU where there is one")
    parser.add_argument("--out", type=Path, default=Path("analysis"), help="folder (analysis)")
    return parser


def _one(label: str, checkpoint: str | None, options: argparse.Namespace) -> Analysis:
    """The analysis of one network, on images as it gets them."""
    import torch

    from netprism.analysis.analyze import analyze
    from netprism.runs.teachers import trained

    net = trained(options.experiment, checkpoint, options.net, options.weights)
    data, names = _data(checkpoint, options)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    try:
        net = net.to(device)
    except (RuntimeError, AssertionError) as error:
        said = str(error).splitlines()[0]
        raise ValueError(f"device is {device!r}; expected one of this machine ({said})") from error
    chosen = None if options.monitors is None else [_monitor(name, options) for name in options.monitors]
    given: dict[str, Any] = {"layers": options.layers, "num_images": options.num_images, "seed": options.seed}
    usual = [_monitor(name, options) for name in NAMES[:3]]
    return analyze({label: net}, data, chosen, names=names, usual=usual, **given)


def _monitor(name: str, options: argparse.Namespace) -> Any:  # noqa: ANN401 - a name or a monitor
    """Discarding with its options; the others by their names."""
    if name != "discarding":
        return name
    from netprism.callbacks import InformationDiscarding

    alpha = {} if options.alpha is None else {"alpha": options.alpha}
    return InformationDiscarding(
        layers=options.layers, num_images=options.num_images, num_scale_images=options.num_images,
        num_vjps=options.num_vjps, num_shown=options.maps, method=options.method, **alpha,
        share_channels=options.share_channels, max_sigma=options.max_sigma, batch_size=options.batch_size,
        decoders=options.decoders, seed=options.seed,
    )  # fmt: skip


def _data(checkpoint: str | None, options: argparse.Namespace) -> tuple[Any, list[str] | None]:
    """The images at the given size and normalisation, otherwise at those of the run or of torchvision's weights."""
    from netprism.analysis.image_folder import folder_splits
    from netprism.analysis.networks import data_of_run
    from netprism.datamodules.image_files import read_boxes
    from netprism.runs.named_networks import input_size

    data = None
    if checkpoint is not None or options.experiment is not None:
        with suppress(ValueError):  # no run, or data of the user's own
            data = data_of_run(checkpoint, options.experiment)
    if options.data is None:
        if data is None:
            raise ValueError("--data is missing; expected a folder, since no run tells its images")
        data.root = options.root or data.root
        return data, None
    size, mean, std = options.size, options.mean, options.std
    if size is None or mean is None or std is None:
        usual = input_size(options.net, options.weights)
        if data is not None:
            usual = (data.shape[1], data.shape[2]), list(data.mean), list(data.std)
        if usual is None:
            raise ValueError("the data of the network are unknown; expected --size, --mean and --std")
        size, mean, std = size or usual[0], mean or usual[1], std or usual[2]
    boxes = None if options.boxes is None else read_boxes(options.boxes)
    splits = folder_splits(options.data, (size[0], size[1]), mean, std, options.masks, boxes)
    return splits, splits.get("test", splits["train"]).names  # discarding looks at test images where there are any


def _labels(checkpoints: list[str | None], net: str | None) -> list[str]:
    """What networks are called: by their runs, their files or their own name, without what all have in common."""
    if checkpoints == [None]:
        return [(net or "network").rpartition(".")[2]]
    paths = [Path(str(checkpoint)) for checkpoint in checkpoints]
    runs = [path.parts[-4:-2] if path.parent.name == "checkpoints" else (path.stem,) for path in paths]
    names = ["/".join(parts) or path.stem for parts, path in zip(runs, paths, strict=True)]
    if len(set(names)) < len(names):
        names = [str(path.with_suffix("")) for path in paths]
    if len(set(names)) < len(names):
        raise ValueError(f"checkpoint is given twice: {', '.join(names)}; expected different ones")
    common = os.path.commonpath(names) if len(names) > 1 and not any(map(os.path.isabs, names)) else ""
    return [name.removeprefix(f"{common}/") for name in names]

"""The command `netprism compress`: a trained network, pruned and with shared weights, without any training."""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import TYPE_CHECKING

from netprism.cli.network_options import add_network_options
from netprism.files import whole_file, write_table
from netprism.runs.folder import display_path

if TYPE_CHECKING:
    from torch import nn

    from netprism.datamodules.base import ImageDataModule
    from netprism.interventions.compress import LayerSize

EPILOG = """\
writes
  compressed.ckpt  a plain state dict, beside the checkpoint of a run or where --out says; every command and every
                   experiment that takes a --checkpoint reads it
  compressed.csv   layer, weights, kept, values, bytes before and after

The accuracy on the run's test images is printed before and after. With retraining:
make train EXP=interventions/compressed_digits.

examples
  netprism compress --checkpoint runs/quickstart/ID/checkpoints/best.ckpt --prune 1.0 --bits 8 5
  netprism compress --net resnet18 --weights DEFAULT --bits 6 5 --out resnet18.ckpt"""


def compress(args: list[str]) -> Path:
    """Runs `netprism compress` and returns the file of the compressed network.

    Raises:
        argparse.ArgumentError: An argument is wrong.
        ValueError: There is no network, nothing to do, pruning would leave no weight of a layer, or a layer has fewer
            weights than centres.
        FileNotFoundError: There is no such checkpoint.
    """
    options = _parser().parse_args(args)
    if options.prune is None and options.bits is None:
        raise ValueError("--prune and --bits are missing; expected one of them or both")
    import torch

    from netprism.interventions.compress import layer_sizes, make_permanent, prune, share_weights, total_bytes
    from netprism.runs.teachers import trained

    net = trained(options.experiment, options.checkpoint, options.net, options.weights)
    out = _out(options)
    data = _data(options)
    before = _accuracy(net, data, "before")
    if options.prune is not None:
        prune(net, options.prune, options.layers)
        make_permanent(net)
    if options.bits is not None:
        share_weights(net, options.bits[0], options.bits[1], options.layers)
    sizes = layer_sizes(net)
    after = _accuracy(net, data, "after")
    buffer = io.BytesIO()  # not to the file itself: there torch's writer ends a full disk in a RuntimeError
    torch.save(net.state_dict(), buffer)
    with whole_file(out) as part:
        part.write_bytes(buffer.getbuffer())
    write_table(out.with_suffix(".csv"), [vars(size) for size in sizes])
    print(_table(sizes))
    whole = total_bytes(sizes, net)
    print(f"parameters  {whole[0]:,} bytes -> {whole[1]:,} ({whole[0] / whole[1]:.1f} times smaller)")
    print(f"accuracy    {_shown(before)} -> {_shown(after)}")
    print(f"{display_path(out)}, {display_path(out.with_suffix('.csv'))}")
    return out


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="netprism compress", description=__doc__, epilog=EPILOG, exit_on_error=False, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_network_options(parser, layers="default: all convolutions and fully connected layers")
    how = parser.add_argument_group("compression")
    how.add_argument("--prune", type=float, metavar="S", help="threshold in standard deviations of a layer's weights")
    how.add_argument("--bits", nargs=2, type=int, metavar=("CONV", "LINEAR"), help="bits of a shared weight")
    parser.add_argument("--root", help="folder of the images; default: that of the run")
    parser.add_argument("--out", type=Path, help="file of the compressed network; default: beside the checkpoint")
    return parser


def _out(options: argparse.Namespace) -> Path:
    if options.out is not None:
        return Path(options.out)
    if options.checkpoint is None and options.experiment is None:
        raise ValueError("--out is missing; expected a file, since there is no run to put it beside")
    from netprism.runs.teachers import checkpoint_of

    return Path(options.checkpoint or checkpoint_of(options.experiment)).with_name("compressed.ckpt")


def _data(options: argparse.Namespace) -> ImageDataModule | None:
    """The data module of the run, None where it is not known."""
    if options.checkpoint is None and options.experiment is None:
        return None
    from netprism.analysis.networks import data_of_run
    from netprism.runs.teachers import checkpoint_of

    try:
        data = data_of_run(options.checkpoint or str(checkpoint_of(options.experiment)), options.experiment)
    except ValueError:
        return None
    if options.root is not None:
        data.root = options.root
    return data


def _accuracy(net: nn.Module, data: ImageDataModule | None, when: str) -> float | None:
    """Fraction of correct test images; None where no images are known."""
    if data is None:
        return None
    import torch
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    from netprism.components.network_split import logits_of

    right = total = 0
    loader = DataLoader(data.monitor_dataset("test"), data.batch_size)
    with torch.no_grad():
        for x, labels in tqdm(loader, f"accuracy {when}", leave=False):
            right += int((logits_of(net(x)).argmax(1) == labels).sum())
            total += len(labels)
    return right / total


def _shown(accuracy: float | None) -> str:
    return "unknown: no data module" if accuracy is None else f"{accuracy:.4f}"


def _table(sizes: list[LayerSize]) -> str:
    width = max(5, *(len(size.layer) for size in sizes))
    lines = [f"{'layer':{width}}  {'weights':>10} {'kept':>6} {'values':>7} {'bytes before':>13} {'after':>10}"]
    for size in sizes:
        kept = size.kept / size.weights
        lines.append(
            f"{size.layer:{width}}  {size.weights:>10,} {kept:>6.3f} {size.values:>7} {size.bytes_before:>13,} "
            f"{size.bytes_after:>10,}"
        )
    return "\n".join(lines)

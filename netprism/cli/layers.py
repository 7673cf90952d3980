"""The command `netprism layers`: the layers of a network, by the names that every measure takes."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from netprism.analysis.layer_table import LayerRow, LayerTable

EPILOG = """\
columns
  layer       the name for layers=; its end is enough where only one ends so
  output      of one sample
  gates       in the layer, for GatingEntropy and ComplexityPenalty
  S K C       usable for SID (InformationDiscarding), KnowledgePoints, FeatureComponents
  *           taken where no layers are given; (*) for the measures of maps only

examples
  netprism layers runs/quickstart/ID/checkpoints/best.ckpt
  netprism layers torchvision.models.resnet18
  netprism layers my_package.MyModule --size 3 64 64"""


def layers(args: list[str]) -> LayerTable:
    """Runs `netprism layers` and returns what it has printed.

    Raises:
        argparse.ArgumentError: An argument is wrong.
        ValueError: There is no such network, or it does not run on such inputs.
        FileNotFoundError: There is no such checkpoint.
    """
    options = _parser().parse_args(args)
    from netprism.analysis.layer_table import TRIED_SIZES, layer_table, run_on_some
    from netprism.analysis.networks import untrained_network

    network, called, size = untrained_network(options.network)
    sizes = [tuple(options.size)] if options.size else [size] if size else TRIED_SIZES
    inputs = run_on_some(called, sizes, options.tokens)
    table = layer_table(called, inputs, network, options.depth)
    print(_text(table, type(network).__name__, tuple(inputs.shape[1:])))
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="netprism layers", description=__doc__, epilog=EPILOG, exit_on_error=False, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "network", help="checkpoint of a run, experiment, class path, or a model of torchvision or timm (timm.NAME)"
    )
    parser.add_argument(
        "--size", nargs="+", type=_positive, help="of one sample: 3 224 224; by default found by trying"
    )
    parser.add_argument("--tokens", type=_positive, metavar="LENGTH", help="integers instead, that many")
    parser.add_argument("--depth", type=_positive, default=2, help="how deep parts of parts are listed (2)")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is no number >= 1")
    return value


def _text(table: LayerTable, kind: str, size: tuple[int, ...]) -> str:
    rows: list[tuple[str, ...]] = [("layer", "kind", "output", "gates", "S", "K", "C", "")]
    rows += [_cells(row, table) for row in table.rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    aligned = ("<", "<", "<", ">", "<", "<", "<", "<")
    lines = ["  ".join(f"{c:{a}{w}}" for c, a, w in zip(row, aligned, widths, strict=True)) for row in rows]
    total = sum(row.gates for row in table.rows if row.depth == 0)
    head = f"{kind}, on samples of {'x'.join(map(str, size))}: {total:,} gates in all"
    listed = [f"layers taken where none are given: {', '.join(table.defaults) or 'none, no block fits'}"]
    if table.default_maps != table.defaults:
        listed.append(f"by measures of maps: {', '.join(table.default_maps) or 'none, the network has no maps'}")
    return "\n".join([head, "", *(line.rstrip() for line in lines), "", *listed])


def _cells(row: LayerRow, table: LayerTable) -> tuple[str, ...]:
    taken = "*" if row.name in table.defaults else "(*)" if row.name in table.default_maps else ""
    usable = {"S": row.discarding, "K": row.knowledge, "C": row.components}
    marks = (letter if usable[letter] else "." for letter in usable)
    shape = "" if row.shape is None else "x".join(map(str, row.shape)) or "1"
    return ("  " * row.depth + row.name, row.kind, shape, f"{row.gates:,}" if row.gates else "", *marks, taken)

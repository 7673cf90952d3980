"""What the lists, boxes and segments of published data sets have in common: read with one line for what is broken."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from netprism.datamodules.image_files import UnreadableImageError

SIDES = ("xmin", "ymin", "xmax", "ymax")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Makes one line that names the file of what its content raises.

    Raises:
        FileNotFoundError: It is missing.
        OSError: It is broken.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:  # of text, XML, JSON and MATLAB files: ten kinds
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise OSError(f"{path} cannot be read ({cause}); copy it anew") from error


def rows_of(path: Path) -> list[list[str]]:
    """Returns the words of each line of a text file; empty lines do not count."""
    with reading(path):
        return [words for line in path.read_text(encoding="utf-8").splitlines() if (words := line.split())]


@dataclass(frozen=True)
class VocObject:
    """An object in the XML of Pascal VOC, which Stanford Dogs uses as well: its class, its box, and whether it counts.

    The box is (left, top, right, bottom) in pixels, the last two just outside; those of the file count from 1.
    """

    name: str
    box: tuple[float, float, float, float]
    is_difficult: bool


def voc_objects(path: Path) -> list[VocObject]:
    """Reads the objects of an annotation, in its order.

    Raises:
        OSError: It is missing or broken.
    """
    with reading(path):
        return [_voc_object(node) for node in ElementTree.parse(path).getroot().iter("object")]


def _voc_object(node: ElementTree.Element) -> VocObject:
    left, top, right, bottom = (float(node.findtext(f"bndbox/{side}", "")) for side in SIDES)
    is_difficult = node.findtext("difficult", "0").strip() == "1"
    return VocObject(node.findtext("name", "").strip(), (left - 1, top - 1, right, bottom), is_difficult)


def as_boxes(rows: Sequence[Sequence[float]]) -> Tensor:
    """Returns boxes (N, 4), float64."""
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)


@dataclass(frozen=True)
class CocoSegment:
    """Where an object of COCO is: polygons of its outline, or run lengths.

    Args:
        outline: Its `segmentation`.
        file: Image that it is of.
    """

    outline: Any
    file: Path

    def read(self, size: tuple[int, int]) -> Image.Image:
        """The object, of mode "L".

        Raises:
            ModuleNotFoundError: pycocotools is missing.
            UnreadableImageError: The run lengths are of another size.
        """
        try:
            from pycocotools import mask
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("COCO2014 needs pycocotools for masks: pip install pycocotools") from error
        width, height = size
        outline = self.outline
        if isinstance(outline, dict):
            if list(outline["size"]) != [height, width]:
                raise UnreadableImageError(f"{self.file}: segment is of {outline['size']}; expected {[height, width]}")
            coded = mask.frPyObjects(outline, height, width) if isinstance(outline["counts"], list) else outline
        else:
            coded = mask.merge(mask.frPyObjects([list(map(float, polygon)) for polygon in outline], height, width))
        return Image.fromarray(np.asarray(mask.decode(coded), np.uint8) * 255)


def without_number(name: str) -> str:
    """`001.Black_footed_Albatross` as `Black_footed_Albatross`, `n02085620-Chihuahua` as `Chihuahua`."""
    return re.sub(r"^(\d+\.|n\d+-)", "", name)

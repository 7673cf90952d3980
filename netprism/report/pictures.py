"""Pictures of a run, made small enough that a page with all of them can be sent by mail."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

BUDGET = 3_000_000  # bytes of pictures in a page; plotly takes 4.8 MB, and base64 adds a third
WIDEST = 1400  # pixels
_FILMS = 800_000  # bytes: longer films are left in the folder


@dataclass(frozen=True)
class Picture:
    """One picture, or the same one of several epochs.

    Attributes:
        title: File name without its ending, in words.
        frames: (epoch in words, data URI).
        left_out: Number of epochs that are in the folder only.
    """

    title: str
    frames: list[tuple[str, str]]
    left_out: int = 0


def pictures_of(folder: Path) -> dict[str, list[Picture]]:
    """Returns {"maps": ..., "figures": ...}: maps leaf through the epochs. Files that cannot be read are left out."""
    by_epoch: dict[str, list[tuple[str, Path]]] = {}
    for path in sorted((folder / "maps").glob("*/*.png"), key=lambda path: (path.parent.name != "start", path)):
        by_epoch.setdefault(path.stem, []).append((path.parent.name.replace("_", " "), path))
    figures = [path for path in sorted((folder / "figures").glob("*")) if path.suffix in (".png", ".gif")]
    figures += sorted((folder / "maps").glob("*.png"))  # of an analysis, which has no epochs
    left = BUDGET
    shown: list[Picture] = []
    for path in figures:
        if path.suffix == ".gif" and path.stat().st_size > _FILMS:
            continue
        uri = _uri(path)
        if uri and len(uri) <= left:
            left -= len(uri)
            shown.append(Picture(path.stem.replace("_", " "), [("", uri)]))
    maps: list[Picture] = []
    for number, (stem, paths) in enumerate(by_epoch.items()):
        maps.append(_leaves(stem, paths, left // (len(by_epoch) - number)))
        left -= sum(len(uri) for _, uri in maps[-1].frames)
    found = {"maps": [picture for picture in maps if picture.frames], "figures": shown}
    return {kind: pictures for kind, pictures in found.items() if pictures}


def _leaves(stem: str, paths: list[tuple[str, Path]], budget: int) -> Picture:
    """As many epochs as the budget holds, evenly spaced, the first and the last among them."""
    one = max((len(_uri(paths[i][1])) for i in (0, len(paths) - 1)), default=0) or 1
    count = max(1, min(len(paths), int(budget / (1.2 * one))))
    places = sorted({round(i * (len(paths) - 1) / max(count - 1, 1)) for i in range(count)}) if count > 1 else [-1]
    frames = [(epoch, uri) for epoch, path in (paths[i] for i in places) if (uri := _uri(path))]
    return Picture(stem.replace("_", " "), frames, len(paths) - len(frames))


def _uri(path: Path) -> str:
    """A data URI: GIFs as they are, pictures as WebP, whose text stays sharp at a third of the size; "" if broken."""
    try:
        if path.suffix == ".gif":
            kind, content = "gif", path.read_bytes()
        else:
            with Image.open(path) as image:
                picture = image.convert("RGB")
            picture.thumbnail((WIDEST, 4 * WIDEST))
            file = io.BytesIO()
            picture.save(file, "WEBP", quality=82, method=2)
            kind, content = "webp", file.getvalue()
    except (OSError, SyntaxError):  # Pillow says SyntaxError for a PNG that ends too early
        return ""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"

"""The trained networks that a config names by their experiments. No torch here, for `netprism slurm`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jsonargparse import Namespace

FACTORY = "netprism.runs.teachers.trained"


def teachers_in(node: Any) -> Iterator[Any]:  # noqa: ANN401 - a part of a config
    """Yields the arguments of each `trained` in a config that does not say which run of the experiment is meant.

    Args:
        node: Dicts and lists of a YAML file, or the namespaces of a parsed one; what is yielded may be
            changed in place.
    """
    if isinstance(node, list):
        for part in node:
            yield from teachers_in(part)
    elif isinstance(node, dict | Namespace):
        fields = node if isinstance(node, dict) else vars(node)
        options = fields.get("init_args") if fields.get("class_path") == FACTORY else None
        if options is not None and options.get("experiment") and options.get("checkpoint") is None:
            yield options
        for part in fields.values():
            yield from teachers_in(part)

"""The key of a run: a hash of what its config changes and what changes its numbers. Runs are found by it.

What has its default value does not count, so that a run is found again after an option has been added to netprism. Only
a class whose arguments are not known without importing it counts with all of them.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, cast

import yaml

from netprism.cli.signatures import signature
from netprism.runs.folder import finished_runs

FACTORY = "netprism.runs.teachers.trained"
# Where a run is written and read, what it shows, and how it was started.
IRRELEVANT = (
    "ckpt_path",
    "weights_only",
    "summary",
    "best_checkpoint.dirpath",
    "last_checkpoint.dirpath",
    "trainer.default_root_dir",
    "trainer.logger",
    "trainer.profiler",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "data.init_args.root",
    "data.init_args.download",
    "data.init_args.num_workers",
)
SECTIONS = {  # parts of a config that name no class
    "trainer": "pytorch_lightning.Trainer",
    "best_checkpoint": "netprism.callbacks.training.best_checkpoint.BestCheckpoint",
    "last_checkpoint": "pytorch_lightning.callbacks.ModelCheckpoint",
}
LENGTH = ("max_epochs", "max_steps", "limit_train_batches", "overfit_batches", "accumulate_grad_batches")
CALLBACKS = "netprism.callbacks."
CHANGE_THE_TRAINING = (f"{CALLBACKS}ComplexityPenalty",)
Config = dict[str, Any]


def config_key(config: Config) -> str:
    """Returns twelve hex digits, the same for two runs that compute the same.

    A checkpoint of an analysed network counts as the key of the run that it is of, wherever that lies.

    Args:
        config: The resolved config of `fit`, as a run writes it into `config.yaml`.
    """
    kept = _what_counts(config)
    for options in teachers(kept):
        options["checkpoint"] = _content(options.get("checkpoint"))
    return digest(kept)


def network_key(config: Config) -> str:
    """Returns twelve hex digits, the same for two runs that train the same network on whatever machine.

    Model, data, seed and length of the training count, and callbacks that change it; monitors, loggers, devices and
    precision do not.

    Args:
        config: The resolved config of `fit`, as a run writes it into `config.yaml`.
    """
    config = _what_counts(config)
    trainer = config.get("trainer") or {}
    callbacks = [
        callback
        for callback in trainer.get("callbacks") or []
        if not callback["class_path"].startswith(CALLBACKS) or callback["class_path"] in CHANGE_THE_TRAINING
    ]
    kept = {name: config.get(name) for name in ("seed_everything", "model", "data")}
    for options in teachers(kept):
        path = Path(options.get("checkpoint") or "")
        if (of_run := path.parent.parent / "config.yaml").is_file():
            options["checkpoint"] = f"key:{network_key(read_config(of_run))}"
    return digest([kept, callbacks, [trainer.get(name) for name in LENGTH]])


def digest(content: object) -> str:
    """Returns twelve hex digits of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]


def teachers(node: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401 - a part of a config
    """Yields the arguments of each analysed network in a resolved config."""
    if isinstance(node, dict):
        if node.get("class_path") == FACTORY and isinstance(node.get("init_args"), dict):
            yield node["init_args"]
        for part in node.values():
            yield from teachers(part)
    elif isinstance(node, list):
        for part in node:
            yield from teachers(part)


def _what_counts(config: Config) -> Config:
    """A copy without what is irrelevant and what has its default value."""
    kept: Config = json.loads(json.dumps(config, default=str))
    for path in IRRELEVANT:
        *parents, last = path.split(".")
        node: Any = kept
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node.pop(last, None)
    for name, class_path in SECTIONS.items():
        if isinstance(kept.get(name), dict):
            kept[name] = _changed(kept[name], class_path)
    return cast(Config, _without_defaults(kept))


def _without_defaults(node: Any) -> Any:  # noqa: ANN401 - a part of a config
    if isinstance(node, list):
        return [_without_defaults(part) for part in node]
    if not isinstance(node, dict):
        return node
    if isinstance(node.get("class_path"), str) and isinstance(node.get("init_args"), dict):
        changed = _changed(node["init_args"], node["class_path"])
        node = {name: part for name, part in node.items() if name != "init_args"}
        if changed:  # a class that has its first option now, at its default, is the one that had none
            node["init_args"] = changed
    return {name: _without_defaults(part) for name, part in node.items()}


def _changed(arguments: Config, class_path: str) -> Config:
    """The arguments of a class that differ from its defaults."""
    defaults = _defaults(class_path)
    return {
        name: value for name, value in arguments.items() if name not in defaults or not _same(value, defaults[name])
    }


def _same(one: Any, other: Any) -> bool:  # noqa: ANN401 - what JSON holds
    """Whether two values are equal; true is not 1, as it is in Python."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(part, other[name]) for name, part in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


@cache
def _defaults(class_path: str) -> Config:
    """{argument: default} as JSON reads it, of the defaults that are literals."""
    known = signature(class_path)
    found: Config = {}
    for argument in known.arguments if known else ():
        with suppress(ValueError, SyntaxError):  # a name, or no default
            found[argument.name] = json.loads(json.dumps(ast.literal_eval(argument.default)))
    return found


def _content(checkpoint: str | None) -> str | None:
    """Returns the key of the run that a checkpoint is of; the path itself where it is of none."""
    if checkpoint is None or checkpoint.startswith("key:"):
        return checkpoint
    path = Path(checkpoint)
    config = path.parent.parent / "config.yaml"
    return f"key:{config_key(read_config(config))}/{path.name}" if config.is_file() else checkpoint


def read_config(path: Path) -> Config:
    """Reads a resolved config; the C parser of YAML takes some milliseconds, the one in Python a tenth of a second."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    config: Config = yaml.load(path.read_text(encoding="utf-8"), loader)
    return config


def finished_by_key(experiment: str) -> dict[str, Path]:
    """Returns {key: folder} of the finished runs of an experiment, whoever trained them; of two the newest."""
    found: dict[str, Path] = {}
    for folder in reversed(finished_runs(experiment)):
        if (config := folder / "config.yaml").is_file():
            found[config_key(read_config(config))] = folder
    return found

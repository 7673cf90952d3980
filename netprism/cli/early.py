"""What of a command line can be answered before torch is imported: help, and names of options that do not exist."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from netprism.cli.errors import UsageError
from netprism.cli.signatures import Argument, Signature, methods, names_in, signature

TRAINER = "pytorch_lightning.trainer.trainer.Trainer"
BEST = "netprism.callbacks.BestCheckpoint"
CHECKPOINT = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
RUN_OPTIONS = {
    "config": "an experiment or a YAML file; several are read one after the other",
    "ckpt_path": "last, best, or a checkpoint to go on from",
    "seed_everything": "seed of all random numbers (0)",
    "print_config": "shows every value, and ends",
}
GROUPS = {"trainer": TRAINER, "best_checkpoint": BEST, "last_checkpoint": CHECKPOINT, "summary": None}
NOT_OPTIONS = ("model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders")  # of Trainer's methods
WIDTH = 100
_SAYS_HOW = (
    "config", "ckpt_path", "print_config", "data.root", "data.init_args.root", "data.num_workers", "data.download",
    "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.accelerator", "trainer.logger",
    "trainer.enable_", "trainer.default_root_dir", "trainer.fast_dev_run", "trainer.callbacks.class_path",
)  # fmt: skip


def check_options(command: str, args: Sequence[str], configs: Sequence[Path]) -> None:
    """Refuses options that no class in use takes, as far as their sources tell; what is not known passes.

    Args:
        command: `fit`, `validate`, `test` or `predict`.
        args: Arguments behind it, without those of `--config`.
        configs: Files of `--config`.

    Raises:
        UsageError: One is unknown; with the closest names.
    """
    nodes = _nodes(configs, args)
    options = {arg: arg[2:].partition("=")[0].rstrip("+") for arg in args if arg.startswith("--") and arg != "--"}
    replaced = {name.replace(".init_args", "").removesuffix(".class_path") for name in options.values()}
    for arg, name in options.items():
        parts = name.split(".")
        roots = [*RUN_OPTIONS, *GROUPS, "model", "data", "help", *_options_of(command)]
        if parts[0] not in roots:
            raise UsageError(_unknown(arg, parts[0], roots, "", f"netprism {command} --help lists the options"))
        if len(parts) > 1 and parts[0] in ("model", "data"):
            _check_path(arg, parts[1:], nodes.get(parts[0]), f"{parts[0]}.", replaced)
        elif len(parts) > 1 and (path := GROUPS.get(parts[0])) and (found := signature(path)) is not None:
            if parts[1] not in found.names:
                raise UsageError(_unknown(arg, parts[1], found.names, f"{parts[0]}.", ""))
            if parts[:2] == ["trainer", "callbacks"] and len(parts) > 2:
                _check_callback(arg, parts[2:], nodes.get("callbacks"))


def help_of(command: str, configs: Sequence[Path], args: Sequence[str]) -> str:
    """Returns the help of a command: netprism's own options first, for the classes of a config where there is one."""
    nodes = _nodes(configs, args)
    lines = [f"usage: netprism {command} --config EXPERIMENT [--OPTION VALUE ...]", ""]
    lines += _table({f"--{name}": text for name, text in RUN_OPTIONS.items()})
    for part, room in (("model", "lightning_modules"), ("data", "datamodules")):
        node = nodes.get(part)
        found = signature(str(node["class_path"])) if isinstance(node, dict) and "class_path" in node else None
        if found is not None:
            lines += ["", *_of_one(part, found, node)]
        else:
            classes = {name: signature(name) for name in names_in(room)}
            lines += ["", f"--{part} CLASS, with the options of the class as --{part}.OPTION"]
            lines += _table({f"  {name}": each.text for name, each in classes.items() if each is not None})
    callbacks = nodes.get("callbacks")
    paths = [str(node["class_path"]) for node in callbacks or [] if isinstance(node, dict) and "class_path" in node]
    if paths:
        for each in filter(None, map(signature, paths)):
            lines += ["", *_of_one("trainer.callbacks", each, {})]
    else:
        lines += ["", "--trainer.callbacks+=CLASS adds a monitor; --trainer.callbacks.OPTION is of the last one"]
        monitors = {name: signature(name) for name in names_in("callbacks")}
        lines += _table({f"  {name}": each.text for name, each in monitors.items() if each is not None})
    trainer = signature(TRAINER)
    names = [] if trainer is None else trainer.names
    text = textwrap.wrap(", ".join(names), WIDTH - 2)
    lines += ["", "--trainer.OPTION, of Lightning's Trainer:", *(f"  {line}" for line in text)]
    lines += ["", "--best_checkpoint.OPTION, --last_checkpoint.OPTION: of Lightning's ModelCheckpoint"]
    if not nodes.get("model"):
        lines += ["", f"netprism {command} --config EXPERIMENT --help    the options of an experiment's own classes"]
    lines += [f"netprism {command} --help all{' ' * 20} every option with its type, some seconds"]
    return "\n".join(lines)


def differing(args: Sequence[str]) -> list[str]:
    """Returns what options make different from an experiment, `["weight=1e-3", "seed=1"]`, to name a run by.

    Where it runs and where its files are does not count.

    Example:
        >>> differing(["--config=quickstart", "--model.weight", "1e-3", "--seed_everything=1", "--trainer.devices=2"])
        ['weight=1e-3', 'seed=1']
    """
    found: dict[str, str] = {}
    words = iter([*args, ""])
    word = next(words)
    while word:
        following = next(words, "")
        if word.startswith("--"):
            name, has_value, value = word[2:].partition("=")
            if not has_value and not following.startswith("--"):
                value, following = following, next(words, "")
            if name.startswith(_SAYS_HOW) or not value:
                word = following
                continue
            short = "seed" if name == "seed_everything" else name.rstrip("+").rpartition(".")[2]
            found[short] = value.rpartition(".")[2] if value.replace(".", "").replace("_", "").isalpha() else value
        word = following
    return [f"{name}={value}" for name, value in found.items()]


def _nodes(configs: Sequence[Path], args: Sequence[str]) -> dict[str, Any]:
    """`model`, `data` and `callbacks` of the configs, the last one that has each; None where an argument sets it."""
    import yaml

    found: dict[str, Any] = {}
    for config in configs:
        try:
            content = yaml.safe_load(config.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError, UnicodeDecodeError):
            continue
        content = content if isinstance(content, dict) else {}
        for part in ("model", "data"):
            if part in content:
                found[part] = _included(content[part], config)
        trainer = content.get("trainer")
        if isinstance(trainer, dict) and "callbacks" in trainer:
            found["callbacks"] = trainer["callbacks"]
    for arg in args:
        for part, name in (("model", "--model"), ("data", "--data"), ("callbacks", "--trainer.callbacks")):
            if arg.partition("=")[0].rstrip("+") == name or arg.startswith((f"{name}.class_path", f"{name}+")):
                found.pop(part, None)
    return found


def _included(node: Any, config: Path) -> Any:  # noqa: ANN401 - YAML
    """A node, or that of the YAML file that it names, with what files name within it."""
    import yaml

    if isinstance(node, str) and node.endswith((".yaml", ".yml")):
        file = config.parent / node
        return _included(yaml.safe_load(file.read_text(encoding="utf-8")), file) if file.is_file() else None
    if isinstance(node, str):
        return {"class_path": node}
    if isinstance(node, dict) and isinstance(node.get("init_args"), dict):
        return node | {"init_args": {key: _part(value, config) for key, value in node["init_args"].items()}}
    return node


def _part(value: Any, config: Path) -> Any:  # noqa: ANN401 - YAML
    is_node = isinstance(value, dict) or (isinstance(value, str) and value.endswith((".yaml", ".yml")))
    return _included(value, config) if is_node else value


def _check_path(arg: str, parts: list[str], node: Any, prefix: str, replaced: set[str]) -> None:  # noqa: ANN401
    """Follows an option through the classes of a config, as far as no other option names another one."""
    if parts and parts[0] == "init_args":
        parts, prefix = parts[1:], f"{prefix}init_args."
    if not isinstance(node, dict) or not parts or parts[0] in ("class_path", "dict_kwargs", "help"):
        return
    found = signature(str(node.get("class_path", "")))
    if found is None:
        return
    if parts[0] not in found.names:
        takes = f"{found.path.rpartition('.')[2]} takes {', '.join(found.names)}"
        raise UsageError(_unknown(arg, parts[0], found.names, prefix, takes))
    values = node.get("init_args")
    deeper = f"{prefix}{parts[0]}"
    if len(parts) > 1 and isinstance(values, dict) and deeper.replace(".init_args", "") not in replaced:
        _check_path(arg, parts[1:], values.get(parts[0]), f"{deeper}.", replaced)


def _check_callback(arg: str, parts: list[str], callbacks: Any) -> None:  # noqa: ANN401 - YAML
    """An option of the last callback."""
    last = callbacks[-1] if isinstance(callbacks, list) and callbacks else callbacks
    if not parts[0].isdigit():
        _check_path(arg, parts, last, "trainer.callbacks.", set())


def _unknown(arg: str, wrong: str, known: Sequence[str], prefix: str, otherwise: str) -> str:
    close = difflib.get_close_matches(wrong, known, n=3, cutoff=0.6)
    close = close or [name for name in known if wrong and (wrong in name or name in wrong)][:3]
    said = f"close: {', '.join(f'--{prefix}{name}' for name in close)}" if close else otherwise
    return f"unknown option {arg}" + (f"; {said}" if said else "")


def _options_of(command: str) -> list[str]:
    return [name for name in methods(TRAINER).get(command, []) if name not in NOT_OPTIONS]


def _of_one(part: str, found: Signature, node: Any) -> Iterator[str]:  # noqa: ANN401 - YAML
    values = node.get("init_args") if isinstance(node, dict) else None
    values = values if isinstance(values, dict) else {}
    yield f"{found.path.rpartition('.')[2]}: {found.text}"
    yield from _table({f"  --{part}.{a.name}": _text(a, values) for a in found.arguments})


def _text(argument: Argument, values: dict[str, Any]) -> str:
    value = values.get(argument.name, argument.default)
    if isinstance(value, dict):
        value = value.get("class_path", "...")
    default = f" ({value})" if value != "" else " (needed)"
    return f"{argument.text}{default}"


def _table(rows: dict[str, str]) -> list[str]:
    width = min(34, max(map(len, rows), default=0))
    lines = []
    for name, text in rows.items():
        wrapped = textwrap.wrap(text, WIDTH - width - 2) or [""]
        first = f"{name:{width}}  {wrapped[0]}" if len(name) <= width else name
        rest = wrapped[1:] if len(name) <= width else wrapped
        lines += [first.rstrip(), *(f"{' ' * width}  {line}" for line in rest)]
    return lines

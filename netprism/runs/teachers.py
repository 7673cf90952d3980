"""Trained networks to look into, from a run, a checkpoint or torchvision.

An analysis takes a plain `nn.Module`; in a config, `trained` says where that comes from:

    teacher:
      class_path: netprism.runs.teachers.trained
      init_args:
        experiment: classify/digits_resnet8
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from omegaconf import OmegaConf
from torch import Tensor, nn

from netprism.nets.fitting import fit_to_state
from netprism.runs.checkpoints import read_checkpoint
from netprism.runs.folder import command_of, display_path, finished_runs, runs_root, with_seed
from netprism.runs.named_networks import named_network

EXPERIMENTS = Path(__file__).parents[1] / "configs" / "experiment"
UNTRAINED = "untrained"
TRAINED_NETWORKS = ("net", "student")  # the arguments of a LightningModule that hold what it trains


def trained(
    experiment: str | None = None,
    checkpoint: str | None = None,
    net: nn.Module | str | None = None,
    weights: str | None = None,
    seed: int | None = None,
) -> nn.Module:
    """Returns a trained network, in eval mode and without gradients of its weights.

    Args:
        experiment: Name of an experiment: the best checkpoint of its newest finished run, whatever options that had.
            From a config, it is the newest one that had none, and `make train` trains that first if it is missing.
            With a `checkpoint`, only the network of that experiment.
        checkpoint: A Lightning checkpoint or a plain state dict, read with `weights_only=True`; "untrained" for the
            network with its initial weights, a control.
        net: The network; by default the one in `config.yaml` of the checkpoint's run, or that of the experiment. A text
            is a name as `named_network` takes it; a class gets the hyperparameters in the checkpoint.
        weights: The library's name of its own weights, such as "DEFAULT", or a file, instead of a checkpoint.
        seed: Seed of the experiment's training, `seed_everything`, for several networks of one experiment; None for the
            experiment's own seed in a config, and for any otherwise.

    Raises:
        ValueError: nothing to load; a seed without an experiment; an unknown name; a checkpoint of another network,
            with its first key that differs.
        FileNotFoundError: no such checkpoint, or no finished run.
    """
    if seed is not None and experiment is None:
        raise ValueError(f"seed is {seed}; expected it with an experiment, whose training had it")
    if checkpoint is None and weights is not None and Path(weights).is_file():
        checkpoint, weights = weights, None
    if checkpoint is None and weights is None:
        if experiment is None:
            raise ValueError("a trained network needs one of experiment, checkpoint, weights")
        checkpoint = str(checkpoint_of(experiment, seed))
    if net is None:
        net = build_network(config_for(checkpoint, experiment))
    elif isinstance(net, str):
        net = named_network(net, weights, _hyperparameters(checkpoint))
    if checkpoint not in (None, UNTRAINED):
        load_weights(net, Path(checkpoint))
    return net.eval().requires_grad_(False)


def checkpoint_of(experiment: str, seed: int | None = None) -> Path:
    """The best checkpoint of the newest finished run of an experiment, of that seed if one is given; or the last one.

    Raises:
        FileNotFoundError: there is none.
    """
    for run in finished_runs(experiment, seed):
        if (path := checkpoint_in(run)) is not None:
            return path
    where = display_path(runs_root() / experiment)
    raise FileNotFoundError(
        f"no finished run of {with_seed(experiment, seed)} in {where}; {command_of(experiment, seed)} makes one"
    )


def checkpoint_in(run: Path) -> Path | None:
    """Returns the best checkpoint of a run, the last one where none is the best, or None."""
    paths = (run / "checkpoints" / f"{word}.ckpt" for word in ("best", "last"))
    return next((path for path in paths if path.is_file()), None)


def config_for(checkpoint: str | None, experiment: str | None) -> Path:
    """The config that names the network of a checkpoint: its run's, or that of the experiment.

    Raises:
        ValueError: there is neither.
    """
    of_run = Path(checkpoint or "").absolute().parent.parent / "config.yaml"
    if checkpoint not in (None, UNTRAINED) and of_run.is_file():
        return of_run
    if experiment is not None and (of_experiment := EXPERIMENTS / f"{experiment}.yaml").is_file():
        return of_experiment
    raise ValueError(f"what network is {checkpoint or experiment!r} of? There is no config.yaml of a run: give `net`")


def build_network(config: Path) -> nn.Module:
    """The network, with new weights, that a config of a training names in `model.net`.

    Raises:
        ValueError: the config has none.
    """
    options = OmegaConf.select(OmegaConf.load(config), "model.init_args") or {}
    node = next((options[name] for name in TRAINED_NETWORKS if options.get(name) is not None), None)
    if node is None:
        raise ValueError(f"{display_path(config)} has no network in model.init_args.net")
    if isinstance(node, str) and node.endswith((".yaml", ".yml")):
        node = OmegaConf.load(config.parent / node)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--net", type=nn.Module)
    description = node if isinstance(node, str) else OmegaConf.to_container(node, resolve=True)
    network: nn.Module = parser.instantiate(parser.parse_object({"net": description})).net
    return network


def load_weights(net: nn.Module, path: Path) -> None:
    """Loads a checkpoint into `net`, whatever prefix its keys have (`net.`, `model.`, `module.`).

    Raises:
        FileNotFoundError: no such file.
        ValueError: no tensors that can be read without running code, or not those of `net`.
    """
    state = _tensors(path)
    prefix = _prefix(state, net.state_dict())
    given = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    fit_to_state(net, given)  # to another number of classes, or of channels
    own = net.state_dict()
    for key in dict.fromkeys((*own, *given)):
        if key not in given or key not in own or given[key].shape != own[key].shape:
            there, here = (str(tuple(d[key].shape)) if key in d else "absent" for d in (given, own))
            raise ValueError(
                f"{display_path(path)} is of another network: {prefix}{key} is {there}, "
                f"in this {type(net).__name__} {here}"
            )
    net.load_state_dict(given)


def _hyperparameters(checkpoint: str | None) -> dict[str, Any]:
    """What a LightningModule's checkpoint was made with; empty where nobody has saved it."""
    if checkpoint in (None, UNTRAINED):
        return {}
    content = read_checkpoint(Path(checkpoint))
    found = content.get("hyper_parameters") if isinstance(content, dict) else None
    return dict(found) if isinstance(found, dict) else {}


def _tensors(path: Path) -> dict[str, Tensor]:
    content = read_checkpoint(path)
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{display_path(path)} holds no state dict")
    return state


def _prefix(state: dict[str, Tensor], own: dict[str, Tensor]) -> str:
    """What precedes the keys of `own` in `state`: of the candidates the one with the most matches.

    A student may be a network such as its teacher, which is in the same checkpoint: then it is the student.
    """
    candidates = {""} | {key.removesuffix(name) for name in own for key in state if key.endswith(f".{name}")}
    return max(
        sorted(candidates), key=lambda prefix: (sum(prefix + name in state for name in own), prefix == "student.")
    )

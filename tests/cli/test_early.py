"""Help and typos without torch: what the sources say is what the classes take."""

import inspect
import subprocess
import sys

import pytest
import pytorch_lightning as pl
import yaml

import netprism.callbacks
import netprism.datamodules
import netprism.lightning_modules
import netprism.nets
from netprism.cli.early import check_options, help_of
from netprism.cli.errors import UsageError
from netprism.cli.main import experiments, find_config
from netprism.cli.signatures import names_in, signature

ROOMS = (netprism.lightning_modules, netprism.datamodules, netprism.callbacks, netprism.nets)
CLASSES = [(room, name) for room in ROOMS for name in room.__all__ if inspect.isclass(getattr(room, name))]


@pytest.mark.parametrize(("room", "name"), CLASSES, ids=[name for _, name in CLASSES])
def test_the_source_gives_the_arguments_of_the_class(room, name):
    kind = getattr(room, name)
    found = signature(f"{room.__name__}.{name}")
    assert name in names_in(room.__name__.rpartition(".")[2])
    own = [p for p in inspect.signature(kind.__init__).parameters.values() if p.name != "self"]
    named = [p.name for p in own if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if (kind.__init__ is not object.__init__ and not issubclass(kind, pl.Callback)) or named:
        assert found.names[: len(named)] == named
    passes_on = any(p.kind is p.VAR_KEYWORD for p in own)
    assert (len(found.names) > len(named)) <= passes_on


def test_the_trainer_is_read_too():
    names = signature("pytorch_lightning.trainer.trainer.Trainer").names
    assert names == list(inspect.signature(pl.Trainer.__init__).parameters)[1:]
    assert signature("torch.nn.Nothing") is None


@pytest.mark.parametrize("name", experiments())
def test_no_option_of_an_experiment_is_refused(name):
    config = find_config(name)
    content = yaml.safe_load(config.read_text())
    options = [f"--{part}.{key}=1" for part in ("model", "data") for key in _arguments(content.get(part))]
    options += [f"--trainer.{key}=1" for key in content.get("trainer", {})]
    check_options("fit", [*options, "--seed_everything=1", "--ckpt_path=last", "--print_config"], [config])
    assert "--trainer.OPTION" in help_of("fit", [config], [])


def _arguments(node):
    return (node.get("init_args") or {}) if isinstance(node, dict) else {}


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--model.lamda=3", "unknown option --model.lamda=3; Classifier takes net, num_classes, optimizer, scheduler"),
        ("--model.num_clases=3", "close: --model.num_classes"),
        ("--data.bach_size=3", "close: --data.batch_size"),
        ("--model.net.init_args.dept=3", "close: --model.net.init_args.depth"),
        ("--trainer.max_epoch=3", "close: --trainer.max_epochs"),
        ("--trainer.callbacks.num_image=3", "close: --trainer.callbacks.num_images"),
        ("--best_checkpoint.mod=min", "close: --best_checkpoint.mode"),
        ("--modle.depth=3", "close: --model"),
    ],
)
def test_a_typo_is_answered_with_the_closest_names(option, said):
    with pytest.raises(UsageError, match="unknown option") as caught:
        check_options("fit", [option], [find_config("quickstart")])
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        ["--model.net=netprism.nets.LeNet5", "--model.net.init_args.anything=3"],
        ["--model=my.Module", "--model.mine=3"],
        ["--trainer.callbacks=null"],
        ["--trainer.callbacks+=RichModelSummary", "--trainer.callbacks.max_depth=2"],
        ["--model.optimizer.init_args.lr=.1", "--trainer.logger.project=p", "--data.dict_kwargs.x=1"],
    ],
)
def test_what_may_be_meant_passes(options):
    check_options("fit", options, [find_config("quickstart")])


@pytest.mark.parametrize(
    "args", [["fit", "--help"], ["fit", "--config=quickstart", "--model.lamda=3"], ["analyze", "-h"]]
)
def test_they_need_no_torch(args):
    code = f"import sys; sys.modules['torch'] = None; from netprism.cli.main import main; main({args})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "--trainer.OPTION" in result.stdout or "unknown option" in result.stderr or "usage" in result.stdout
    assert "Traceback" not in result.stderr

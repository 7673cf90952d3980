"""A checkpoint that is broken, of something else or malicious: refused in one line, and nothing in it is run."""

import os
import pickle
import shutil

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.plugins.io import XLACheckpointIO
from small_runs import EXPERIMENT, SMALL, UNMONITORED, environment_of_a_desk, said, train

from netprism.discarding.decoder import load_decoders
from netprism.nets import MLP
from netprism.runs.checkpoint_io import SafeCheckpointIO, use_safe_checkpoints
from netprism.runs.checkpoints import of_another_model, read_checkpoint, read_training
from netprism.runs.teachers import trained

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* not empty"),  # of the run that goes on
    pytest.mark.filterwarnings("ignore:Detected pickle protocol"),  # in the malicious ones
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a finished run of one epoch, made once."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        environment_of_a_desk(patch, home)
        train(epochs=1)
    return home


@pytest.fixture
def checkpoints(finished, tmp_path, monkeypatch):
    """The folder `checkpoints` of a copy of that run."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    environment_of_a_desk(monkeypatch, tmp_path)
    (folder,) = (tmp_path / "runs" / EXPERIMENT).glob("*/checkpoints")
    return folder


class Evil:
    """Unpickled, makes a file."""

    def __reduce__(self):
        return os.mkdir, ("was_run",)


def saved(path, content, **options):
    torch.save(content, path, **options)


BREAK = {
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one byte of a tensor changed": lambda path: change(path, path.stat().st_size // 2),
    "another format": lambda path: path.write_text("<html>404</html>"),
}
MALICIOUS = {
    "in a checkpoint": lambda path: saved(path, torch.load(path, weights_only=True) | {"state_dict": Evil()}),
    "beside a checkpoint": lambda path: saved(path, torch.load(path, weights_only=True) | {"note": Evil()}),
    "in torch's old format": lambda path: saved(path, {"state_dict": Evil()}, _use_new_zipfile_serialization=False),
    "alone": lambda path: path.write_bytes(pickle.dumps(Evil())),
}


def decoders_of(path):
    """As InformationDiscarding loads them."""
    return load_decoders(read_training(path))


def change(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)


def opened(command, checkpoint, *args):
    return [command, f"--config={EXPERIMENT}", f"--ckpt_path={checkpoint}", *SMALL, UNMONITORED, *args]


@pytest.mark.parametrize(("command", "fault"), [("fit", "cut short"), ("test", "empty")])
def test_a_broken_checkpoint_is_named_with_the_other_one(command, fault, checkpoints, capsys):
    table = (checkpoints.parent / "metrics.csv").read_text()
    BREAK[fault](checkpoints / "last.ckpt")
    line = said(capsys, *opened(command, "last"))
    folder = checkpoints.relative_to(checkpoints.parents[4])
    problem = "is empty" if fault == "empty" else "is damaged, cut short or something else"
    assert line == f"{folder}/last.ckpt is no file of tensors alone: it {problem}; there is {folder}/best.ckpt, too"
    assert (checkpoints.parent / "metrics.csv").read_text() == table


@pytest.mark.parametrize("fault", BREAK)
def test_a_broken_teacher_is_named_with_the_other_one(fault, checkpoints):
    BREAK[fault](checkpoints / "best.ckpt")
    with pytest.raises(ValueError, match=r"best\.ckpt is no file of tensors alone: .*; there is .*/last\.ckpt, too$"):
        trained(EXPERIMENT)


def test_the_other_checkpoint_is_named_only_if_there_is_one(checkpoints):
    BREAK["empty"](checkpoints / "last.ckpt")
    (checkpoints / "best.ckpt").unlink()
    with pytest.raises(ValueError, match="it is empty$"):
        read_checkpoint(checkpoints / "last.ckpt")


@pytest.mark.parametrize("fault", MALICIOUS)
def test_a_malicious_pickle_is_not_run(fault, checkpoints, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = checkpoints / "last.ckpt"
    MALICIOUS[fault](path)
    ways = [
        lambda: SafeCheckpointIO().load_checkpoint(path),
        lambda: trained(EXPERIMENT, checkpoint=str(path)),
        lambda: trained(checkpoint=str(path), net=MLP((64, 10))),
        lambda: decoders_of(str(path)),
    ]
    for way in ways:
        with pytest.raises(ValueError, match=r"last\.ckpt is no file of tensors alone"):
            way()
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_malicious_pickle_is_not_run_by_the_command(command, checkpoints, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    MALICIOUS["in a checkpoint"](checkpoints / "last.ckpt")
    assert "it has objects in it (posix.mkdir), which would run code" in said(capsys, *opened(command, "last"))
    assert not (tmp_path / "was_run").exists()


def test_the_pickle_of_these_tests_does_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "evil.ckpt", Evil())
    torch.load(tmp_path / "evil.ckpt", weights_only=False)
    assert (tmp_path / "was_run").exists()


def test_no_option_switches_the_safety_off(checkpoints, capsys, tmp_path):
    MALICIOUS["in a checkpoint"](checkpoints / "last.ckpt")
    assert "weights_only is false" in said(capsys, *opened("fit", "last", "--weights_only=false"))
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("plugins", ["null", "TorchCheckpointIO", "LightningEnvironment"])
@pytest.mark.parametrize("unsafe", [True, False])
def test_no_plugin_switches_the_safety_off(plugins, unsafe, checkpoints, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    MALICIOUS["in a checkpoint"](checkpoints / "last.ckpt")
    options = [f"--trainer.plugins={plugins}", *(["--weights_only=false"] if unsafe else [])]
    said(capsys, *opened("fit", "last", *options))
    assert not (tmp_path / "was_run").exists()


def test_another_checkpoint_plugin_is_refused():
    trainer = pl.Trainer(plugins=[XLACheckpointIO.__new__(XLACheckpointIO)], accelerator="cpu", logger=False)
    with pytest.raises(ValueError, match="plugins has XLACheckpointIO; expected no checkpoint plugin or Safe"):
        use_safe_checkpoints(trainer)


def test_a_plugin_of_another_kind_leaves_checkpoints_safe():
    trainer = pl.Trainer(plugins=[LightningEnvironment()], accelerator="cpu", logger=False)
    use_safe_checkpoints(trainer)
    assert isinstance(trainer.strategy.checkpoint_io, SafeCheckpointIO)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # the run is a copy
def test_a_checkpoint_does_not_choose_the_class_of_the_model(checkpoints, capsys, monkeypatch, tmp_path):
    """Lightning's command line would import and make what `hyper_parameters` names."""
    (tmp_path / "planted.py").write_text("import os; os.mkdir('was_run')")
    monkeypatch.syspath_prepend(tmp_path)
    content = torch.load(checkpoints / "last.ckpt", weights_only=True)
    content["hyper_parameters"] = {"_class_path": "planted.Model", "_instantiator": "planted.make"}
    saved(checkpoints / "last.ckpt", content)
    assert train("--ckpt_path=last", epochs=1) == checkpoints.parent
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize(
    ("command", "net", "difference"),
    [
        ("fit", "widths=[1024,20,128,64,10]", "net.fc1.weight is (256, 1024), in this model (20, 1024)"),
        ("test", "widths=[1024,256,128,64,32,10]", "net.fc5.weight is absent"),
    ],
)
def test_a_checkpoint_of_another_model_is_one_line_with_the_first_key(command, net, difference, checkpoints, capsys):
    line = said(capsys, *opened(command, checkpoints / "last.ckpt", f"--model.net.{net}"))
    assert line.endswith(f"last.ckpt is of another model than this Classifier: {difference}")


def test_a_weight_that_only_the_checkpoint_has_is_named_too():
    with pytest.raises(RuntimeError) as caught:
        MLP((64, 10)).load_state_dict(MLP((64, 10)).state_dict() | {"fc2.bias": torch.ones(3)})
    line = of_another_model("last.ckpt", caught.value)
    assert line == "last.ckpt is of another model than this MLP: fc2.bias is absent in this model"


def test_weights_alone_are_no_training_to_go_on_with(checkpoints, capsys):
    content = torch.load(checkpoints / "last.ckpt", weights_only=True)
    saved(checkpoints / "last.ckpt", {"state_dict": content["state_dict"]})
    line = said(capsys, *opened("fit", "last"))
    assert "last.ckpt is no checkpoint of a training: it has no 'epoch'; there is" in line

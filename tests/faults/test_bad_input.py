"""What a user mistypes ends in one line with the value, never in a traceback, before anything is written."""

import json

import pytest
import torch
from small_runs import environment_of_a_desk
from torch.utils.data import DataLoader, TensorDataset

from netprism.cli.errors import users_error
from netprism.cli.main import main

pytestmark = [
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
]
EXPERIMENT = ["--config=gates/digits_mlp", "--trainer.fast_dev_run=1"]
NET = "model: {class_path: netprism.lightning_modules.Classifier, init_args: {net: {class_path: netprism.nets.MLP}}}\n"
DATA = "data: {class_path: netprism.datamodules.Digits}\n"


@pytest.fixture(autouse=True)
def at_a_desk(tmp_path, monkeypatch):
    environment_of_a_desk(monkeypatch, tmp_path)


def line_of(capsys, *args):
    """The one line in which a command ends."""
    with pytest.raises(SystemExit) as caught:
        main(list(args))
    assert caught.value.code in (1, 2)
    lines = [line for line in capsys.readouterr().err.splitlines() if "netprism: error: " in line]
    assert len(lines) == 1
    return lines[0].partition("netprism: error: ")[2]


def monitor(name, **options):
    found = [{"class_path": f"netprism.callbacks.{name}", "init_args": options}]
    return f"--trainer.callbacks={json.dumps(found)}"


OPTIONS = [  # what is typed, and what the line has
    ("--trainer.devices=-1", "devices"),
    ("--trainer.devices=9999", "trainer.devices is 9999; expected at most"),
    ("--trainer.devices=abc", "devices"),
    ("--trainer.devices=0", "devices"),
    ("--trainer.accelerator=tpu", "torch_xla"),
    ("--trainer.accelerator=banana", "banana"),
    ("--trainer.precision=8", "precision"),
    ("--trainer.strategy=nonsense", "nonsense"),
    ("--trainer.max_epochs=abc", "abc"),
    ("--trainer.max_epochs=-5", "-5"),
    ("--trainer.accumulate_grad_batches=0", "ZeroDivisionError"),
    ("--trainer.limit_train_batches=nan", "limit_train_batches"),
    ("--data.batch_size=null", "NoneType"),
    ("--data.batch_size=0", "batch_size is 0"),
    ("--data.batch_size=abc", "abc"),
    ("--data.image_size=null", "NoneType"),
    ("--data.image_size=-3", "image_size is -3"),
    ("--data.seed=99999999999999999999", "99999999999999999999"),
    ("--data.train_samples=5000", "5000"),
    ("--data.num_workers=1000000", "data.num_workers is 1000000; expected at most"),
    ("--data.num_workers=-1", "num_workers is -1"),
    ("--data=Nope", "Nope"),
    ("--data=torch.utils.data.DataLoader", "torch.utils.data.DataLoader"),
    ("--seed_everything=-1", "-1"),
    ("--seed_everything=99999999999999", "99999999999999"),
    ("--model.optimizer.lr=-1", "Invalid learning rate: -1.0"),
    ("--model.optimizer.lr=abc", "abc"),
    ("--model.optimizer=torch.optim.Nope", "Nope"),
    ("--model.optimizer=os.system", "os.system"),
    ("--model.optimizer=null", "optimizer is None; expected a class of torch.optim"),
    ("--model.optimizer.betas=[2,2]", "beta parameter"),
    ("--model.net=torch.nn.ReLU", "empty parameter list"),
    ("--model.net=no.such.module.X", "no.such.module"),
    ("--model.net=3", "net"),
    ("--model=Nope", "Nope"),
    (monitor("GatingEntropy", num_images=0), "num_images is 0"),
    (monitor("GatingEntropy", alpha=-1), "alpha"),
    (monitor("GatingEntropy", kinds=["banana"]), "banana"),
    (monitor("GatingEntropy", layers=["nope"]), "nope"),
    (monitor("GatingEntropy", layers=[]), "layers is []; expected one or more of"),
    (monitor("GatingEntropy", seed=-1), "seed is -1; expected 0 to 4294967295"),
    (monitor("GatingEntropy", seed=None), "seed is None"),
    (monitor("GatingEntropy", every_n_epochs=0), "every_n_epochs is 0"),
    (monitor("GatingEntropy", nope=1), "nope"),
    (monitor("InformationDiscarding", layers=["nope"]), "nope"),
    (monitor("KnowledgePoints", layers=[]), "layers"),
    (monitor("FeatureComponents", layer="nope"), "nope"),
    (monitor("ComplexityPenalty", weight=-1), "weight is -1"),
    (monitor("Nope"), "Nope"),
]


@pytest.mark.parametrize(("option", "part"), OPTIONS, ids=[option[:60] for option, _ in OPTIONS])
def test_an_option_that_is_wrong_ends_in_one_line(option, part, capsys, tmp_path):
    line = line_of(capsys, "fit", *EXPERIMENT, option)
    assert part in line, line
    assert not [path for path in tmp_path.iterdir() if path.name != "data"]


FILES = [
    (b"", "is empty"),
    (b"null\n", "is empty"),
    (b"- a\n- b\n", "is a list"),
    (b"machine api.wandb.ai login user password SECRET\n", "is a str"),
    ("# caf\xe9\ntrainer: {max_epochs: 1}\n".encode("latin-1"), "no text in UTF-8 (byte 5)"),
    ("trainer: {max_epochs: 1}\n".encode("utf-16"), "no text in UTF-8 (byte 0)"),
    (b"trainer: {max_epochs: [1\n", "line"),
    (b"trainer: {max_epochs: 1}\ntrainer: {max_epochs: 2}\n", "trainer"),
    (b"trainer: !!python/object/apply:os.system [touch x]\n", "python/object"),
    (f"{DATA}{NET}trainer: {{max_epochs: '${{trainer.max_epoch}}'}}\n".encode(), "'trainer.max_epoch' not found"),
    (f"{DATA}{NET}trainer: {{max_epochs: '${{oc.env:MISSING}}'}}\n".encode(), "'MISSING' not found"),
    (f"{DATA}{NET}trainer: {{default_root_dir: '${{unclosed'}}\n".encode(), "unclosed"),
    (f"{DATA}{NET}trainer: {{default_root_dir: '${{trainer.default_root_dir}}'}}\n".encode(), "Recursive"),
    (f"{DATA}{NET}trainer: {{default_root_dir: '${{nope:3}}'}}\n".encode(), "nope"),
    (f"{DATA}{NET}trainer: {{max_epoch: 3}}\n".encode(), "max_epoch"),
    (DATA.encode(), "model"),
]


@pytest.mark.parametrize(("text", "part"), FILES)
def test_a_config_that_is_wrong_ends_in_one_line(text, part, capsys, tmp_path):
    (tmp_path / "mine.yaml").write_bytes(text)
    line = line_of(capsys, "fit", "--config=mine.yaml")
    assert part in line, line
    assert "SECRET" not in line
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


COMMANDS = [
    (["fit", f"--config={'x' * 260}"], "no file and no experiment"),
    (["fit", f"--config={'x' * 5000}"], "no file and no experiment"),
    (["fit", "--config="], "no file and no experiment"),
    (["fit", "--config=/dev/null"], "no file and no experiment"),
    (["fit", *EXPERIMENT, "--trainer.max_epochs"], "expected one argument"),
    (["fit", *EXPERIMENT, "extra"], "extra"),
    (["fit", *EXPERIMENT, "--ckpt_path=nope.ckpt"], "nope.ckpt"),
    (["train"], "'train'"),
    (["42"], "'42'"),
    (["slurm"], "which training?"),
    (["slurm", "--config=quickstart", "--nodes=-1", "--dry-run"], "nodes is -1"),
]


@pytest.mark.parametrize(("args", "part"), COMMANDS, ids=[" ".join(args)[:60] for args, _ in COMMANDS])
def test_a_command_that_is_wrong_ends_in_one_line(args, part, capsys, tmp_path):
    assert part in line_of(capsys, *args)
    assert not list(tmp_path.iterdir())


def test_ctrl_c_is_status_130_and_no_traceback(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("netprism.cli.main.run", interrupted)
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--config=quickstart"])
    assert caught.value.code == 130
    assert capsys.readouterr().err.strip() == "netprism: stopped"


def test_a_loader_worker_that_was_killed_is_told():
    with pytest.raises(RuntimeError) as caught:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
    assert "data.num_workers=0" in str(users_error(caught.value))


def test_a_loader_worker_that_is_gone_as_it_hands_over_a_batch_is_told(monkeypatch):
    def gone(*_):
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr("multiprocessing.resource_sharer.DupFd.detach", gone)
    with pytest.raises(ConnectionResetError) as caught:
        next(iter(DataLoader(TensorDataset(torch.zeros(2, 3)), num_workers=1)))
    assert str(users_error(caught.value)).startswith("DataLoader worker ended as it handed over a batch (Connection")
    assert users_error(ConnectionResetError()) is None


def test_a_full_shared_memory_is_told_in_one_line():
    said = "unable to write to file </torch_12_34_0>: No space left on device (28)"
    with pytest.raises(RuntimeError) as caught:
        raise RuntimeError(
            f"Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback:\n  ...\nRuntimeError: {said}\n"
        )
    line = f"/dev/shm may be full (RuntimeError: {said}); data.num_workers=0 loads without workers"
    assert str(users_error(caught.value)) == line

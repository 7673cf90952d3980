import math

import pytest

from netprism.callbacks import GatingEntropy
from netprism.cli import experiments, run

pytestmark = [
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),  # Lightning's calls
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),  # the images are in memory
]


@pytest.mark.parametrize("name", experiments())
def test_says_what_it_shows_its_command_how_long_it_takes_and_what_to_expect(name):
    header = []
    for line in experiments()[name].read_text().splitlines():
        if not line.startswith("#"):
            break
        header.append(line.removeprefix("#").strip())
    assert 20 < len(header[0]) < 80
    assert f"make train EXP={name}" in header
    for word in ("Time: ", "Expect: "):
        assert any(line.startswith(word) for line in header), word


@pytest.mark.parametrize("name", experiments())
def test_runs_for_a_step(name, tmp_path, monkeypatch, mnist_root, cifar10_root):
    monkeypatch.chdir(tmp_path)
    root = mnist_root if "mnist" in name else cifar10_root
    probe = "--trainer.callbacks.samples=20"
    cli = run(
        "fit", ["--config", name, f"--data.root={root}", "--data.batch_size=8", probe, "--trainer.fast_dev_run=1"]
    )
    assert cli.trainer.global_step == 1
    assert 0 < cli.trainer.callback_metrics["train/loss"] < 20
    (measured,) = (callback for callback in cli.trainer.callbacks if isinstance(callback, GatingEntropy))
    assert [row["epoch"] for row in measured.history] == [-1, 0]
    assert all(0 < row[key] <= math.log2(20) for row in measured.history for key in ("H", "test_H"))
    assert {path.name for path in tmp_path.iterdir()} <= {"mnist", "cifar10"}, "a dry run leaves nothing"


def test_the_list_of_the_issue():
    assert set(experiments()) >= {
        "quickstart",
        "gates/digits_mlp",
        "gates/digits_resnet8",
        "gates/mnist_mlp",
        "gates/mnist_lenet",
        "gates/cifar10_resnet20",
        "gates/cifar10_resnet32",
        "gates/cifar10_vgg11",
        "gates/cifar10_lenet",
        "gates/cifar10_resmlp",
    }

import math
from functools import partial

import pytest
from PIL import Image
from published_data import write_cub, write_tiny

from netprism.callbacks import GatingEntropy
from netprism.cli.main import experiments, run

pytestmark = [
    pytest.mark.usefixtures("short_annealing"),
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


# Of no points, after one step; of no image that is taken for a wrong class.
MAY_BE_NAN = ("knowledge/ratio/", "knowledge/test/ratio/", "attack/utility/", "attack/new/")


def dry_run(name, root, monkeypatch, *options):
    """Trains an experiment for one step; teachers are untrained in a dry run."""
    monkeypatch.chdir(root.parent)
    before = set(root.parent.iterdir())
    small = [f"--data.root={root}", "--data.batch_size=8", "--trainer.fast_dev_run=1"]
    if "train_samples" in experiments()[name].read_text():
        small.append("--data.train_samples=50")
    cli = run("fit", ["--config", name, *small, *options])
    assert cli.trainer.global_step >= 1
    assert set(root.parent.iterdir()) == before, "a dry run leaves nothing"
    values = {key: float(value) for key, value in cli.trainer.callback_metrics.items()}
    no_number = {key for key, value in values.items() if not math.isfinite(value)}
    assert all(key.startswith(MAY_BE_NAN) for key in no_number), no_number
    return cli.trainer, values


@pytest.mark.parametrize("name", [name for name in experiments() if name.startswith(("quickstart", "gates/"))])
def test_gates_run_for_a_step(name, monkeypatch, mnist_root, cifar10_root):
    trainer, values = dry_run(name, mnist_root if "mnist" in name else cifar10_root, monkeypatch)
    assert 0 < values["train/loss"] < (20 if "train/kl" not in values else 2000)  # an auto-encoder's is per image
    (measured,) = (callback for callback in trainer.callbacks if isinstance(callback, GatingEntropy))
    assert [row["epoch"] for row in measured.history] == [-1, 0]
    assert all(
        0 < row[key] <= 5 for row in measured.history for key in ("entropy", "test/entropy")
    )  # log2 of 32 images


LOGGED = {
    "all": ("gates/entropy", "discarding/SID", "knowledge/points", "components/significance", "penalty/complexity"),
    "classify": "val/accuracy",
    "own": ("gates/entropy", "discarding/SID", "knowledge/"),
    "complexity_loss": "penalty/complexity",
    "components": "components/significance/4",
    "reliability": "reliability/test/reliability",
    "discarding": "discarding/SID",
    "discarding/decoder": "val/mse",
    "knowledge": "knowledge/",
    "interventions": "val/",
    "interventions/compressed": "compression/bytes",
    "interventions/attack": "attack/accuracy",
    "interventions/ceiling": "task/entropy",
}


WRITTEN = {"tiny_imagenet": write_tiny, "cub200": partial(write_cub, each=4)}
ON_FILES = [name for name in experiments() if any(data in name for data in WRITTEN)]
OWN = ["all/own_folder", "own/folder_resnet18"]
ON_TENSORS = [name for name in experiments() if name not in (*ON_FILES, *OWN, "components/task_digits")]


@pytest.mark.parametrize("name", [name for name in ON_TENSORS if name.split("/")[0] in LOGGED])
def test_others_run_for_a_step(name, monkeypatch, cifar10_root):
    _, values = dry_run(name, cifar10_root, monkeypatch)
    check_logged(name, values)


def check_logged(name, values):
    expected = LOGGED[max((start for start in LOGGED if name.startswith(start)), key=len)]
    for start in [expected] if isinstance(expected, str) else expected:
        assert any(key.startswith(start) for key in values), (start, sorted(values))


@pytest.mark.filterwarnings(
    "ignore:.*there are no more", "ignore:.*fewer than", "ignore:.*has one region"
)  # few and small
@pytest.mark.parametrize("name", ON_FILES)
def test_those_on_published_files_run_for_a_step(name, monkeypatch, tmp_path):
    (write,) = (write for data, write in WRITTEN.items() if data in name)
    write(tmp_path / "data")
    options = ["--data.image_size=32", "--data.num_workers=0", "--data.classes=null"]
    if "vgg16" in name:  # 138 million weights
        options.append("--model.net=torchvision.models.resnet18")
    if "tiny_imagenet" in name:
        options.append("--model.net.init_args.width=8")
    _, values = dry_run(name, tmp_path / "data", monkeypatch, *options)
    check_logged(name, values)
    assert ("discarding/concentration" in " ".join(values)) == (name == "discarding/cub200_resnet34")


@pytest.mark.filterwarnings("ignore:.*there are no more")  # 8 images of 2 classes
@pytest.mark.filterwarnings("ignore:.*fewer than", "ignore:.*has one region")  # of 32 x 32 pixels
@pytest.mark.parametrize("name", OWN)
def test_a_user_s_own_folder_runs_for_a_step(name, monkeypatch, tmp_path):
    for number in range(10):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((40 + number, 40), 90).save(path)
    options = "--data.image_size=32", "--data.num_workers=0"
    trainer, values = dry_run(name, tmp_path / "images", monkeypatch, *options)
    assert trainer.model.num_classes == 2
    check_logged(name, values)


def test_every_experiment_is_tried():
    assert {name.split("/")[0] for name in experiments()} <= {"quickstart", "gates", *LOGGED}


def test_the_experiments_of_the_readme_are_shipped():
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

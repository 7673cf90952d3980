import pickle

import pytest
import torch
import torchvision
from torch import nn

from netprism.nets import ResNet
from netprism.runs.folder import FINISHED, RUNS
from netprism.runs.teachers import UNTRAINED, build_network, checkpoint_of, load_weights, trained


@pytest.fixture(autouse=True)
def no_runs(tmp_path, monkeypatch):
    monkeypatch.setenv(RUNS, str(tmp_path))


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def same(net, other):
    pairs = zip(net.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def save(content, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def finished_run(folder, net, words=("best", "last")):
    for word in words:
        save({"state_dict": {f"net.{k}": v for k, v in net.state_dict().items()}}, folder / f"checkpoints/{word}.ckpt")
    (folder / FINISHED).touch()
    return folder


@pytest.mark.parametrize("prefix", ["", "net.", "model.module.", "model._orig_mod."])
@pytest.mark.parametrize("lightning", [True, False])
def test_a_checkpoint_is_found_behind_any_prefix(tmp_path, prefix, lightning):
    source = small()
    state = {prefix + key: value for key, value in source.state_dict().items()}
    if prefix:
        state["loss.weight"] = torch.ones(10)
    path = save({"state_dict": state, "epoch": 3} if lightning else state, tmp_path / "c.ckpt")
    net = trained(checkpoint=str(path), net=small(1))
    assert same(net, source)
    assert not net.training
    assert not any(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"net.0.weight": torch.ones(2, 4)}, r"net.0.weight is \(2, 4\), in this Sequential \(2, 3\)"),
        (
            lambda s: {k: v for k, v in s.items() if k != "net.0.bias"},
            r"net.0.bias is absent, in this Sequential \(2,\)",
        ),
        (lambda s: s | {"net.2.bias": torch.ones(2)}, r"net.2.bias is \(2,\), in this Sequential absent"),
    ],
)
def test_the_first_key_that_differs_is_named(tmp_path, change, message):
    net = small()
    path = save(change({f"net.{k}": v for k, v in small(1).state_dict().items()}), tmp_path / "c.ckpt")
    with pytest.raises(ValueError, match=message):
        load_weights(net, path)
    assert same(net, small()), "half a checkpoint was loaded"


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_pickle_is_not_run(tmp_path, capsys):
    path = tmp_path / "c.ckpt"
    path.write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(ValueError, match="no file of tensors alone"):
        load_weights(small(), path)
    save({"state_dict": Evil()}, path)
    with pytest.raises(ValueError, match="no file of tensors alone"):
        load_weights(small(), path)
    assert "executed" not in capsys.readouterr().out


def test_half_a_file_and_something_else_are_refused(tmp_path):
    path = save(small().state_dict(), tmp_path / "c.ckpt")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="no file of tensors alone"):
        load_weights(small(), path)
    with pytest.raises(ValueError, match="no state dict"):
        load_weights(small(), save([1, 2], path))
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*none.ckpt"):
        load_weights(small(), tmp_path / "none.ckpt")


def test_an_experiment_stands_for_the_best_of_its_newest_finished_run(tmp_path):
    home = tmp_path / "classify" / "digits_mlp"
    net = small()
    with pytest.raises(FileNotFoundError, match="no finished run of 'classify/digits_mlp' .*make train EXP=classify/"):
        checkpoint_of("classify/digits_mlp")
    finished_run(home / "1", net)
    assert checkpoint_of("classify/digits_mlp") == home / "1/checkpoints/best.ckpt"
    finished_run(home / "2", net, words=["last"])
    assert checkpoint_of("classify/digits_mlp") == home / "2/checkpoints/last.ckpt"
    save({}, home / "3/checkpoints/best.ckpt")  # not finished
    assert checkpoint_of("classify/digits_mlp") == home / "2/checkpoints/last.ckpt"


def test_several_networks_of_an_experiment_have_seeds(tmp_path):
    nets = {seed: small() for seed in (1, 0)}
    for seed, net in nets.items():
        folder = finished_run(tmp_path / "classify/digits_mlp" / str(seed), net)
        (folder / "config.yaml").write_text(f"seed_everything: {seed}\nmodel: null\n")
    for seed, net in nets.items():
        assert same(trained("classify/digits_mlp", net=small(), seed=seed), net)
    with pytest.raises(
        FileNotFoundError, match=r"no finished run of 'classify/digits_mlp' with seed 12 .*everything 12"
    ):
        trained("classify/digits_mlp", seed=12)
    with pytest.raises(ValueError, match="seed is 1; expected it with an experiment"):
        trained(net="resnet18", weights="DEFAULT", seed=1)


def test_the_network_is_that_of_the_run_or_of_the_experiment(tmp_path):
    net = ResNet(depth=8, in_channels=1)
    folder = finished_run(tmp_path / "classify/digits_resnet8/1", net)
    assert same(trained("classify/digits_resnet8"), net)  # configs/experiment/classify names a file of configs/model
    wider = ResNet(depth=8, in_channels=2)
    finished_run(folder, wider)
    (folder / "config.yaml").write_text(
        "model: {init_args: {net: {class_path: netprism.nets.ResNet, init_args: {depth: 8, in_channels: 2}}}}"
    )
    assert same(trained("classify/digits_resnet8"), wider)
    checkpoint = str(folder / "checkpoints/best.ckpt")
    assert same(trained(checkpoint=checkpoint), wider)


def test_what_cannot_be_known_is_asked_for(tmp_path):
    path = str(save(small().state_dict(), tmp_path / "c.pt"))
    with pytest.raises(ValueError, match="no config.yaml of a run: give `net`"):
        trained(checkpoint=path)
    with pytest.raises(ValueError, match="needs one of experiment, checkpoint, weights"):
        trained(net=small())
    (tmp_path / "none.yaml").write_text("model: {class_path: X}")
    with pytest.raises(ValueError, match=r"none.yaml has no network in model.init_args.net"):
        build_network(tmp_path / "none.yaml")


def test_a_control_is_untrained():
    net = trained("classify/digits_resnet8", checkpoint=UNTRAINED)
    assert isinstance(net, ResNet)
    assert not net.training


def test_torchvision_s_models_by_name(tmp_path):
    source = torchvision.models.squeezenet1_1()
    path = str(save(source.state_dict(), tmp_path / "squeezenet.pt"))
    assert same(trained(checkpoint=path, net="squeezenet1_1"), source)
    with pytest.raises(ValueError, match=r"network is 'resnet19'; expected .*resnet18"):
        trained(checkpoint=path, net="resnet19")
    with pytest.raises(ValueError, match=r"another network: conv1.weight is absent, in this ResNet \(64, 3, 7, 7\)"):
        trained(checkpoint=path, net="resnet18")

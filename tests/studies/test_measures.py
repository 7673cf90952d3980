import json
import math
from collections import OrderedDict

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from netprism.datamodules import Digits
from netprism.lightning_modules import ReliableDisentangler
from netprism.nets import MLP, ResNet
from netprism.studies import measures
from netprism.studies.measures import (
    alphas,
    coherency,
    correlations,
    discarded,
    noises,
    orders,
    relation,
    robustness,
    roles,
)


def test_the_largest_and_the_mean_order_of_the_last_values(tmp_path):
    (tmp_path / "metrics.csv").write_text(
        "epoch,step,val/significance/4,val/significance/13,val/loss\n0,1,0.9,0.1,1\n1,2,0.2,0.6,1\n"
    )
    (row,) = orders(tmp_path)
    assert row == {"largest": 13, "mean": pytest.approx((4 * 0.2 + 13 * 0.6) / 0.8)}
    with pytest.raises(ValueError, match="no other/<order>; expected a run of a Disentangler"):
        orders(tmp_path, "other/")


def test_the_relation_of_two_quantities_of_each_layer(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,H/a,TC/a,H/b,TC/b\n0,1,3,1,1\n1,2,2,2,5\n2,3,1,3,6\n")
    rows = relation(tmp_path, "H/*", "TC/*")
    assert rows == [{"layer": "a", "correlation": -1.0}, {"layer": "b", "correlation": 1.0}]
    with pytest.raises(ValueError, match="no epoch with H/. and C/."):
        relation(tmp_path, "H/*", "C/*")


def test_levels_that_rise_together_need_not_do_so_in_the_same_epochs(tmp_path):
    # steps of H: 1, 9, 2, 8; of SID: 9, 1, 8, 2; the NaN of an epoch is left out
    (tmp_path / "metrics.csv").write_text(
        "epoch,step,H,SID\n0,0,0,0\n1,1,1,9\n2,2,10,10\n3,3,12,18\n4,4,20,20\n5,5,3,nan\n"
    )
    (row,) = correlations(tmp_path, {"entropy": "H", "discarding": "SID"})
    assert row == {"first": "entropy", "second": "discarding", "levels": pytest.approx(1), "steps": pytest.approx(-1)}
    with pytest.raises(ValueError, match="points is read from 'knowledge', which"):
        correlations(tmp_path, {"entropy": "H", "points": "knowledge"})


def test_each_bandwidth_over_the_epochs_and_over_the_layers_of_the_last_one(tmp_path):
    names = [f"alpha_{a}/{q}" for a in ("0.1", "0.02") for q in ("entropy", "class_information", "suffix_entropy/relu")]
    (tmp_path / "metrics.csv").write_text(f"epoch,step,{','.join(names)}\n-1,0,1,2,3,4,5,6\n0,1,10,20,30,40,50,60\n")
    rows = [
        [row[key] for key in ("alpha", "epoch", "layer", "entropy", "class_information")] for row in alphas(tmp_path)
    ]
    assert rows[:2] == [[0.02, -1, "all", 4, 5], [0.02, 0, "all", 40, 50]]
    assert rows[3:5] == [[0.1, -1, "all", 1, 2], [0.1, 0, "all", 10, 20]]
    of_layers = {
        (row["alpha"], row["epoch"]): row["suffix_entropy"] for row in alphas(tmp_path) if row["layer"] == "relu"
    }
    assert of_layers == {(0.02, 0): 60, (0.1, 0): 30}
    with pytest.raises(ValueError, match="no other<alpha>/entropy; expected several GatingEntropy"):
        alphas(tmp_path, "other")


def test_networks_of_runs_are_measured(tmp_path):
    torch.manual_seed(0)
    net = ResNet(8, in_channels=1, width=2)
    (tmp_path / "checkpoints").mkdir()
    torch.save({"state_dict": {f"net.{k}": v for k, v in net.state_dict().items()}}, tmp_path / "checkpoints/best.ckpt")
    options = {"depth": 8, "in_channels": 1, "width": 2}
    model = {"init_args": {"net": {"class_path": "netprism.nets.ResNet", "init_args": options}}}
    data = {"class_path": "netprism.datamodules.Digits", "init_args": {"image_size": 8}}
    (tmp_path / "config.yaml").write_text(json.dumps({"model": model, "data": data}))
    rows = {(row["measure"], row["layer"]): row["change"] for row in coherency(tmp_path, images=2)}
    assert rows["SID", "layer2.0.bn1"] < 1e-6
    assert rows["gradient map", "layer2.0.bn1"] > 0.1
    assert rows["Grad-CAM", "layer2.0.bn1"] < 1e-6, "features and gradients are scaled in opposite ways"
    sid, learned = noises(tmp_path, ["conv1"], images=2, steps=2)  # linear
    assert sid["moved"] == pytest.approx(math.log10(1.5e-4), abs=0.2), "SID fixes how far the features move"
    assert learned["H"] > sid["H"]
    assert learned["moved"] > sid["moved"]
    (row,) = robustness(tmp_path, "layer3", images=2, classes=1, steps=3)
    assert 0 <= row["distance"] < 8  # that of all pixels from black to white
    assert {"layer": "layer3", "SID": row["SID"], "accuracy": row["accuracy"]} == discarded(tmp_path, ["layer3"], 2)[0]


def test_a_student_that_knows_the_same_in_other_channels(monkeypatch, tmp_path):
    def network(order):  # the maps are the image's channels in some order
        maps, fc = nn.Conv2d(3, 3, 1, bias=False), nn.Linear(3, 3, bias=False)
        maps.weight.data = torch.eye(3)[order].view(3, 3, 1, 1)
        fc.weight.data = 20 * torch.eye(3)[:, order]
        return nn.Sequential(OrderedDict(maps=maps, pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=fc))

    # In each image two of the four regions show its channel; two show nothing, or a little of any.
    labels = torch.arange(60) % 3
    x = 0.01 * torch.rand(60, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    x[range(60), labels, 0] += 1.0
    monkeypatch.setattr(measures, "tested_network", lambda run: (network([2, 0, 1]), x, labels))
    monkeypatch.setattr(measures, "_teacher", lambda run: [network([0, 1, 2])])
    (row,) = measures.knowledge(tmp_path, ["maps"], images=60)
    assert row["accuracy"] == row["ratio"] == 1
    assert row["points"] == row["reliable"] == 2
    assert (row["turned"], row["strength"]) == (pytest.approx(0, abs=1e-3), pytest.approx(0, abs=1e-2))
    monkeypatch.setattr(measures, "_teacher", lambda run: [])
    assert math.isnan(measures.knowledge(tmp_path, ["maps"], images=60)[0]["turned"])


def test_components_of_a_network_and_what_it_can_do(tmp_path):
    """Against the network's own layers and the table of the run."""
    pl.seed_everything(0, verbose=False)
    nets = [MLP((16, 8, 6, 10)) for _ in range(2)]
    data = Digits(image_size=4, train_samples=60, batch_size=60)
    one = {"class_path": "netprism.datamodules.Digits", "init_args": {"image_size": 4, "train_samples": 20}}
    teachers = []
    for number, net in enumerate(nets):
        folder = tmp_path / f"network{number}"
        (folder / "checkpoints").mkdir(parents=True)
        torch.save(
            {"state_dict": {f"net.{k}": v for k, v in net.state_dict().items()}}, folder / "checkpoints/best.ckpt"
        )
        model = {"init_args": {"net": {"class_path": "netprism.nets.MLP", "init_args": {"widths": [16, 8, 6, 10]}}}}
        (folder / "config.yaml").write_text(json.dumps({"model": model, "data": one}))
        teachers.append({"init_args": {"checkpoint": str(folder / "checkpoints/best.ckpt")}})
    module = ReliableDisentangler(nets, "fc2", orders=(4, 7), width=1 / 32)
    logger = pl.loggers.CSVLogger(tmp_path, name="", version="run")
    trainer = pl.Trainer(
        max_epochs=2, logger=logger, accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, data)
    run = tmp_path / "run"
    trainer.save_checkpoint(run / "checkpoints" / "last.ckpt")
    (run / "config.yaml").write_text(json.dumps({"model": {"init_args": {"teachers": teachers}}}))
    rows = measures.reliable_components(run)
    x, labels = measures._images(teachers[0]["init_args"]["checkpoint"], "test")
    net, phis = nets[0].eval(), module.eval()(x)[0]
    with torch.no_grad():
        for row, order, phi in zip(rows, (4, 7), phis, strict=True):
            assert row["order"] == order
            right = net.fc3(phi.relu()).argmax(1) == labels
            assert row["phi_accuracy"] == pytest.approx(right.float().mean().item())
        logits, feature = net(x), net.fc2(net.fc1(x.flatten(1)).relu())
    assert rows[0]["accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert rows[0]["loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert rows[0]["train_samples"] == 20
    assert rows[0]["significance"] == pytest.approx((phis[0].var(0).sum() / feature.var(0).sum()).item(), rel=1e-4)
    logged = trainer.callback_metrics
    for row in rows:
        assert row["reliable"] == pytest.approx(float(logged[f"reliability/test/reliable_significance/{row['order']}"]))
    with pytest.raises(ValueError, match="has no figures/reliability.csv; expected a finished run of"):
        measures.reliable_components(tmp_path)


def test_where_regions_of_a_new_role_come_from(tmp_path):
    head = ",".join(f"attack/{kind}/{layer}" for layer in "ab" for kind in ("created", "redirected", "damaged"))
    (tmp_path / "metrics.csv").write_text(f"epoch,{head}\n0,9,9,9,9,9,9\n1,6,0.5,1.5,0,0,0\n")
    a, b = roles(tmp_path)
    assert a == {"layer": "a", "new": 0.75, "broken": 0.75}
    assert b["layer"] == "b"
    assert math.isnan(b["new"])
    assert math.isnan(b["broken"])
    with pytest.raises(ValueError, match="no other/created/<layer>; expected a run with AttackedRegions"):
        roles(tmp_path, "other")

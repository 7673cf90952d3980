import json

import pytest
import torch

from netprism.nets import ResNet
from netprism.studies.measures import coherency, correlations, discarded, orders, relation, robustness


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
    (row,) = robustness(tmp_path, "layer3", images=2, classes=1, steps=3)
    assert 0 <= row["distance"] < 8  # that of all pixels from black to white
    assert {"layer": "layer3", "SID": row["SID"], "accuracy": row["accuracy"]} == discarded(tmp_path, ["layer3"], 2)[0]

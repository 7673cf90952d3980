"""A trained network is looked at without a trainer, with the numbers of a training."""

import pytest
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import netprism
from netprism import FeatureComponents, GatingEntropy, InformationDiscarding, KnowledgePoints
from netprism.gates import record_gates, transformation_complexity

torch.manual_seed(0)
IMAGES, LABELS = torch.randn(24, 1, 8, 8), torch.arange(24) % 3


def network():
    torch.manual_seed(1)
    first = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
    second = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU())
    return nn.Sequential(first, second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x):
        return self.net(x)


DATA = {
    "tensors": (IMAGES, LABELS),
    "data set": TensorDataset(IMAGES, LABELS),
    "loader": DataLoader(TensorDataset(IMAGES, LABELS), 5, shuffle=True),
    "splits": {"train": TensorDataset(IMAGES, LABELS), "test": TensorDataset(IMAGES[:9], LABELS[:9])},
}


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("make", [network, Module])
def test_the_entropy_is_that_of_the_function_and_the_network_stays(make, data):
    net = make().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    result = netprism.analyze(net, DATA[data], ["gates"])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training
    with torch.no_grad(), record_gates(net.eval()) as gates:
        net(IMAGES)
    expected = transformation_complexity(gates.packed, LABELS)
    (values,) = result.values.values()
    assert values["gates/entropy"] == pytest.approx(expected.joint_entropy)
    assert values["gates/class_information"] == pytest.approx(expected.quantities()["class_information"])
    assert ("gates/test/entropy" in values) == (data == "splits")


def test_all_measures_side_by_side(tmp_path):
    small = FeatureComponents(orders=(4, 7), width=1 / 64, steps=2, batch_size=8)
    looking = InformationDiscarding(["0", "1"], num_images=4, num_scale_images=4, num_vjps=2, num_shown=2)
    points = KnowledgePoints(["1"], images_per_class=4, classes=3, steps=2, num_compared=4)
    monitors = [GatingEntropy(total_correlation=False), looking, points, small]
    result = netprism.analyze({"a": network(), "b/2": network()}, (IMAGES, LABELS), monitors)
    assert result.values["a"] == pytest.approx(result.values["b/2"], nan_ok=True)
    table = result.table()
    assert {row["quantity"].partition("/")[0] for row in table} == {"gates", "discarding", "knowledge", "components"}
    assert {row["layer"] for row in table if row["quantity"] == "discarding/SID"} == {"0", "1"}
    figure, axes = result.plot()
    assert isinstance(figure, Figure)
    assert "discarding/SID, nats" in [each.get_title() for each in axes]
    assert len(axes[0].lines) == 2
    page = result.save(tmp_path, about={"images": "noise"})
    assert {path.name for path in tmp_path.iterdir()} >= {"analysis.csv", "per_image.csv", "figures", "maps", "tables"}
    assert "noise" in page.read_text()
    assert (tmp_path / "maps" / "all_SID.png").is_file()


def test_what_does_not_fit_is_said_or_refused():
    result = netprism.analyze(network(), IMAGES, num_images=2)
    assert result.notes == [
        "Sequential without knowledge: the training data have no integer label per sample; expected classes"
    ]
    assert "note: Sequential without knowledge" in str(result)
    assert "gates/entropy" in result.values["Sequential"]
    with pytest.raises(ValueError, match="monitor is 'gate'; expected gates, discarding"):
        netprism.analyze(network(), IMAGES, ["gate"])
    with pytest.raises(ValueError, match="model is a str; expected a module"):
        netprism.analyze("resnet18", IMAGES, ["gates"])
    with pytest.raises(ValueError, match="data is a int; expected a data set"):
        netprism.analyze(network(), 3, ["gates"])
    with pytest.raises(ValueError, match="data is a dict of val; expected train and test"):
        netprism.analyze(network(), {"val": IMAGES}, ["gates"])

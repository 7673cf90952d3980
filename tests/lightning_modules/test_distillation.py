import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from netprism.components.disentangler import DisentanglerNet
from netprism.components.network_split import SplitNetwork
from netprism.interventions import UnderHead, output_loss
from netprism.lightning_modules import Distillation
from netprism.nets import ResNet
from netprism.runs.teachers import load_weights

pytestmark = [
    pytest.mark.filterwarnings("ignore:Found .* in eval mode"),  # the teacher, on purpose
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),  # the images are in memory
]


class Plain(nn.Module):
    """No BatchNorm, whose statistics depend on how images are distributed over the ranks."""

    def __init__(self, channels=3, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(1, channels, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.unused = nn.Conv2d(channels, channels, 1)
        self.fc = nn.Linear(channels, 4)

    def forward(self, x):
        return self.fc(self.unused(self.relu(self.conv(x))).mean((2, 3)))


def batches(size, count=16):
    generator = torch.Generator().manual_seed(3)
    images, labels = torch.randn(count, 1, 8, 8, generator=generator), torch.arange(count) % 4
    return DataLoader(TensorDataset(images, labels), size)


def trainer(folder, epochs=2, **options):
    settings = {
        "max_epochs": epochs, "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder,
    }  # fmt: skip
    return pl.Trainer(**(settings | options))


def sgd(parameters):
    return torch.optim.SGD(parameters, 0.1)


def module(teacher=None, student=None, **options):
    settings = {"targets": ["conv", "output"], "optimizer": sgd, "input_shape": (1, 8, 8)} | options
    return Distillation(teacher or Plain(5), student or Plain(3, seed=1), **settings)


def test_the_loss_is_that_of_the_formula_and_only_the_student_and_the_map_learn(tmp_path):
    distillation = module(targets=["conv", "output", "labels"], weights=[2.0, 0.5, 1.0], temperature=3.0)
    images, labels = next(iter(batches(16)))
    teacher, student = distillation.teacher, distillation.student
    with torch.no_grad():
        mapped = distillation.pairs.maps["conv"](student.conv(images))
        feature = (teacher.conv(images) - mapped).square().mean()
        p, q = (F.softmax(net(images).double() / 3, dim=1) for net in (teacher, student))
        divergence = 9 * (p * (p / q).log()).sum(1).mean()
        entropy = F.cross_entropy(student(images), labels)
    before = {name: p.clone() for name, p in distillation.named_parameters()}
    run = trainer(tmp_path, epochs=1)
    run.fit(distillation, batches(16), batches(16))
    logged = {key: float(value) for key, value in run.callback_metrics.items()}
    assert logged["train/loss/conv"] == pytest.approx(float(feature), rel=1e-5)
    assert logged["train/loss/output"] == pytest.approx(float(divergence), rel=1e-4)
    assert logged["train/loss/labels"] == pytest.approx(float(entropy), rel=1e-5)
    assert logged["train/loss"] == pytest.approx(float(2 * feature + 0.5 * divergence + entropy), rel=1e-4)
    assert logged["val/loss"] < logged["train/loss"]
    assert set(logged) >= {"val/unexplained/conv", "val/accuracy", "val/agreement"}
    assert "val/unexplained/output" not in logged
    for name, parameter in distillation.named_parameters():
        assert torch.equal(before[name], parameter) == name.startswith("teacher."), name


def test_a_network_under_its_own_weights_has_nothing_to_learn(tmp_path):
    distillation = module(teacher=Plain(), student=Plain())
    (logged,) = trainer(tmp_path).validate(distillation, batches(8), verbose=False)
    assert len(distillation.pairs.maps) == 0
    assert (logged["val/loss"], logged["val/unexplained/conv"], logged["val/agreement"]) == (0, 0, 1)


def test_two_processes_train_as_one_also_where_layers_behind_the_target_learn_nothing(tmp_path):
    found = []
    for size, processes in ((8, {}), (4, {"devices": 2, "strategy": "ddp_fork"})):
        distillation = module(targets=["conv"])
        run = trainer(tmp_path, **processes)
        run.fit(distillation, batches(size, 8), batches(size, 8))
        found.append((distillation.state_dict(), {key: float(v) for key, v in run.callback_metrics.items()}))
    (weights, logged), (others, same) = found
    for key, value in weights.items():
        assert torch.allclose(value, others[key], rtol=1e-5, atol=1e-6), key
    assert logged == pytest.approx(same, rel=1e-5)


def test_a_checkpoint_gives_the_student_also_where_the_teacher_is_such_a_network(tmp_path):
    distillation = module(teacher=ResNet(8, 4, 1, 2), student=ResNet(8, 4, 1, 2), targets=["layer2"])
    run = trainer(tmp_path, epochs=1)
    run.fit(distillation, batches(8), batches(8))
    run.save_checkpoint(tmp_path / "last.ckpt")
    loaded = ResNet(8, 4, 1, 2)
    load_weights(loaded, tmp_path / "last.ckpt")
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(loaded.eval()(x), distillation.student.eval()(x))
    options = {"teacher": ResNet(8, 4, 1, 2), "student": ResNet(8, 4, 1, 2), "weights_only": True}
    again = Distillation.load_from_checkpoint(tmp_path / "last.ckpt", **options)
    assert torch.equal(again.eval()(x), loaded(x))
    assert again.targets == {"layer2": "layer2"}


def test_a_disentangler_mimics_one_of_seven_relus_and_makes_its_logits_under_the_head(tmp_path):
    torch.manual_seed(0)
    body = DisentanglerNet((1, 8, 8), (8, 4, 4), 7, 1 / 32)
    nn.init.normal_(body.out.weight)
    for bn in [m for m in body.modules() if isinstance(m, nn.BatchNorm2d)]:
        bn.momentum = 1.0
    body.train()(batches(64, 64).dataset.tensors[0])  # statistics of the images, as those of a trained network are
    task = UnderHead(body, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Linear(8, 4)), ["0", "1"]).eval()
    student = UnderHead(DisentanglerNet((1, 8, 8), (8, 4, 4), 7, 1 / 32), task, ["head.1", "head.2"])
    student.body.load_state_dict(body.state_dict())
    distillation = module(task, student, targets={"body": "body"}, optimizer=lambda p: torch.optim.Adam(p, 1e-4))
    head = [p.clone() for p in student.head.parameters()]
    run = trainer(tmp_path, epochs=20, check_val_every_n_epoch=20)
    run.fit(distillation, batches(64, 64), batches(64, 64))
    # In train mode statistics are those of the batch, whose variance BatchNorm keeps times n / (n - 1).
    assert 0 < run.callback_metrics["val/unexplained/body"] < 1e-4
    assert all(torch.equal(a, b) for a, b in zip(head, student.head.parameters(), strict=True))
    assert not student.train().head.training


def test_features_are_those_before_the_activation_that_ends_a_layer(tmp_path):
    torch.manual_seed(0)
    teacher, student = ResNet(8, 4, 1, 2).eval(), ResNet(8, 4, 1, 2)
    distillation = module(teacher, student, targets=["layer2", "layer3"])
    x = torch.randn(3, 1, 8, 8)
    given = distillation.pairs.of_teacher(x)
    for layer in ("layer2", "layer3"):
        assert torch.equal(given[layer], SplitNetwork(teacher, layer).feature(x))
        assert given[layer].min() < 0
    made = distillation.pairs(x)
    made["layer2"].sum().backward()
    assert student.conv1.weight.grad.abs().sum() > 0
    assert student.layer3[0].conv1.weight.grad is None


def test_outputs_that_are_no_logits_are_compared_as_features(tmp_path):
    distillation = module(targets=["output"], temperature=None)
    run = trainer(tmp_path, epochs=1)
    run.fit(distillation, batches(16), batches(16))
    assert set(run.callback_metrics) >= {"val/unexplained/output"}
    assert "val/accuracy" not in run.callback_metrics
    p = torch.randn(5, 4)
    assert output_loss(p, p) == 0


def test_bad_input_ends_in_one_line():
    net = Plain()
    with pytest.raises(ValueError, match="student has conv.weight of the teacher"):
        module(net, net)
    with pytest.raises(ValueError, match="no layer 'cov', did you mean 'conv'"):
        module(targets=["cov"])
    with pytest.raises(ValueError, match=r"feature 'conv' is \(4,\) in the student and \(5, 8, 8\) in the teacher"):
        module(targets={"conv": "fc"})
    with pytest.raises(ValueError, match="targets is empty"):
        module(targets=[])
    with pytest.raises(ValueError, match="weights has 1 numbers; expected 2"):
        module(weights=[1.0])
    with pytest.raises(ValueError, match="temperature is 0; expected"):
        module(temperature=0)
    with pytest.raises(ValueError, match=r"logits are \(3,\) in the student and \(4,\) in the teacher"):
        module(student=nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), targets=["output"])

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from netprism.datamodules import MNIST
from netprism.lightning_modules._base import TeacherModule, check_finite

pytestmark = [
    pytest.mark.filterwarnings("ignore:Found .* in eval mode"),  # the teacher, on purpose
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),  # the images are in memory
]


class Student(TeacherModule):
    """Knows how often it was built, and for which shape."""

    def __init__(self, teacher, input_shape=None):
        super().__init__(teacher, input_shape)
        self.save_hyperparameters(ignore=["teacher"])
        self.built = []
        if input_shape is not None:
            self.configure_model()

    def build(self, input_shape):
        self.built.append(input_shape)
        self.net = nn.Linear(torch.Size(input_shape).numel(), 1)

    def training_step(self, batch):
        return self.net(self.images(batch).flatten(1)).mean()

    def validation_step(self, batch):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), 0.1)


def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Dropout(0.5)).train()


def trainer():
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return pl.Trainer(fast_dev_run=1, accelerator="cpu", limit_val_batches=0, **quiet)


@pytest.mark.parametrize("teacher", [network(), [network(), network()]])
def test_the_teacher_stays_frozen_and_in_eval_mode(teacher):
    module = Student(teacher, (1, 2, 2))
    assert module.train() is module
    assert module.training
    assert module.net.training
    assert not any(part.training for part in module.teacher.modules())
    assert not any(parameter.requires_grad for parameter in module.teacher.parameters())
    assert len(module.teacher) == len(teacher)


def test_builds_once_for_the_shape_given_or_of_the_data_module(make_mnist):
    module = Student(network(), [1, 2, 2])
    module.configure_model()
    assert module.built == [(1, 2, 2)]
    assert module.hparams["input_shape"] == (1, 2, 2)
    later = Student(network())
    assert later.built == []
    data = MNIST(root=str(make_mnist()), batch_size=8)
    trainer().fit(later, data)
    assert later.built == [(1, 28, 28)]
    assert later.hparams["input_shape"] == (1, 28, 28)


def test_no_shape_anywhere():
    data = torch.utils.data.DataLoader(torch.zeros(4, 1, 2, 2))
    message = r"^input_shape is None and the data module has no `shape`; expected input_shape=\(C, H, W\)$"
    with pytest.raises(ValueError, match=message):
        trainer().fit(Student(network()), data, data)


def test_the_example_is_noise_and_images_come_alone_or_with_labels():
    module = Student(network(), (1, 2, 2))
    example = module.example((1, 2, 2))
    assert example.shape == (2, 1, 2, 2)
    assert (example < 0).any()
    assert torch.equal(example, module.example((1, 2, 2)))
    for batch in (example, [example, torch.zeros(2)], (example,)):
        assert module.images(batch) is example


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite(value):
    module = Student(network(), (1, 2, 2))
    check_finite(module, "train/loss", torch.tensor(1.0))
    with pytest.raises(ValueError, match=f"^train/loss is {value} in epoch 0, step 0: try a smaller learning rate or "):
        check_finite(module, "train/loss", torch.tensor(value))
    with pytest.raises(ValueError, match="try tea$"):
        check_finite(module, "train/loss", torch.tensor(value), "tea")

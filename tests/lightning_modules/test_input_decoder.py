import pytest
import torch
from pytorch_lightning import LightningDataModule, Trainer
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from netprism.lightning_modules import InputDecoder

pytestmark = [
    pytest.mark.filterwarnings("ignore:Found .* in eval mode"),  # the teacher, on purpose
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),  # the images are in memory
    pytest.mark.filterwarnings("ignore:You defined a .validation_step. but have no .val_dataloader"),  # not needed
]

SHAPE = (1, 8, 8)
LAYERS = ["stem", "body.0", "head"]


class Teacher(nn.Module):
    """A map of full size, one of half the size behind a dotted name, and a vector; counts its calls."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.ReLU())
        self.head = nn.Linear(96, 3)
        self.calls = []

    def forward(self, x):
        self.calls.append((len(x), self.training))
        return self.head(self.body(self.stem(x)).flatten(1))


@pytest.fixture(autouse=True)
def nothing_is_left_behind(tmp_path, monkeypatch):
    """A trainer without a folder draws into the current one."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def teacher():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Teacher()


def module(teacher, layers=LAYERS, **arguments):
    torch.manual_seed(1)
    return InputDecoder(teacher, layers, **{"input_shape": SHAPE, "width": 2, "blocks": 2} | arguments)


def images(count=21):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(2))


def loader(count=21, batch_size=8):
    return DataLoader(TensorDataset(images(count), torch.zeros(count)), batch_size)


def trainer(**arguments):
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    defaults = {"logger": False, "accelerator": "cpu", "max_epochs": 1, "log_every_n_steps": 1}
    return Trainer(**quiet | defaults | arguments)


def test_the_teacher_is_not_changed_by_a_bit(teacher):
    teacher.train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    decoder = module(teacher)
    start = {name: value.clone() for name, value in decoder.decoders.state_dict().items()}
    trainer().fit(decoder, loader(), loader())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any(training for _, training in teacher.calls)
    moved = [name for name, value in decoder.decoders.named_parameters() if not torch.equal(value, start[name])]
    assert len(moved) == len(list(decoder.decoders.parameters())), "all decoders learn"


def test_the_teacher_runs_once_for_all_layers(teacher):
    decoder = module(teacher)
    teacher.calls.clear()
    trainer(num_sanity_val_steps=0).fit(decoder, loader(), loader())
    assert [rows for rows, _ in teacher.calls] == [8, 8, 5, 8, 8, 5, 8]  # training, validation, the picture


def test_each_decoder_is_trained_as_if_alone(teacher):
    together, alone = module(teacher), module(teacher, ["body.0"])
    alone.decoders.load_state_dict(
        {name: value for name, value in together.decoders.state_dict().items() if name.startswith("body|0.")}
    )
    for decoder in (together, alone):
        trainer(max_epochs=2).fit(decoder, loader())
    for expected, found in zip(
        alone.decoder("body.0").parameters(), together.decoder("body.0").parameters(), strict=True
    ):
        torch.testing.assert_close(found, expected)


def test_logs_the_error_over_all_images(teacher):
    decoder, run = module(teacher), trainer()
    run.fit(decoder, loader(), loader())
    decoder.eval()
    with torch.no_grad():
        rebuilt = decoder(images())
        by_hand = {}
        for layer in LAYERS:
            errors = [((rebuilt[layer][i] - images()[i]) ** 2).mean().item() for i in range(21)]
            by_hand[layer] = sum(errors) / 21
    logged = {key: value.item() for key, value in run.callback_metrics.items()}
    assert set(logged) == {f"{s}/{key}" for s in ("train", "val") for key in ("loss", *(f"mse/{x}" for x in LAYERS))}
    for layer in LAYERS:
        assert logged[f"val/mse/{layer}"] == pytest.approx(by_hand[layer], rel=1e-5)
    assert logged["val/loss"] == pytest.approx(sum(by_hand.values()), rel=1e-5)


@pytest.mark.filterwarnings("ignore:Using .DistributedSampler")  # an even number of images: none is repeated
def test_two_processes_log_the_errors_of_one(teacher):
    data = DataLoader(TensorDataset(images(20)), 2)
    (one,) = trainer().test(module(teacher), data, verbose=False)
    (two,) = trainer(devices=2, strategy="ddp_fork").test(module(teacher), data, verbose=False)
    assert one == pytest.approx(two, rel=1e-5)


@pytest.mark.filterwarnings("ignore:Using .DistributedSampler")
def test_trains_on_two_processes(teacher):
    run = trainer(devices=2, strategy="ddp_fork", max_epochs=2)
    decoder = module(teacher)
    before = decoder.decoder("stem").to_image.weight.clone()
    run.fit(decoder, loader(20, 5), loader(20, 5))
    assert not torch.equal(decoder.decoder("stem").to_image.weight, before)
    assert run.callback_metrics["val/loss"].isfinite()


def test_learns_what_a_layer_keeps_and_not_what_it_loses(teacher):
    with torch.no_grad():  # the stem keeps the image in two channels, the head nothing but three numbers
        teacher.stem[0].weight.zero_()
        teacher.stem[0].weight[:2, 0, 1, 1] = torch.tensor([1.0, -1.0])
        teacher.stem[0].bias.zero_()
    decoder = module(
        teacher, ["stem", "head"], width=8, optimizer=lambda parameters: torch.optim.Adam(parameters, 0.01)
    )
    run = trainer(max_epochs=12)
    run.fit(decoder, loader(96, 16), loader())
    assert run.callback_metrics["val/mse/stem"] < 0.15
    assert run.callback_metrics["val/mse/head"] > 0.8


def test_the_shape_of_the_images_comes_from_the_data_module(teacher):
    class Data(LightningDataModule):
        shape = SHAPE
        train_dataloader = val_dataloader = staticmethod(loader)

    decoder = module(teacher, input_shape=None)
    with pytest.raises(ValueError, match="^layer is 'stem'; expected none before the training"):
        decoder.decoder("stem")
    trainer().fit(decoder, Data())
    assert decoder.decoder("stem").input_shape == SHAPE


def test_a_checkpoint_holds_no_objects_and_gives_the_decoders_back(teacher, tmp_path):
    decoder, run = module(teacher, input_shape=SHAPE), trainer()
    run.fit(decoder, loader())
    run.save_checkpoint(tmp_path / "last.ckpt")
    loaded = InputDecoder.load_from_checkpoint(tmp_path / "last.ckpt", teacher=Teacher(), weights_only=True).eval()
    decoder.eval()
    for layer in LAYERS:
        assert torch.equal(loaded(images())[layer], decoder(images())[layer])


def test_predicts_the_rebuilt_images(teacher):
    decoder = module(teacher)
    batches = trainer().predict(decoder, DataLoader(images(), 8))
    assert [tuple(batch["head"].shape) for batch in batches] == [(8, *SHAPE), (8, *SHAPE), (5, *SHAPE)]


def test_draws_a_picture_at_the_end(teacher, tmp_path):
    trainer(logger=CSVLogger(tmp_path, name="", version="")).fit(module(teacher), loader(), loader())
    assert (tmp_path / "figures" / "reconstruction.png").read_bytes().startswith(b"\x89PNG")


def test_a_dry_run_draws_nothing(teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer(fast_dev_run=True).fit(module(teacher), loader(), loader())
    assert not list(tmp_path.iterdir())


def test_a_scheduler_is_stepped_after_each_epoch(teacher):
    decoder = module(teacher, scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5))
    run = trainer(max_epochs=2)
    run.fit(decoder, loader())
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.25e-3)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], r"^layers is \[\]; expected at least one layer of the teacher$"),
        (["stem", "tail"], "^Teacher has no layer 'tail'.* it has stem, stem.0"),
    ],
)
def test_layers_that_are_not_there(teacher, layers, message):
    with pytest.raises(ValueError, match=message):
        module(teacher, layers)


def test_a_layer_without_a_decoder(teacher):
    with pytest.raises(ValueError, match=r"^layer is 'body.1'; expected one of stem, body.0, head$"):
        module(teacher).decoder("body.1")


def test_images_of_another_shape(teacher):
    with pytest.raises(ValueError, match=r"^images are \(1, 8, 8\); expected input_shape, \(1, 16, 16\)$"):
        trainer().fit(module(teacher.stem, ["0"], input_shape=(1, 16, 16)), loader())


def test_no_shape_of_the_images(teacher):
    with pytest.raises(
        ValueError, match=r"^input_shape is None and the data module has no `shape`; expected input_shape=\(C, H, W\)$"
    ):
        trainer().fit(module(teacher, input_shape=None), loader())


def test_a_loss_that_is_not_finite(teacher):
    poisoned = DataLoader(TensorDataset(torch.full((4, *SHAPE), torch.nan), torch.zeros(4)), 4)
    with pytest.raises(ValueError, match=r"^train/loss is nan in epoch 0, step 0: try a smaller learning rate"):
        trainer().fit(module(teacher), poisoned)

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.loggers import CSVLogger
from torch.utils.data import DataLoader

from netprism.datamodules import ImageDataModule
from netprism.datamodules.base import ImageTensors
from netprism.datamodules.sampling import EpochSampler


class Numbered(ImageDataModule):
    """37 training and 11 test images of 8 x 8 pixels; image number i is filled with i and has the label i mod 3."""

    num_classes = 3
    shape = (1, 8, 8)
    mean, std = (0.0,), (1.0,)

    def read(self, split):
        numbers = torch.arange(37 if split == "train" else 11)
        return ImageTensors(numbers.float()[:, None, None, None].expand(-1, 1, 8, 8), numbers % 3)


class Recorder(LightningModule):
    """Writes the numbers of the images of each batch to `folder`/<stage>-<epoch>-<rank>, a line per batch."""

    def __init__(self, folder):
        super().__init__()
        self.folder, self.layer = folder, torch.nn.Linear(1, 1)

    def record(self, stage, batch):
        with (self.folder / f"{stage}-{self.current_epoch}-{self.global_rank}").open("a") as file:
            print(*numbers(batch), file=file)

    def training_step(self, batch):
        self.record("train", batch)
        return self.layer(batch[1].float()[:, None]).mean()

    def validation_step(self, batch):
        self.record("val", batch)

    def test_step(self, batch):
        self.record("test", batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def batches(self, stage, epoch=0, rank=0):
        lines = (self.folder / f"{stage}-{epoch}-{rank}").read_text().splitlines()
        return [[int(number) for number in line.split()] for line in lines]


def numbers(batch):
    return [int(image[0, 4, 4]) for image in batch[0]]


def order(sampler, epoch):
    sampler.set_epoch(epoch)
    return list(sampler)


def trainer(**kwargs):
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    defaults = {"logger": False, "accelerator": "cpu", "num_sanity_val_steps": 0, "log_every_n_steps": 1}
    return Trainer(**{**quiet, **defaults, **kwargs})


@pytest.fixture
def recorder(tmp_path):
    return Recorder(tmp_path)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_fit_takes_the_order_of_the_epoch(recorder, num_workers):
    trainer(max_epochs=3).fit(recorder, Numbered(batch_size=10, seed=5, num_workers=num_workers))
    for epoch in range(3):
        expected = order(EpochSampler(range(37), seed=5), epoch)
        assert recorder.batches("train", epoch) == [expected[0:10], expected[10:20], expected[20:30], expected[30:]]
        assert recorder.batches("val", epoch) == [list(range(10)), [10]]


def test_resumed_run_continues_with_the_next_order(recorder):
    first = trainer(max_epochs=1)
    first.fit(recorder, Numbered(batch_size=37))
    first.save_checkpoint(recorder.folder / "last.ckpt")
    resumed = trainer(max_epochs=2)
    resumed.fit(recorder, Numbered(batch_size=37), ckpt_path=recorder.folder / "last.ckpt", weights_only=True)
    assert recorder.batches("train", 1) == [order(EpochSampler(range(37), seed=0), 1)]


def test_two_processes_take_the_batches_of_one(recorder):
    trainer(max_epochs=2, devices=2, strategy="ddp_fork").fit(recorder, Numbered(batch_size=6))
    for epoch in range(2):
        expected = order(EpochSampler(range(37), seed=0), epoch)
        expected += expected[:1]  # 37 samples for two processes: the first one comes twice
        pairs = zip(recorder.batches("train", epoch, 0), recorder.batches("train", epoch, 1), strict=True)
        taken = [sorted(first + second) for first, second in pairs]
        assert taken == [sorted(expected[start : start + 12]) for start in range(0, 38, 12)]


def test_two_processes_test_each_image_once(recorder):
    trainer(devices=2, strategy="ddp_fork").test(recorder, Numbered(batch_size=5), verbose=False)
    assert recorder.batches("test", rank=0) == [[0, 2, 4, 6, 8], [10]]
    assert recorder.batches("test", rank=1) == [[1, 3, 5, 7, 9]]


def test_too_few_test_images_for_the_processes_are_told(recorder):
    with pytest.raises(Exception, match="there are 11 test images; expected at least one for each of 12 processes"):
        trainer(devices=12, strategy="ddp_fork").test(recorder, Numbered(), verbose=False)


@pytest.mark.parametrize("loader", ["train_dataloader", "val_dataloader", "test_dataloader"])
def test_reading_leaves_the_global_random_state_alone(loader):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for _ in getattr(Numbered(batch_size=10), loader)():
        pass
    assert torch.equal(torch.get_rng_state(), before)


def test_validation_and_test_serve_the_test_split():
    data = Numbered(batch_size=8)
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        assert [numbers(batch) for batch in loader] == [list(range(8)), [8, 9, 10]]


def test_train_samples_is_a_seeded_random_subset():
    def chosen(**kwargs):
        return numbers(next(iter(DataLoader(Numbered(**kwargs).monitor_dataset("train"), batch_size=37))))

    assert chosen() == chosen(train_samples=37) == list(range(37))
    assert len(set(chosen(train_samples=10))) == 10
    assert chosen(train_samples=10) == chosen(train_samples=10)
    assert chosen(train_samples=10) != chosen(train_samples=10, seed=1)
    assert chosen(train_samples=10) != list(range(10))
    assert set(chosen(train_samples=10)) < set(chosen(train_samples=20))


def test_train_samples_restricts_the_training_but_not_the_test():
    data = Numbered(train_samples=10, batch_size=10)
    (batch,) = data.train_dataloader()
    monitored = numbers(next(iter(DataLoader(data.monitor_dataset("train"), batch_size=10))))
    assert sorted(numbers(batch)) == sorted(monitored)
    assert len(data.monitor_dataset("test")) == 11


@pytest.mark.parametrize("split", ["train", "test"])
def test_monitor_dataset_gives_labels_without_images(split):
    dataset = Numbered(train_samples=10).monitor_dataset(split)
    assert dataset.targets.tolist() == [dataset[index][1] for index in range(len(dataset))]
    assert {type(label) for _, label in dataset} == {int}


def test_augmentation_is_for_training_only(recorder):
    data = Numbered(augment=True, batch_size=37)
    (images, _), (plain, _) = next(iter(data.train_dataloader())), data.monitor_dataset("train")[1]
    # a shifted image shows the black border somewhere, a plain one nowhere
    assert 0 < (images.flatten(1).min(dim=1).values == 0).sum() < 37
    assert plain.unique().tolist() == [1.0]
    assert all(len(image.unique()) == 1 for image in next(iter(data.test_dataloader()))[0])


def test_augmentation_changes_from_draw_to_draw():
    dataset = Numbered(augment=True).train_dataloader().dataset
    assert len({tuple(dataset[5][0].flatten().tolist()) for _ in range(20)}) > 1


def test_augmentation_depends_on_seed_epoch_and_image_alone():
    def images(epoch=0, **options):
        loader = Numbered(augment=True, batch_size=5, **options).train_dataloader()
        loader.sampler.set_epoch(epoch)
        return {int(image[0, 4, 4]): image for batch, _ in loader for image in batch}

    torch.manual_seed(1)
    first, before = images(), torch.get_rng_state()
    torch.manual_seed(2)
    for second in (images(), images(num_workers=2)):
        assert all(torch.equal(image, second[number]) for number, image in first.items())
    for other in (images(epoch=1), images(seed=1)):
        assert not all(torch.equal(image, other[number]) for number, image in first.items())
    torch.manual_seed(1)
    assert torch.equal(before, torch.get_rng_state())


def test_wrong_split_names_the_right_ones():
    with pytest.raises(ValueError, match=r"^split is 'val'; expected 'train' or 'test'$"):
        Numbered().monitor_dataset("val")


@pytest.mark.parametrize(
    ("argument", "value", "least"),
    [
        ("batch_size", 0, 1),
        ("batch_size", -8, 1),
        ("train_samples", 0, 1),
        ("train_samples", -1, 1),
        ("num_workers", -1, 0),
        ("seed", -1, 0),
    ],
)
def test_impossible_numbers_are_named(argument, value, least):
    with pytest.raises(ValueError, match=f"^{argument} is {value}; expected a number >= {least}$"):
        Numbered(**{argument: value})


def test_more_samples_than_there_are():
    with pytest.raises(ValueError, match=r"^train_samples is 38; expected at most 37, the number of training images$"):
        Numbered(train_samples=38).setup("fit")


def test_labels_must_match_images():
    with pytest.raises(ValueError, match=r"^3 images have 2 labels"):
        ImageTensors(torch.zeros(3, 1, 2, 2), torch.zeros(2, dtype=torch.int64))


def test_hyper_parameters_do_not_collide_with_those_of_a_module(recorder):
    recorder.save_hyperparameters({"seed": 7, "batch_size": 1})
    logged = trainer(max_epochs=1, logger=CSVLogger(recorder.folder))
    logged.fit(recorder, Numbered())
    assert (logged.datamodule.hparams["seed"], recorder.hparams["seed"]) == (0, 7)

from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)

from netprism.callbacks._calling import labels_of
from netprism.callbacks._monitor_data import MonitorData, as_classes, balanced_indices, monitor_data, targets_of
from netprism.callbacks._view import View
from netprism.datamodules import Digits


def trainer(train=None, validation=None, datamodule=None):
    return SimpleNamespace(train_dataloader=train, val_dataloaders=validation, datamodule=datamodule)


def test_every_class_has_its_share():
    targets = torch.cat([torch.full((count,), label) for label, count in ((3, 50), (5, 20), (9, 4))])
    chosen = balanced_indices(targets, 74, 31, seed=0)
    assert len(set(chosen)) == len(chosen)
    assert targets[chosen].bincount().tolist() == [
        0,
        0,
        0,
        14,
        0,
        13,
        0,
        0,
        0,
        4,
    ]  # 10 a class, but one of them has only 4


def test_the_choice_depends_on_the_seed_alone():
    targets = torch.arange(100) % 10
    torch.manual_seed(1)
    chosen = balanced_indices(targets, 100, 50, seed=0)
    torch.manual_seed(2)
    assert balanced_indices(targets, 100, 50, seed=0) == chosen
    assert balanced_indices(targets, 100, 50, seed=1) != chosen


def test_more_samples_than_there_are_gives_all():
    assert sorted(balanced_indices(torch.arange(9) % 2, 9, 100, seed=0)) == list(range(9))
    unbalanced = torch.cat([torch.zeros(1200), torch.ones(300)]).long()
    assert len(balanced_indices(unbalanced, 1500, 2000, seed=0)) == 1500
    assert unbalanced[balanced_indices(unbalanced, 1500, 1400, seed=0)].bincount().tolist() == [1100, 300]
    assert sorted(balanced_indices(None, 9, 100, seed=0)) == list(range(9))


def test_samples_come_in_random_order():
    # One class after the other would give the ranks different classes.
    targets = torch.arange(1000) // 100
    assert targets[balanced_indices(targets, 1000, 500, seed=0)][:50].unique().numel() == 10


class Labelled(Dataset):
    def __init__(self, length=3, **attributes):
        self.length = length
        self.__dict__.update(attributes)

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        raise AssertionError("labels are read without loading images")


@pytest.mark.parametrize(
    ("dataset", "targets"),
    [
        (Labelled(targets=[2, 0, 1]), [2, 0, 1]),
        (Labelled(labels=np.array([1, 1, 0])), [1, 1, 0]),
        (Subset(Labelled(targets=torch.tensor([2, 0, 1])), [2, 0]), [1, 2]),
        (TensorDataset(torch.zeros(2, 5), torch.tensor([4, 3])), [4, 3]),
        (Labelled(targets=torch.zeros(3)), None),  # real numbers are no classes
        (Labelled(targets=[[1, 0], [0, 1], [1, 1]]), None),
        (Labelled(targets=[0, 1], length=9), None),  # names of two classes, not labels of nine samples
        (Labelled(targets=["cat", "dog"]), None),
        (Labelled(), None),
        (TensorDataset(torch.zeros(2, 5)), None),
    ],
)
def test_targets_are_read_without_images(dataset, targets):
    found = targets_of(dataset)
    assert (None if found is None else found.tolist()) == targets


@pytest.mark.parametrize(
    "batch",
    [
        (torch.ones(2, 3), torch.tensor([0, 1])),
        [torch.ones(2, 3), torch.tensor([0, 1]), "more"],
        {"image": torch.ones(2, 3), "label": torch.tensor([0, 1])},
        {"y": torch.tensor([0, 1]), "x": torch.ones(2, 3)},
    ],
)
def test_labels_of_usual_batches(batch):
    assert as_classes(labels_of(batch)).tolist() == [0, 1]


@pytest.mark.parametrize("batch", [torch.ones(2), (torch.ones(2),), (torch.ones(2), torch.rand(2)), {"pixels": 1}])
def test_batches_without_classes(batch):
    assert as_classes(labels_of(batch)) is None


def test_ranks_share_the_batches_of_one_process():
    batches = [list(range(i, min(i + 4, 23))) for i in range(0, 23, 4)]
    data = MonitorData(list(range(23)), batches, default_collate, seed=0)
    assert len(data) == 23
    for world in (1, 2, 4, 9):
        shards = [data.shard(rank, world) for rank in range(world)]
        assert sorted(number for shard in shards for number in shard) == list(range(6))
    assert data.load(5).tolist() == [20, 21, 22]
    assert data.load(5, 1).tolist() == [20]


def test_our_data_modules_give_their_own_images():
    digits = Digits()
    digits.prepare_data()
    digits.setup("fit")
    data = monitor_data(trainer(datamodule=digits), "test", 100, 32, seed=0)
    assert len(data) == 100
    _, labels = data.load(0)
    assert len(labels) == 32
    labels = torch.cat([data.load(number)[1] for number in range(len(data.batches))])
    assert labels.bincount().tolist() == [10] * 10


def test_a_stranger_s_loaders_are_found():
    train, validation = TensorDataset(torch.rand(8, 2)), TensorDataset(torch.rand(5, 2))
    found = trainer({"a": [DataLoader(train)]}, [DataLoader(validation), DataLoader(train)])
    assert monitor_data(found, "train", 99, 3, 0).dataset is train
    assert monitor_data(found, "test", 99, 3, 0).dataset is validation
    assert monitor_data(trainer(DataLoader(train)), "test", 99, 3, 0) is None
    given = TensorDataset(torch.rand(4, 2))
    assert monitor_data(found, "train", 99, 3, 0, given).dataset is given


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(30))


def test_of_a_stream_the_first_samples_are_kept():
    data = monitor_data(trainer(DataLoader(Stream(), 4)), "train", 9, 5, 0)
    assert sorted(data.load(0).tolist() + data.load(1).tolist()) == list(range(9))


def test_of_a_stream_of_batches_the_rows_are_samples():
    class Batches(IterableDataset):
        def __iter__(self):
            return iter([(torch.arange(4), torch.arange(4)), (torch.arange(4, 8), torch.arange(4, 8))])

    data = monitor_data(trainer(DataLoader(Batches(), batch_size=None)), "train", 6, 6, 0)
    assert sorted(data.load(0)[0].tolist()) == list(range(6))


def test_a_training_without_a_loader_is_refused():
    with pytest.raises(ValueError, match="length and random access, found no DataLoader; give train_data="):
        monitor_data(trainer(None), "train", 9, 3, 0)


def test_the_test_loader_is_chosen_by_name_or_number():
    bank, held_out = TensorDataset(torch.zeros(5, 2)), TensorDataset(torch.ones(5, 2))
    found = trainer(None, {"knn": DataLoader(bank), "val": DataLoader(held_out)})
    for wanted, dataset in ((None, bank), ("val", held_out), (1, held_out), ("knn", bank)):
        assert monitor_data(found, "test", 9, 3, 0, loader=wanted).dataset is dataset
    with pytest.raises(ValueError, match="test_loader is 'test'; expected one of knn, val"):
        monitor_data(found, "test", 9, 3, 0, loader="test")


class Augmented(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return torch.full((2,), float(index)) + torch.rand(2), index % 2


def view(dataset, forward=lambda x: x):
    """The data as a monitor prepares them for a module that returns its input."""

    class Module(pl.LightningModule):
        def forward(self, x):
            return forward(x)

    found = trainer(dataset if isinstance(dataset, DataLoader) else DataLoader(dataset))
    found.precision_plugin = pl.Trainer(logger=False, accelerator="cpu").precision_plugin
    return View(found, Module(), "mine"), monitor_data(found, "train", 8, 8, seed=0)


def test_random_augmentation_is_said_and_held_fixed():
    with pytest.warns(UserWarning, match="mine: the train data are augmented at random: give train_data="):
        data = View.prepare(*view(Augmented()), "train")
    assert torch.equal(data.load(0)[0], data.load(0)[0])


class Views(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return [torch.rand(2), torch.rand(2)], index % 2


def test_augmented_views_are_said_though_the_labels_stay():
    def forward(x):
        return torch.relu(x)

    with pytest.warns(UserWarning, match="augmented at random"):
        data = View.prepare(*view(Views(), forward), "train")
    assert data.way.text == "batch[0][0]"


def test_mixing_in_the_collate_function_is_said():
    def mixed(items):
        x = torch.stack([x for (x,) in items])
        return x.lerp(x[torch.randperm(len(x))], torch.rand(()))

    loader = DataLoader(TensorDataset(torch.rand(8, 2)), collate_fn=mixed)
    with pytest.warns(UserWarning, match="augmented at random"):
        View.prepare(*view(loader), "train")


def test_one_data_set_split_by_samplers_is_not_mixed():
    data = TensorDataset(torch.arange(20.0), torch.arange(20) % 2)
    train, held_out = (DataLoader(data, sampler=SubsetRandomSampler(part)) for part in (range(14), range(14, 20)))
    found = trainer(train, held_out)
    values = {split: monitor_data(found, split, 99, 99, seed=0).load(0)[0] for split in ("train", "test")}
    assert sorted(values["train"].tolist()) == list(range(14))
    assert sorted(values["test"].tolist()) == list(range(14, 20))


def test_a_loader_that_does_not_batch_is_refused():
    loader = DataLoader(TensorDataset(torch.rand(4, 2)), batch_size=None)
    with pytest.raises(ValueError, match="the train loader has batch_size=None, so its items are no samples"):
        monitor_data(trainer(loader), "train", 4, 4, seed=0)

import hashlib
import pickle
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from published_data import write_celeba, write_coco, write_cub, write_dogs, write_tiny, write_voc
from torchvision import datasets

import netprism
from netprism.datamodules import (
    CIFAR100,
    COCO2014,
    CUB200,
    VOC2012,
    CelebA,
    ImageDataModule,
    StanfordDogs,
    TinyImageNet,
)
from netprism.datamodules.image_files import UnreadableImageError

WRITTEN = {
    TinyImageNet: (write_tiny, ("goldfish", "crane n02", "crane n03"), (12, 3)),
    StanfordDogs: (write_dogs, ("Chihuahua", "Pekinese"), (4, 2)),
    CUB200: (write_cub, ("Black_footed_Albatross", "Laysan_Albatross"), (2, 2)),
    VOC2012: (write_voc, ("dog", "person"), (4, 2)),
    COCO2014: (write_coco, ("person", "toothbrush"), (2, 2)),
    CelebA: (write_celeba, ("not Smiling", "Smiling"), (4, 2)),
}


def made(kind, root, **options):
    options = {"image_size": 32, "num_workers": 0, "download": False} | options
    return kind(root=str(root), **({"min_side": 16} if kind in (VOC2012, COCO2014) else {}), **options)


@pytest.mark.parametrize("kind", WRITTEN, ids=lambda kind: kind.__name__)
def test_files_as_published_are_read(kind, tmp_path):
    write, classes, counts = WRITTEN[kind]
    write(tmp_path)
    dogs = {"classes": list(classes), "difficult": True} if kind is VOC2012 else {}
    data = made(kind, tmp_path, **dogs)
    data.prepare_data()
    data.setup("fit")
    found = [data.monitor_dataset(split) for split in ("train", "test")]
    assert tuple(map(len, found)) == counts
    assert data.classes == classes
    assert set(found[0].targets.tolist()) == set(range(data.num_classes))
    image, label, *_ = found[0][0]
    assert (image.shape, type(label)) == ((3, 32, 32), int)
    assert len(data.all_classes()) == (20 if kind is VOC2012 else len(classes))


@pytest.mark.parametrize(
    "kind", [TinyImageNet, StanfordDogs, CUB200, VOC2012, COCO2014], ids=lambda kind: kind.__name__
)
def test_boxes_and_segments_are_where_the_object_is(kind, tmp_path):
    WRITTEN[kind][0](tmp_path)
    dogs = {"classes": ["dog", "person"], "difficult": True} if kind is VOC2012 else {}

    def white(**options):
        source = made(kind, tmp_path, **dogs, **options).read("train")
        return source, (source[0][0][0] > 127)

    _, tight = white(crop="box")
    assert tight[1:-1, 1:-1].all()
    source, shown = white(crop="box", margin=1.5, image_size=90)
    mask = source.mask(0)
    # the segments of the files here begin five pixels to the right of the box
    has_segments = kind in (CUB200, VOC2012, COCO2014)
    left = round((5 / 30 if has_segments else 0) * 60) + 15
    assert mask.any(0).nonzero().min() == pytest.approx(left, abs=2)
    assert shown.any(0).nonzero().min() == pytest.approx(15, abs=2)
    assert (mask & ~shown).float().mean() < 0.03
    source, shown = white(crop="image")
    assert (source.mask(0) & ~shown).float().mean() < 0.04
    assert not source.mask(0).all()


def test_parts_of_birds(tmp_path):
    write_cub(tmp_path)
    parts = made(CUB200, tmp_path).parts("train")
    assert parts.shape == (2, 15, 3)
    assert (parts[0, 0].tolist(), parts[1, 1].tolist(), parts[..., 2].sum()) == ([25, 12, 1], [30, 20, 1], 2)


def test_run_lengths_and_missing_tools_of_coco(tmp_path, monkeypatch):
    from netprism.datamodules.annotations import CocoSegment

    coded = {"size": [4, 6], "counts": [0, 4, 20]}  # the first column
    found = np.array(CocoSegment(coded, tmp_path).read((6, 4)))
    assert (found > 0).nonzero()[1].tolist() == [0] * 4
    with pytest.raises(UnreadableImageError, match=r"segment is of \[4, 6\]; expected \[4, 7\]"):
        CocoSegment(coded, tmp_path).read((7, 4))
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    with pytest.raises(ModuleNotFoundError, match="COCO2014 needs pycocotools for masks: pip install pycocotools"):
        CocoSegment(coded, tmp_path).read((6, 4))


@pytest.mark.parametrize("kind", WRITTEN, ids=lambda kind: kind.__name__)
def test_what_is_missing_is_named_with_where_it_belongs(kind, tmp_path, no_network, monkeypatch):
    with pytest.raises(FileNotFoundError, match=f"^{kind.__name__}: .* is missing; expected the files of http.* in "):
        made(kind, tmp_path).setup("fit")
    if kind in (VOC2012, CelebA):
        with pytest.raises(FileNotFoundError, match=f"^{kind.__name__}: no download succeeded .*; copy the files of"):
            made(kind, tmp_path, download=True).prepare_data()


@pytest.mark.parametrize("kind", [VOC2012, COCO2014])
def test_objects_that_are_all_too_small_leave_a_class_empty(kind, tmp_path):
    WRITTEN[kind][0](tmp_path)
    with pytest.raises(FileNotFoundError, match=f"^{kind.__name__}: class '.*' has no train images in "):
        kind(root=str(tmp_path), min_side=1000).setup("fit")


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        (TinyImageNet, "tiny-imagenet-200/train/n01/n01_boxes.txt"),
        (StanfordDogs, "stanford_dogs/test_list.mat"),
        (StanfordDogs, "stanford_dogs/Annotation/n02085620-Chihuahua/n02085620_train0"),
        (CUB200, "CUB_200_2011/bounding_boxes.txt"),
        (CUB200, "CUB_200_2011/images.txt"),
        (VOC2012, "VOCdevkit/VOC2012/Annotations/2007_01.xml"),
        (COCO2014, "coco/annotations/instances_val2014.json"),
        (CelebA, "celeba/list_attr_celeba.txt"),
    ],
)
@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_half_copied_data_set_is_one_line(kind, file, how, tmp_path):
    WRITTEN[kind][0](tmp_path)
    path = tmp_path / file
    if how == "gone":
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes(content[: max(len(content) * 2 // 3, 1)].rstrip(b"0123456789. \t"))
    with pytest.raises((OSError, ValueError)) as caught:
        data = made(kind, tmp_path)
        data.setup("fit")
        list(data.monitor_dataset("train"))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_cifar100_reads_the_fine_labels(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()

    def put(name, content):
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    images = np.arange(6 * 3072).reshape(6, 3072).astype(np.uint8)
    labels = {"fine_labels": [5, 99, 0, 1, 2, 3], "coarse_labels": [1] * 6, "data": images}
    monkeypatch.setattr(datasets.CIFAR100, "train_list", [put("train", labels)])
    monkeypatch.setattr(datasets.CIFAR100, "test_list", [put("test", labels)])
    name, checksum = put("meta", {"fine_label_names": [str(i) for i in range(100)]})
    monkeypatch.setattr(datasets.CIFAR100, "meta", {"filename": name, "key": "fine_label_names", "md5": checksum})
    source = CIFAR100(root=str(tmp_path), download=False).read("train")
    assert source.targets.tolist() == [5, 99, 0, 1, 2, 3]
    assert torch.equal(source[2][0], torch.from_numpy(images[2].reshape(3, 32, 32)))


def test_masks_are_optional_where_an_archive_of_their_own_is_missing(tmp_path):
    write_cub(tmp_path)
    shutil.rmtree(tmp_path / "segmentations")
    assert made(CUB200, tmp_path).read("train").table.segments is None
    assert made(CUB200, tmp_path, margin=1.5).monitor_dataset("train")[0][2].float().mean() == pytest.approx(
        1 / 2.25, abs=0.05
    )


CONFIGS = Path(netprism.__file__).parent / "configs" / "data"


@pytest.mark.parametrize("file", sorted(path.name for path in CONFIGS.glob("*.yaml")))
def test_every_data_config_names_options_that_there_are(file):
    """Options are checked against the signatures; nothing is read."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--data", type=ImageDataModule)
    config = parser.parse_object({"data": yaml.safe_load((CONFIGS / file).read_text())})
    data = parser.instantiate(config).data
    assert len(data.shape) == 3


def test_of_nodes_that_share_a_folder_one_downloads_and_the_others_wait(tmp_path, monkeypatch, caplog):
    def fetch(root, **options):
        fetched.append(root)
        time.sleep(0.2)
        (Path(root) / VOC2012.folder).mkdir(parents=True)

    fetched = []
    monkeypatch.setattr("torchvision.datasets.VOCDetection", fetch)
    modules = [VOC2012(str(tmp_path / "shared"), download=True) for _ in range(2)]
    with ThreadPoolExecutor() as nodes:
        list(nodes.map(VOC2012.prepare_data, modules))
    assert len(fetched) == 1
    assert "another process downloads into" in caplog.text

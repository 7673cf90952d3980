"""Published data sets, written at small size in the format of their archives."""

import json
from zlib import crc32

import numpy as np
from PIL import Image
from scipy.io import savemat

WIDTH, HEIGHT = 60, 40
BOX = (20, 10, 50, 30)  # left, top, right, bottom of every object, counted from 0, the last two just outside


def picture(path, box=BOX, size=(WIDTH, HEIGHT), mode="RGB"):
    """Light where the object is, dark elsewhere, with noise of its own; a mask of mode "L" is white on black."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((size[1], size[0]), np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    if path.suffix != ".png":
        noise = np.random.default_rng(crc32(path.name.encode())).integers(0, 60, pixels.shape)
        pixels = np.where(pixels > 0, pixels - noise, noise).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, quality=95)


def lines(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows))


def xml(path, *objects):
    """An annotation in the format of Pascal VOC: pixels count from 1 to the last one of the object."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(
        f"<object><name>{name}</name><difficult>{int(difficult)}</difficult><bndbox><xmin>{left + 1}</xmin>"
        f"<ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
        for name, (left, top, right, bottom), difficult in objects
    )
    path.write_text(f"<annotation><size><width>{WIDTH}</width><height>{HEIGHT}</height></size>{text}</annotation>")


def write_tiny(root):
    folder, numbers = root / "tiny-imagenet-200", ["n02", "n01", "n03"]
    lines(folder / "wnids.txt", *numbers)
    lines(folder / "words.txt", "n01\tgoldfish, Carassius auratus", "n02\tcrane", "n03\tcrane", "n99\tentity")
    box = "\t".join(map(str, (BOX[0], BOX[1], BOX[2] - 1, BOX[3] - 1)))
    for number in numbers:
        names = [f"{number}_{i}.JPEG" for i in range(4)]
        for name in names:
            picture(folder / "train" / number / "images" / name, mode="L" if name.endswith("_0.JPEG") else "RGB")
        lines(folder / "train" / number / f"{number}_boxes.txt", *(f"{name}\t{box}" for name in names))
    for i in range(len(numbers)):
        picture(folder / "val" / "images" / f"val_{i}.JPEG")
    lines(folder / "val" / "val_annotations.txt", *(f"val_{i}.JPEG\t{n}\t{box}" for i, n in enumerate(numbers)))


def write_dogs(root):
    folder = root / "stanford_dogs"
    breeds = ["n02085620-Chihuahua", "n02086079-Pekinese"]
    for split, count in (("train", 4), ("test", 2)):
        names = [f"{breed}/{breed.partition('-')[0]}_{split}{i}.jpg" for breed in breeds for i in range(count // 2)]
        for name in names:
            picture(folder / "Images" / name)
            xml(folder / "Annotation" / name.removesuffix(".jpg"), (name.split("-")[1], BOX, False))
        cells = np.empty((len(names), 1), object)
        cells[:, 0] = names
        labels = np.repeat([[1], [2]], count // 2, axis=0)
        savemat(folder / f"{split}_list.mat", {"file_list": cells, "labels": labels, "annotation_list": cells})


def write_cub(root, each=1):
    """Two species; `each`: number of training and of test images of a species."""
    folder = root / "CUB_200_2011"
    species = ["001.Black_footed_Albatross", "002.Laysan_Albatross"]
    birds = [f"{name}/{number}" for name in species for number in range(2 * each)]
    lines(folder / "classes.txt", *(f"{i} {name}" for i, name in enumerate(species, 1)))
    lines(folder / "images.txt", *(f"{i} {name}.jpg" for i, name in enumerate(birds, 1)))
    lines(folder / "image_class_labels.txt", *(f"{i + 1} {1 + i // (2 * each)}" for i in range(len(birds))))
    lines(folder / "train_test_split.txt", *(f"{i + 1} {1 - i % 2}" for i in range(len(birds))))
    size = f"{BOX[2] - BOX[0]}.0 {BOX[3] - BOX[1]}.0"
    lines(folder / "bounding_boxes.txt", *(f"{i} {BOX[0]}.0 {BOX[1]}.0 {size}" for i in range(1, len(birds) + 1)))
    lines(folder / "parts" / "part_locs.txt", "1 1 25.0 12.0 1", "1 15 0.0 0.0 0", "3 2 30.0 20.0 1")
    for name in birds:
        picture(folder / "images" / f"{name}.jpg")
        picture(root / "segmentations" / f"{name}.png", (BOX[0] + 5, *BOX[1:]), mode="L")


def write_voc(root):
    folder = root / "VOCdevkit" / "VOC2012"
    second = (0, 0, 8, 8)  # too small
    for split, names in (("train", ["2007_01", "2007_02"]), ("val", ["2008_01"])):
        lines(folder / "ImageSets" / "Main" / f"{split}.txt", *names)
        for name in names:
            picture(folder / "JPEGImages" / f"{name}.jpg")
            objects = ("chair", second, False), ("dog", BOX, False), ("person", (0, 0, 20, 40), True)
            xml(folder / "Annotations" / f"{name}.xml", *objects)
    values = np.zeros((HEIGHT, WIDTH), np.uint8)
    values[0:8, 0:8], values[10:30, 25:50], values[30:32, 20:50] = 1, 2, 255
    (folder / "SegmentationObject").mkdir()
    mask = Image.new("P", (WIDTH, HEIGHT))
    mask.putdata(values.flatten().tolist())
    mask.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    mask.save(folder / "SegmentationObject" / "2007_01.png")


def write_coco(root):
    folder = root / "coco"
    left, top, right, bottom = BOX
    box = [left, top, right - left, bottom - top]
    outline = [[left + 5, top, right, top, right, bottom, left + 5, bottom]]
    counts = [WIDTH * HEIGHT - 1, 1]
    for split, number in (("train", 7), ("val", 8)):
        picture(folder / f"{split}2014" / f"COCO_{split}2014_{number:012}.jpg")
        annotations = [
            {"image_id": number, "category_id": 90, "bbox": box, "segmentation": outline, "iscrowd": 0},
            {"image_id": number, "category_id": 1, "bbox": box, "segmentation": outline, "iscrowd": 0},
            {"image_id": number, "category_id": 1, "bbox": [0, 0, 3, 3], "segmentation": outline, "iscrowd": 0},
            {
                "image_id": number,
                "category_id": 1,
                "bbox": box,
                "segmentation": {"size": [HEIGHT, WIDTH], "counts": counts},
                "iscrowd": 1,
            },
        ]
        content = {
            "images": [{"id": number, "file_name": f"COCO_{split}2014_{number:012}.jpg"}],
            "annotations": annotations,
            "categories": [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}],
        }
        lines(folder / "annotations" / f"instances_{split}2014.json", json.dumps(content))


def write_celeba(root):
    folder = root / "celeba"
    names = [f"{i:06}.jpg" for i in range(1, 9)]
    smiles = [1, -1, 1, -1, 1, -1, 1, -1]
    rows = [f"{name} {-smile:2d} {smile:2d}" for name, smile in zip(names, smiles, strict=True)]
    lines(folder / "list_attr_celeba.txt", len(names), "Male Smiling", *rows)
    lines(folder / "list_eval_partition.txt", *(f"{name} {part}" for name, part in zip(names, "00001122", strict=True)))
    for name in names:
        picture(folder / "img_align_celeba" / name, size=(178, 218))

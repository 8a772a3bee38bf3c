"""Writes a small archive in the official format of every dataset, with images that encode their own label."""

from __future__ import annotations

import csv
import io
import json
import pickle
import struct
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import torchvision
from helpers import ROOT, config
from omegaconf import OmegaConf
from PIL import Image
from scipy.io import savemat
from timm.data import ImageNetInfo

from mergestream.compose.inputs import Inputs
from mergestream.data.protocol import class_names, class_names_by_folder, domains
from mergestream.runtime.errors import UserError

HELD_OUT = 8  # test images are numbered from here


def picture(label: int, number: int, side: int = 16) -> np.ndarray:
    """An image [side, side, 3]: the upper half is white, the colour of the lower half encodes a label and a number."""
    pixels = np.full((side, side, 3), 255, dtype=np.uint8)
    colour = label % 32, label // 32 % 32, number
    pixels[side // 2 :] = [8 * channel + 4 for channel in colour]  # steps of 8 survive JPEG
    return pixels


def grey(label: int, number: int, side: int = 28) -> np.ndarray:
    """A grey image [side, side] that encodes a label below 15 and a number."""
    pixels = np.full((side, side), 255, dtype=np.uint8)
    pixels[side // 2 :] = 16 * label + number
    return pixels


def code(image: Image.Image) -> tuple[int, int]:
    """The (label, number) that a `picture` or `grey` image encodes, which must be upright."""
    above, below = (image.getpixel(at) for at in ((image.width - 1, 0), (0, image.height - 1)))
    assert min(np.atleast_1d(above)) > 250, "the image is not upright"
    if image.mode == "L":
        return divmod(below, 16)
    low, high, number = (channel // 8 for channel in below)
    return 32 * high + low, number


@cache
def encoded(label: int, number: int, suffix: str) -> bytes:
    """The content of an image file."""
    content = io.BytesIO()
    kind = Image.registered_extensions()[suffix.lower()]
    Image.fromarray(picture(label, number)).save(content, format=kind, quality=95, subsampling=0)
    return content.getvalue()


def save(path: Path, label: int, number: int) -> None:
    """Write the `picture` of a label and a number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(label, number, path.suffix))


def class_list(count: int, *first: str, then: str = "zone_{:03d}") -> list[str]:
    """`count` class names: some real ones, then made-up ones."""
    return [*first, *(then.format(i) for i in range(len(first), count))]


def save_lines(path: Path, rows: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows))


def accept_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accept files whose checksums differ from those of the real archives; missing files are still detected."""
    monkeypatch.setattr(torchvision.datasets.utils, "check_md5", lambda path, md5: True)


def cifar_batch(path: Path, key: str, labels: list[int], number: int) -> None:
    data = np.stack([picture(label, number, 32).transpose(2, 0, 1).reshape(-1) for label in labels])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps({"data": data, key: labels, "filenames": [f"{c}.png" for c in labels]}, protocol=2))


def write_cifar10(root: Path) -> None:
    folder = root / "cifar-10-batches-py"
    for number in range(5):
        cifar_batch(folder / f"data_batch_{number + 1}", "labels", [*range(9, -1, -1)], number)
    cifar_batch(folder / "test_batch", "labels", [*range(10)], HELD_OUT)
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}, protocol=2))


def write_cifar100(root: Path) -> None:
    folder = root / "cifar-100-python"
    cifar_batch(folder / "train", "fine_labels", [*range(99, -1, -1)], 0)
    cifar_batch(folder / "test", "fine_labels", [*range(100)], HELD_OUT)
    names = class_list(100, "apple", "aquarium_fish")
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}, protocol=2))


def idx(path: Path, array: np.ndarray) -> None:
    """Write MNIST's file format: type and number of axes, lengths of the axes, bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes())


def idx_files(folder: Path, *, train: str, test: str, turned: bool = False) -> None:
    """Write images and labels of ten classes; `turned` transposes the images."""
    for stem, numbers in ((train, (0, 1)), (test, (HELD_OUT,))):
        samples = [(label, number) for number in numbers for label in range(9, -1, -1)]
        images = np.stack([grey(label, number) for label, number in samples])
        idx(folder / f"{stem}-images-idx3-ubyte", images.transpose(0, 2, 1) if turned else images)
        idx(folder / f"{stem}-labels-idx1-ubyte", np.array([label for label, _ in samples], dtype=np.uint8))


def write_mnist(root: Path) -> None:
    idx_files(root / "MNIST/raw", train="train", test="t10k")


def write_fashion_mnist(root: Path) -> None:
    idx_files(root / "FashionMNIST/raw", train="train", test="t10k")


def write_kmnist(root: Path) -> None:
    idx_files(root / "KMNIST/raw", train="train", test="t10k")


def write_emnist(root: Path) -> None:
    idx_files(root / "EMNIST/raw", train="emnist-digits-train", test="emnist-digits-test", turned=True)


def write_svhn(root: Path) -> None:
    for part, number in (("train", 0), ("test", HELD_OUT)):
        images = np.stack([picture(label, number, 32) for label in range(10)], axis=-1)
        labels = np.array([[label or 10] for label in range(10)], dtype=np.uint8)  # 10 is the digit 0
        savemat(root / f"{part}_32x32.mat", {"X": images, "y": labels}, do_compression=True)


def write_stl10(root: Path) -> None:
    folder = root / "stl10_binary"
    folder.mkdir()
    for part, number in (("train", 0), ("test", HELD_OUT)):
        images = np.stack([picture(label, number, 96) for label in range(9, -1, -1)])
        (folder / f"{part}_X.bin").write_bytes(images.transpose(0, 3, 2, 1).tobytes())  # column by column
        (folder / f"{part}_y.bin").write_bytes(bytes(range(10, 0, -1)))
    (folder / "unlabeled_X.bin").write_bytes(b"")
    names = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
    save_lines(folder / "class_names.txt", names)


def write_cars(root: Path) -> None:
    folder = root / "stanford_cars"
    names = class_list(196, "AM General Hummer SUV 2000", "Acura RL Sedan 2012", then="Zenith {} Coupe 2012")
    fields = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"]
    (folder / "devkit").mkdir(parents=True)
    savemat(folder / "devkit/cars_meta.mat", {"class_names": np.array(names, dtype=object)[None]})
    for part, number, listed in (
        ("train", 0, "devkit/cars_train_annos.mat"),
        ("test", HELD_OUT, "cars_test_annos_withlabels.mat"),
    ):
        rows = np.empty((1, 196), dtype=[(field, object) for field in fields])
        for i, label in enumerate(range(195, -1, -1)):
            rows[0, i] = (1, 1, 15, 15, np.uint8(label + 1), f"{i + 1:05d}.jpg")
            save(folder / f"cars_{part}" / f"{i + 1:05d}.jpg", label, number)
        savemat(folder / listed, {"annotations": rows}, do_compression=True)


def write_cub200(root: Path) -> None:
    folder = root / "CUB_200_2011"
    classes = class_list(200, "Black_footed_Albatross", "Laysan_Albatross", then="Zebra_Finch_{}")
    samples = [(c, f"{c + 1:03d}.{name}", number) for c, name in enumerate(classes) for number in (HELD_OUT, 0)]
    paths = [f"{name}/{name[4:]}_{number:04d}_{c}.jpg" for c, name, number in samples]
    save_lines(folder / "images.txt", [f"{i} {path}" for i, path in enumerate(paths, 1)])
    save_lines(folder / "image_class_labels.txt", [f"{i} {c + 1}" for i, (c, _, _) in enumerate(samples, 1)])
    save_lines(folder / "train_test_split.txt", [f"{i} {int(not n)}" for i, (_, _, n) in enumerate(samples, 1)])
    save_lines(folder / "classes.txt", [f"{c + 1} {c + 1:03d}.{name}" for c, name in enumerate(classes)])
    for path, (label, _, number) in zip(paths, samples, strict=True):
        save(folder / "images" / path, label, number)


def style(label: int, number: int) -> str:
    """The style of an image of ImageNet-R; each class has three styles."""
    styles = domains("imagenet_r")
    return styles[(3 * label + number) % len(styles)]


def wnid(label: int) -> str:
    """A folder name; the names sort in the opposite order of the classes."""
    return f"n{10_000_000 - label:08d}"


def write_imagenet_r(root: Path) -> None:
    folder, names = root / "imagenet-r", class_names("imagenet_r")
    said = [f"{wnid(label)} {name.replace(' ', '_')}" for label, name in enumerate(names)]
    save_lines(folder / "README.txt", ["ImageNet-R(endition)", "", "200 classes of ImageNet:", "", *said[::-1]])
    for label in range(200):
        for number in range(3):
            save(folder / wnid(label) / f"{style(label, number)}_{label}.jpg", label, number)


def write_domainnet(root: Path) -> None:
    """Class c has images in domain c mod 6 only, except the last class, which has images in every domain."""
    folder, names, kinds = root / "domainnet", class_names("domainnet"), domains("domainnet")
    official = {name: i for i, name in enumerate(sorted(names, key=str.lower))}  # not in the order of the protocol
    for d, kind in enumerate(kinds):
        for part, first in (("train", 0), ("test", HELD_OUT)):
            rows = []
            for label, name in enumerate(names):
                if label % len(kinds) == d or label == len(names) - 1:
                    path = f"{kind}/{name.replace(' ', '_')}/{kind}_{label:03d}_{first:06d}.jpg"
                    save(folder / path, label, first + d)
                    rows.append(f"{path} {official[name]}")
            save_lines(folder / f"{kind}_{part}.txt", rows)


def write_eurosat(root: Path) -> None:
    for label, name in enumerate(sorted(class_names_by_folder("eurosat"))):
        for number in range(10):
            save(root / "eurosat/2750" / name / f"{name}_{number + 1}.jpg", label, number)


def write_resisc45(root: Path) -> None:
    for label, name in enumerate(class_names("resisc45")):
        folder = name.replace(" ", "_")
        for number in range(5):
            save(root / "NWPU-RESISC45" / folder / f"{folder}_{number + 1:03d}.jpg", label, number)


def write_sun397(root: Path) -> None:
    """Partition 2 swaps train and test of partition 1; one image is in no list."""
    names = class_list(397, "/a/abbey", "/a/airplane_cabin", "/a/athletic_field/outdoor", then="/z/zone_{:03d}")
    folder = root / "SUN397"
    save_lines(folder / "ClassName.txt", names)
    lists = {}
    for part, number in (("Training", 0), ("Testing", HELD_OUT)):
        lists[part] = [f"{name}/sun_{part[:2].lower()}{label:03d}.jpg" for label, name in enumerate(names)]
        for label, path in enumerate(lists[part]):
            save(folder / path[1:], label, number)
    save(folder / "a/abbey/sun_unlisted.jpg", 0, 1)
    for partition, (train, test) in enumerate((("Training", "Testing"), ("Testing", "Training")), 1):
        save_lines(folder / f"Training_{partition:02d}.txt", lists[train][::-1])
        save_lines(folder / f"Testing_{partition:02d}.txt", lists[test])


def write_dtd(root: Path) -> None:
    """Partition 2 swaps train and test of partition 1."""
    names = class_list(47, "banded", "blotchy", "braided", "polka-dotted", then="zigzagged{:02d}")
    folder = root / "dtd/dtd"
    lists = {}
    for number in (0, 1, HELD_OUT):
        lists[number] = [f"{name}/{name}_{number:04d}.jpg" for name in names]
        for label, path in enumerate(lists[number]):
            save(folder / "images" / path, label, number)
    for partition, numbers in enumerate(((0, 1, HELD_OUT), (HELD_OUT, 1, 0)), 1):
        for part, number in zip(("train", "val", "test"), numbers, strict=True):
            save_lines(folder / f"labels/{part}{partition}.txt", lists[number])


def write_gtsrb(root: Path) -> None:
    folder = root / "gtsrb"
    header = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"
    rows = [header]
    for i, label in enumerate(range(42, -1, -1)):
        train = folder / "GTSRB/Training" / f"{label:05d}"
        save(train / "00000_00000.ppm", label, 0)
        save_lines(train / f"GT-{label:05d}.csv", [header, f"00000_00000.ppm;16;16;1;1;15;15;{label}"])
        save(folder / "GTSRB/Final_Test/Images" / f"{i:05d}.ppm", label, HELD_OUT)
        rows.append(f"{i:05d}.ppm;16;16;1;1;15;15;{label}")
    save_lines(folder / "GT-final_test.csv", rows)


def write_food101(root: Path) -> None:
    folder, names = root / "food-101", class_list(101, "apple_pie", "baby_back_ribs", "baklava")
    save_lines(folder / "meta/classes.txt", names)
    for part, number in (("train", 0), ("test", HELD_OUT)):
        listed = {name: [f"{name}/{1000 + number}"] for name in names[::-1]}
        (folder / "meta" / f"{part}.json").write_text(json.dumps(listed))
        for label, name in enumerate(names):
            save(folder / "images" / name / f"{1000 + number}.jpg", label, number)


def write_flowers102(root: Path) -> None:
    folder = root / "flowers-102"
    labels = np.array([7 * i % 102 for i in range(306)])  # each class three times, in no order
    for i, label in enumerate(labels.tolist()):
        save(folder / "jpg" / f"image_{i + 1:05d}.jpg", label, (HELD_OUT, 0, 1)[i // 102])
    ids = np.arange(1, 307, dtype=np.uint16).reshape(3, 1, 102)
    savemat(folder / "imagelabels.mat", {"labels": (labels + 1).astype(np.uint8)[None]})
    savemat(folder / "setid.mat", {"tstid": ids[0], "trnid": ids[1], "valid": ids[2]})


def write_oxford_pets(root: Path) -> None:
    folder = root / "oxford-iiit-pet"
    names = class_list(37, "Abyssinian", "american_bulldog", "american_pit_bull_terrier", then="Zorse_{:02d}")
    for part, number in (("trainval", 0), ("test", HELD_OUT)):
        kinds = [1 if name[0].isupper() else 2 for name in names]  # cats are capitalised
        rows = [f"{name}_{number + 1} {c + 1} {kinds[c]} {c + 1}" for c, name in enumerate(names)]
        save_lines(folder / f"annotations/{part}.txt", rows[::-1])
        for label, name in enumerate(names):
            save(folder / "images" / f"{name}_{number + 1}.jpg", label, number)


def write_fer2013(root: Path) -> None:
    (root / "fer2013").mkdir()
    with (root / "fer2013/fer2013.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["emotion", "pixels", "Usage"])
        for usage, number in (("Training", 0), ("PublicTest", HELD_OUT), ("PrivateTest", HELD_OUT + 1)):
            for label in range(6, -1, -1):
                writer.writerow([label, " ".join(map(str, grey(label, number, 48).flatten())), usage])


def write_pcam(root: Path) -> None:
    (root / "pcam").mkdir()
    for part, numbers in (("train", (0, 1)), ("test", (HELD_OUT,))):
        samples = [(label, number) for number in numbers for label in (1, 0)]
        stem = f"{root}/pcam/camelyonpatch_level_2_split_{part}"
        with h5py.File(f"{stem}_x.h5", "w") as file:
            file["x"] = np.stack([picture(label, number) for label, number in samples])
        with h5py.File(f"{stem}_y.h5", "w") as file:
            file["y"] = np.array([label for label, _ in samples], dtype=np.uint8).reshape(-1, 1, 1, 1)


def write_rendered_sst2(root: Path) -> None:
    for part, number in (("train", 0), ("valid", 1), ("test", HELD_OUT)):
        for label, name in enumerate(("negative", "positive")):
            save(root / "rendered-sst2" / part / name / "0.png", label, number)


def write_imagenet(root: Path) -> None:
    """Write 20 classes, as torchvision leaves them after it has unpacked the archives."""
    folder = root / "imagenet"
    synsets = [
        ("n01440764", ("tench", "Tinca tinca")),
        ("n01443537", ("goldfish", "Carassius auratus")),
        ("n01484850", ("great white shark", "white shark", "man-eater")),
        *((wnid, ("thing", "Res")) for wnid in ImageNetInfo("imagenet-1k").label_names()[117:134]),
    ]
    for label, (wnid, _) in enumerate(synsets):
        save(folder / "train" / wnid / f"{wnid}_18.JPEG", label, 0)
        save(folder / "val" / wnid / f"ILSVRC2012_val_{20 - label:08d}.JPEG", label, HELD_OUT)
    torch.save((dict(synsets[::-1]), [wnid for wnid, _ in synsets[::-1]]), folder / "meta.bin")


def write_tiny_imagenet(root: Path) -> None:
    folder = root / "tiny-imagenet-200"
    wnids = class_list(200, "n01443537", "n01629819", then="n9{:07d}")
    rows = []
    for label, wnid in enumerate(wnids):
        save(folder / "train" / wnid / "images" / f"{wnid}_0.JPEG", label, 0)
        save_lines(folder / "train" / wnid / f"{wnid}_boxes.txt", [f"{wnid}_0.JPEG\t0\t0\t15\t15"])
        save(folder / "val/images" / f"val_{199 - label}.JPEG", label, HELD_OUT)
        rows.append(f"val_{199 - label}.JPEG\t{wnid}\t0\t0\t15\t15")
    save_lines(folder / "val/val_annotations.txt", rows[::-1])
    save_lines(folder / "wnids.txt", wnids[::-1])
    names = ["goldfish, Carassius auratus", "European fire salamander, Salamandra salamandra"]
    words = dict(zip(wnids, class_list(200, *names, then="thing {}, Res"), strict=True))
    save_lines(folder / "words.txt", [f"{wnid}\t{said}" for wnid, said in {"n00001740": "entity", **words}.items()])


def write_folder(root: Path) -> None:
    for label, name in enumerate(("cat", "great_white_shark", "hen")):
        for part, numbers in (("train", (0, 1)), ("test", (HELD_OUT,))):
            for number in numbers:
                save(root / part / name / f"{number}.png", label, number)


def write_aircraft(root: Path) -> None:
    folder = root / "fgvc-aircraft-2013b/data"
    variants = class_list(100, "707-320", "727-200", "F-16A/B", "F/A-18", then="Zephyr_{:02d}")
    save_lines(folder / "variants.txt", variants)
    lists = {"train": (0,), "val": (1,), "trainval": (0, 1), "test": (HELD_OUT,)}
    for part, numbers in lists.items():
        samples = [(label, number) for label in range(99, -1, -1) for number in numbers]
        rows = [f"{100 * number + label:07d} {variants[label]}" for label, number in samples]
        save_lines(folder / f"images_variant_{part}.txt", rows)
        for label, number in samples:
            save(folder / f"images/{100 * number + label:07d}.jpg", label, number)


def write_caltech101(root: Path) -> None:
    folder = root / "caltech101/101_ObjectCategories"
    for label, name in enumerate(sorted(class_names_by_folder("caltech101"))):
        for number in range(5):
            save(folder / name / f"image_{number + 1:04d}.jpg", label, number)
    save(folder / "BACKGROUND_Google/image_0001.jpg", 0, 0)


def write_table(root: Path) -> None:
    rows = ["path,split,label"]
    for label, name in enumerate(("cat", "great_white_shark", "hen")):
        for number in (HELD_OUT, 0, 1):
            save(root / f"table/{number}{label}.png", label, number)
            rows.insert(1, f"table/{number}{label}.png,{'test' if number == HELD_OUT else 'train'},{name}")
    save_lines(root / "labels.csv", rows)


WRITERS = {name[len("write_") :]: value for name, value in list(globals().items()) if name.startswith("write_")}

SPLIT_BY_NAME = {"eurosat": 10, "imagenet_r": 3, "resisc45": 5}  # images of each class


@cache
def base_config():
    """A config composed once, because composing takes longer than reading a small archive."""
    return config("train")


@cache
def dataset_group(name):
    """The keys of an option of the ``dataset`` group."""
    return OmegaConf.load(ROOT / f"configs/dataset/{name}.yaml").dataset


def load(name, root, *overrides, results=None):
    """Load a dataset; the outcome of its image check is cached in `results`."""
    cfg = base_config().copy()
    OmegaConf.set_struct(cfg, False)
    cfg.dataset = dataset_group(name)
    places = [f"data.root={root}", f"root={results or root / 'results'}"]
    return Inputs(OmegaConf.merge(cfg, OmegaConf.from_dotlist([*places, *overrides]))).source()


def codes(split):
    """(label, number) of every image of a split."""
    return [code(split.images[i]) for i in range(len(split))]


def error_line(name, root, *overrides):
    """The one-line error of a dataset that cannot be loaded."""
    with pytest.raises(UserError) as caught:
        load(name, root, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def truncate(path, part=0.5):
    """Keep the first part of a file."""
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])


def remove_line(path, number):
    """Remove one line of a text file."""
    rows = path.read_text().splitlines()
    save_lines(path, [row for i, row in enumerate(rows) if i != number])


def load_photos(photos, *overrides):
    """Load the fixture `photos` as a dataset."""
    return load("folder", photos, *overrides, results=photos.parent / "results")

"""What the readers say of archives that are missing, damaged or cannot be fetched."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
import urllib.error
from pathlib import Path

import pytest
from archives import WRITERS, composed, cut, grey, lines, load, refusal, save, without_line
from helpers import files_below

pytestmark = pytest.mark.usefixtures("any_checksum")


@pytest.mark.parametrize("name", sorted(WRITERS.keys() - {"folder"}))
def test_missing_archives(name, tmp_path):
    said = refusal(name, tmp_path)
    assert said.startswith(f"dataset={name} needs {tmp_path}/")
    assert "which does not exist. " in said
    fetch = re.search(
        r"etch .* \(\d[\d.]* [MG]B\) from (\S+\.\S+|a copy of .*) and (unpack it in|put it into) (.*) \(data", said
    )
    assert ("Write data.download=true" in said) == ("download" in composed(name).dataset)
    assert ("dataset.mirror=USER/NAME" in said) == ("mirror" in composed(name).dataset)
    assert not files_below(tmp_path)
    WRITERS[name](tmp_path)
    assert Path(fetch[3]).is_dir()  # where the readers do find the files


def test_advice_about_damaged_files_and_failed_downloads(tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torchvision.datasets.dtd.download_and_extract_archive", no_network)
    said = refusal("dtd", tmp_path, "data.download=true")
    assert "which does not exist (<urlopen error no route to host>). Run the same command again to fetch it" in said
    (tmp_path / "dtd/dtd/images").mkdir(parents=True)
    said = refusal("dtd", tmp_path)
    assert f"Delete {tmp_path}/dtd/dtd and write data.download=true to fetch it (625 MB), or fetch" in said


DAMAGES = {
    "cars": ["cut stanford_cars/devkit/cars_train_annos.mat", "cut stanford_cars/devkit/cars_meta.mat"],
    "cifar10": ["cut cifar-10-batches-py/data_batch_3", "remove cifar-10-batches-py/test_batch"],
    "cifar100": ["cut cifar-100-python/meta"],
    "cub200": [
        "drop CUB_200_2011/images.txt",
        "drop CUB_200_2011/classes.txt",
        "drop CUB_200_2011/train_test_split.txt",
        "drop-last CUB_200_2011/classes.txt",
        "cut CUB_200_2011/image_class_labels.txt",
        "remove CUB_200_2011/classes.txt",
    ],
    "domainnet": ["remove domainnet/sketch_train.txt"],
    "dtd": ["remove dtd/dtd/labels/val1.txt", "drop dtd/dtd/labels/val1.txt", "drop dtd/dtd/labels/test1.txt"],
    "emnist": ["cut EMNIST/raw/emnist-digits-test-images-idx3-ubyte"],
    "eurosat": ["remove eurosat/2750/Forest", "add eurosat/2750/Airport/1.jpg"],
    "fashion_mnist": ["empty FashionMNIST/raw/train-images-idx3-ubyte"],
    "fer2013": ["empty fer2013/fer2013.csv"],
    "flowers102": ["cut flowers-102/setid.mat"],
    "food101": ["cut food-101/meta/train.json", "remove food-101/images"],
    "gtsrb": ["remove gtsrb/GTSRB/Training/00007", "remove gtsrb/GT-final_test.csv"],
    "imagenet": ["remove imagenet/val/n01443537", "cut imagenet/meta.bin"],
    "imagenet_r": ["remove imagenet-r/README.txt"],
    "kmnist": ["cut KMNIST/raw/train-labels-idx1-ubyte"],
    "mnist": [
        "cut MNIST/raw/train-images-idx3-ubyte",
        "empty MNIST/raw/t10k-labels-idx1-ubyte",
        "swap MNIST/raw/t10k-labels-idx1-ubyte MNIST/raw/train-labels-idx1-ubyte",
    ],
    "oxford_pets": ["drop oxford-iiit-pet/annotations/trainval.txt", "drop oxford-iiit-pet/annotations/test.txt"],
    "pcam": [
        "cut pcam/camelyonpatch_level_2_split_train_x.h5",
        "cut pcam/camelyonpatch_level_2_split_test_y.h5",
        "remove pcam/camelyonpatch_level_2_split_test_x.h5",
    ],
    "rendered_sst2": ["remove rendered-sst2/valid/positive"],
    "resisc45": ["add NWPU-RESISC45/volcano/1.jpg", "remove NWPU-RESISC45/airplane/*"],
    "stl10": ["cut stl10_binary/test_X.bin", "remove stl10_binary/class_names.txt"],
    "sun397": ["remove SUN397/ClassName.txt"],
    "svhn": ["cut train_32x32.mat"],
    "tiny_imagenet": ["cut tiny-imagenet-200/words.txt"],
}


def damage(root, how):
    kind, *paths = how.split()
    path = root / paths[0]
    if kind == "cut":
        cut(path)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "drop":
        without_line(path, 2)
    elif kind == "drop-last":
        without_line(path, len(path.read_text().splitlines()) - 1)
    elif kind == "add":
        save(path, 0, 30)
    elif kind == "swap":
        other = root / paths[1]
        content = path.read_bytes()
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
    else:
        for target in root.glob(paths[0]):
            shutil.rmtree(target) if target.is_dir() else target.unlink()


@pytest.mark.parametrize(("name", "how"), [(name, how) for name, hows in DAMAGES.items() for how in hows])
def test_damaged_archives(name, how, tmp_path):
    WRITERS[name](tmp_path)
    damage(tmp_path, how)
    said = refusal(name, tmp_path)
    assert said.startswith(f"dataset={name} needs {tmp_path}/")
    assert "which is unreadable or incomplete (" in said
    assert re.search(r"etch .* \(\d[\d.]* [MG]B\) from ", said)


def test_the_missing_one_of_two_files_is_named(tmp_path):
    WRITERS["svhn"](tmp_path)
    (tmp_path / "test_32x32.mat").unlink()
    assert refusal("svhn", tmp_path).startswith(f"dataset=svhn needs {tmp_path}/test_32x32.mat, which does not exist")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("cars", "stanford_cars/cars_test/00002.jpg"),
        ("cub200", "CUB_200_2011/images/001.Black_footed_Albatross/Black_footed_Albatross_0000_0.jpg"),
        ("domainnet", "domainnet/clipart/zigzag/clipart_344_000008.jpg"),
        ("flowers102", "flowers-102/jpg/image_00300.jpg"),
        ("gtsrb", "gtsrb/GTSRB/Final_Test/Images/00000.ppm"),
        ("sun397", "SUN397/a/abbey/sun_te000.jpg"),
        ("tiny_imagenet", "tiny-imagenet-200/val/images/val_0.JPEG"),
    ],
)
def test_a_listed_image_that_is_missing_is_named(name, path, tmp_path):
    WRITERS[name](tmp_path)
    (tmp_path / path).unlink()
    assert refusal(name, tmp_path).startswith(f"{tmp_path / path} is listed by its dataset but does not exist; ")


def test_a_list_that_ends_within_a_line_is_refused(tmp_path):
    WRITERS["domainnet"](tmp_path)
    cut(tmp_path / "domainnet/real_test.txt")
    assert refusal("domainnet", tmp_path).endswith(
        "is listed by its dataset but does not exist; unpack the archive again"
    )


def test_lists_of_food101_with_other_classes_are_refused(tmp_path):
    WRITERS["food101"](tmp_path)
    path = tmp_path / "food-101/meta/test.json"
    listed = json.loads(path.read_text())
    del listed["baklava"]
    path.write_text(json.dumps(listed))
    assert "which is unreadable or incomplete (the lists of train and test must" in refusal("food101", tmp_path)


def test_lists_of_sun397(tmp_path):
    WRITERS["sun397"](tmp_path)
    testing = tmp_path / "SUN397/Testing_01.txt"
    lines(testing, ["/a/abbey/sun_te000.jpg", "/a/atoll/sun_x.jpg"])
    assert f"{testing} must list images of the classes of ClassName.txt; it has a/atoll" in refusal("sun397", tmp_path)
    testing.unlink()
    assert f"dataset=sun397 needs the official list {testing}, which does not exist" in refusal("sun397", tmp_path)


def test_checksums_are_compared(archives, monkeypatch):
    root = archives("cifar10")
    monkeypatch.undo()
    assert "is unreadable or incomplete (Dataset not found or corrupted" in refusal("cifar10", root)


def test_faces_without_test_labels_are_refused(tmp_path):
    (tmp_path / "fer2013").mkdir()
    pixels = " ".join(map(str, grey(0, 0, 48).flatten()))
    for part, header, row in (("train", ["emotion", "pixels"], [0, pixels]), ("test", ["pixels"], [pixels])):
        with (tmp_path / f"fer2013/{part}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([header, row])
    said = refusal("fer2013", tmp_path)
    assert said.startswith(f"dataset=fer2013 needs {tmp_path}/fer2013, which is unreadable or incomplete (")
    assert "labels" in said


def test_pcam_without_h5py_says_what_to_install(archives, monkeypatch):
    root = archives("pcam")
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert refusal("pcam", root) == "dataset=pcam needs the package h5py; type: pip install h5py"


@pytest.mark.parametrize(
    ("name", "reason"),
    [("cifar10", "no route to host"), ("mnist", "Error downloading"), ("tiny_imagenet", "no route to host")],
)
def test_a_failed_download_says_why(name, reason, tmp_path, monkeypatch):
    def refused(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refused)
    assert reason in refusal(name, tmp_path, "data.download=true")


def test_home_in_a_data_root(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    WRITERS["eurosat"](tmp_path / "data")
    plain = load("eurosat", tmp_path / "data", results=tmp_path / "runs")
    assert load("eurosat", "~/data", results=tmp_path / "runs").notes == plain.notes

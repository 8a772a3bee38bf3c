"""Errors for archives that are missing, damaged or cannot be downloaded."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
import urllib.error
from pathlib import Path

import pytest
from archives import WRITERS, dataset_group, error_line, grey, load, remove_line, save, save_lines, truncate
from helpers import files_below

pytestmark = pytest.mark.usefixtures("any_checksum")


# All errors about an archive have this form; the groups vary.
MESSAGE = re.compile(
    r"dataset=(?P<dataset>\w+) needs (?P<path>\S+), which "
    r"(?P<problem>does not exist|(?:does not exist|is unreadable or incomplete) \(.+?\))\. "
    r"(?:(?P<download>(?:Delete \S+ and w|W)rite data\.download=true|(?:Delete \S+ and r|R)un the same command again)"
    r" to fetch it \((?P<size>[\d.]+ [MG]B)\), or f|F)etch (?P<files>.+) \([\d.]+ [MG]B\) from (?P<website>.+) and "
    r"(?:unpack it in|put it into) (?P<folder>\S+) \(data\.root=\S+\)"
    r"(?P<mirror>; or write dataset\.mirror=USER/NAME to use a copy on the Hugging Face Hub)?"
)


@pytest.mark.parametrize("name", sorted(WRITERS.keys() - {"folder", "table"}))  # of the user's own
def test_error_for_a_missing_archive_says_what_to_fetch_and_where_to_put_it(name, tmp_path):
    parts = MESSAGE.fullmatch(error_line(name, tmp_path))
    assert parts["dataset"] == name
    assert parts["problem"] == "does not exist"
    assert parts["download"] == ("Write data.download=true" if "download" in dataset_group(name) else None)
    assert (parts["mirror"] is not None) == ("mirror" in dataset_group(name))
    assert not files_below(tmp_path)
    WRITERS[name](tmp_path)
    assert Path(parts["path"]).exists()
    assert Path(parts["folder"]).is_dir()


def test_error_for_a_failed_download_or_a_damaged_archive_says_what_to_type(tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torchvision.datasets.dtd.download_and_extract_archive", no_network)
    parts = MESSAGE.fullmatch(error_line("dtd", tmp_path, "data.download=true"))
    assert parts["problem"] == "does not exist (<urlopen error no route to host>)"
    assert (parts["download"], parts["size"]) == ("Run the same command again", "625 MB")
    (tmp_path / "dtd/dtd/images").mkdir(parents=True)
    parts = MESSAGE.fullmatch(error_line("dtd", tmp_path))
    assert parts["problem"].startswith("is unreadable or incomplete (")
    assert parts["download"] == f"Delete {tmp_path}/dtd/dtd and write data.download=true"


DAMAGES = {
    "cars": ["truncate stanford_cars/devkit/cars_train_annos.mat", "truncate stanford_cars/devkit/cars_meta.mat"],
    "cifar10": ["truncate cifar-10-batches-py/data_batch_3", "remove cifar-10-batches-py/test_batch"],
    "cifar100": ["truncate cifar-100-python/meta"],
    "cub200": [
        "remove-line CUB_200_2011/images.txt",
        "remove-line CUB_200_2011/classes.txt",
        "remove-line CUB_200_2011/train_test_split.txt",
        "remove-last-line CUB_200_2011/classes.txt",
        "truncate CUB_200_2011/image_class_labels.txt",
        "remove CUB_200_2011/classes.txt",
    ],
    "domainnet": ["remove domainnet/sketch_train.txt"],
    "dtd": [
        "remove dtd/dtd/labels/val1.txt",
        "remove-line dtd/dtd/labels/val1.txt",
        "remove-line dtd/dtd/labels/test1.txt",
    ],
    "emnist": ["truncate EMNIST/raw/emnist-digits-test-images-idx3-ubyte"],
    "eurosat": ["remove eurosat/2750/Forest", "add eurosat/2750/Airport/1.jpg"],
    "fashion_mnist": ["empty FashionMNIST/raw/train-images-idx3-ubyte"],
    "fer2013": ["empty fer2013/fer2013.csv"],
    "flowers102": ["truncate flowers-102/setid.mat"],
    "food101": ["truncate food-101/meta/train.json", "remove food-101/images"],
    "gtsrb": ["remove gtsrb/GTSRB/Training/00007", "remove gtsrb/GT-final_test.csv"],
    "imagenet": ["remove imagenet/val/n01443537", "truncate imagenet/meta.bin"],
    "imagenet_r": ["remove imagenet-r/README.txt"],
    "kmnist": ["truncate KMNIST/raw/train-labels-idx1-ubyte"],
    "mnist": [
        "truncate MNIST/raw/train-images-idx3-ubyte",
        "empty MNIST/raw/t10k-labels-idx1-ubyte",
        "swap MNIST/raw/t10k-labels-idx1-ubyte MNIST/raw/train-labels-idx1-ubyte",
    ],
    "oxford_pets": [
        "remove-line oxford-iiit-pet/annotations/trainval.txt",
        "remove-line oxford-iiit-pet/annotations/test.txt",
    ],
    "pcam": [
        "truncate pcam/camelyonpatch_level_2_split_train_x.h5",
        "truncate pcam/camelyonpatch_level_2_split_test_y.h5",
        "remove pcam/camelyonpatch_level_2_split_test_x.h5",
    ],
    "rendered_sst2": ["remove rendered-sst2/valid/positive"],
    "resisc45": ["add NWPU-RESISC45/volcano/1.jpg", "remove NWPU-RESISC45/airplane/*"],
    "stl10": ["truncate stl10_binary/test_X.bin", "remove stl10_binary/class_names.txt"],
    "sun397": ["remove SUN397/ClassName.txt"],
    "svhn": ["truncate train_32x32.mat"],
    "tiny_imagenet": ["truncate tiny-imagenet-200/words.txt"],
}


def damage(root, how):
    """Apply one of the `DAMAGES`: what to do, and with which files."""
    kind, *paths = how.split()
    path = root / paths[0]
    if kind == "truncate":
        truncate(path)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "remove-line":
        remove_line(path, 2)
    elif kind == "remove-last-line":
        remove_line(path, len(path.read_text().splitlines()) - 1)
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
def test_error_for_a_damaged_archive(name, how, tmp_path):
    WRITERS[name](tmp_path)
    damage(tmp_path, how)
    parts = MESSAGE.fullmatch(error_line(name, tmp_path))
    assert parts["dataset"] == name
    assert parts["problem"].startswith("is unreadable or incomplete (")


def test_error_names_the_missing_one_of_two_files(tmp_path):
    WRITERS["svhn"](tmp_path)
    (tmp_path / "test_32x32.mat").unlink()
    parts = MESSAGE.fullmatch(error_line("svhn", tmp_path))
    assert (parts["path"], parts["problem"]) == (f"{tmp_path}/test_32x32.mat", "does not exist")


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
def test_error_names_a_missing_image(name, path, tmp_path):
    WRITERS[name](tmp_path)
    (tmp_path / path).unlink()
    missing = f"{tmp_path / path} is listed by its dataset but does not exist; unpack the archive again"
    assert error_line(name, tmp_path) == missing


def test_error_for_a_list_that_ends_within_a_line(tmp_path):
    WRITERS["domainnet"](tmp_path)
    path = tmp_path / "domainnet/real_test.txt"
    truncate(path)
    last = path.read_text().splitlines()[-1]
    missing = f"{tmp_path}/domainnet/{last} is listed by its dataset but does not exist; unpack the archive again"
    assert error_line("domainnet", tmp_path) == missing


def test_error_for_lists_of_food101_with_different_classes(tmp_path):
    WRITERS["food101"](tmp_path)
    path = tmp_path / "food-101/meta/test.json"
    listed = json.loads(path.read_text())
    del listed["baklava"]
    path.write_text(json.dumps(listed))
    reason = "is unreadable or incomplete (the lists of train and test must have the same classes)"
    assert MESSAGE.fullmatch(error_line("food101", tmp_path))["problem"] == reason


def test_errors_for_missing_and_wrong_lists_of_sun397(tmp_path):
    WRITERS["sun397"](tmp_path)
    testing = tmp_path / "SUN397/Testing_01.txt"
    save_lines(testing, ["/a/abbey/sun_te000.jpg", "/a/atoll/sun_x.jpg"])
    wrong = f"{testing} must list images of the classes of ClassName.txt; it has a/atoll/sun_x.jpg"
    assert error_line("sun397", tmp_path) == wrong
    testing.unlink()
    assert error_line("sun397", tmp_path) == (
        f"dataset=sun397 needs the official list {testing}, which does not exist. Fetch Partitions.zip (2 MB) from "
        f"vision.princeton.edu/projects/2010/SUN and unpack it in {tmp_path}/SUN397"
    )


def test_error_for_a_wrong_checksum(archives, monkeypatch):
    root = archives("cifar10")
    monkeypatch.undo()
    assert "is unreadable or incomplete (Dataset not found or corrupted" in error_line("cifar10", root)


def test_error_for_fer2013_without_test_labels(tmp_path):
    (tmp_path / "fer2013").mkdir()
    pixels = " ".join(map(str, grey(0, 0, 48).flatten()))
    for part, header, row in (("train", ["emotion", "pixels"], [0, pixels]), ("test", ["pixels"], [pixels])):
        with (tmp_path / f"fer2013/{part}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([header, row])
    reason = "is unreadable or incomplete (test.csv has no labels; use fer2013.csv)"
    assert MESSAGE.fullmatch(error_line("fer2013", tmp_path))["problem"] == reason


def test_error_for_pcam_without_h5py_says_what_to_install(archives, monkeypatch):
    root = archives("pcam")
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert error_line("pcam", root) == "dataset=pcam needs the package h5py; type: pip install h5py"


@pytest.mark.parametrize(
    ("name", "reason"),
    [("cifar10", "no route to host"), ("mnist", "Error downloading"), ("tiny_imagenet", "no route to host")],
)
def test_error_for_a_failed_download_has_the_reason(name, reason, tmp_path, monkeypatch):
    def refused(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refused)
    assert reason in MESSAGE.fullmatch(error_line(name, tmp_path, "data.download=true"))["problem"]


def test_tilde_in_data_root_is_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    WRITERS["eurosat"](tmp_path / "data")
    plain = load("eurosat", tmp_path / "data", results=tmp_path / "runs")
    assert load("eurosat", "~/data", results=tmp_path / "runs").notes == plain.notes

"""The readers of archives: labels, names and splits, and what they say of files that are missing or damaged."""

from __future__ import annotations

import csv
import hashlib
import json
import pickle
import re
import shutil
import sys
import urllib.error
import warnings
from functools import cache
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from archives import (
    HELD_OUT,
    WRITERS,
    accept_checksums,
    code,
    grey,
    idx,
    lines,
    picture,
    save,
    some,
    style,
    wnid,
    write_folder,
)
from helpers import ROOT, config, files_below
from omegaconf import OmegaConf
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from mergestream.compose import load_source, load_stream
from mergestream.data import soundness
from mergestream.data.images import ImageFiles, Pictures, files_of
from mergestream.data.manifest import divide
from mergestream.data.protocol import class_names, domains, templates
from mergestream.data.source import Source, Split
from mergestream.data.sources.digits import digits
from mergestream.data.sources.suite import suite
from mergestream.errors import UserError
from mergestream.keys import key
from mergestream.models import tiny

# name: (classes, training images, test images, {class id: its name, ...}, a prompt of the first of these)
FACTS = {
    "cars": (196, 196, 196, {1: "Acura RL Sedan 2012"}, "i love my Acura RL Sedan 2012!"),
    "cifar10": (10, 50, 10, {9: "truck", 0: "airplane"}, "a blurry photo of a truck."),
    "cifar100": (100, 100, 100, {1: "aquarium fish", 0: "apple"}, "a photo of the big aquarium fish."),
    "cub200": (200, 200, 200, {0: "Black footed Albatross"}, "a bad photo of a Black footed Albatross."),
    "domainnet": (345, 350, 350, {3: "aircraft carrier", 344: "zigzag"}, "a sketch of a aircraft carrier."),
    "dtd": (47, 94, 47, {3: "polka-dotted", 0: "banded"}, "a photo of a polka-dotted texture."),
    "emnist": (10, 20, 10, {7: "7"}, 'a photo of the digit character: "7".'),
    "eurosat": (10, 90, 10, {9: "lake or sea", 1: "forest"}, "a centered satellite photo of lake or sea."),
    "fashion_mnist": (10, 20, 10, {9: "Ankle boot", 0: "T-shirt/top"}, "a photo of a Ankle boot."),
    "fer2013": (7, 7, 14, {1: "disgusted", 6: "neutral"}, "they look disgusted."),
    "flowers102": (102, 204, 102, {0: "pink primrose"}, "a photo of a pink primrose, a type of flower."),
    "folder": (3, 6, 3, {1: "great white shark", 2: "hen"}, "a photo of a great white shark."),
    "food101": (101, 101, 101, {1: "baby back ribs"}, "a photo of baby back ribs, a type of food."),
    "gtsrb": (43, 43, 43, {14: "stop"}, 'a zoomed in photo of a "stop" traffic sign.'),
    "imagenet": (20, 20, 20, {2: "great white shark", 0: "tench"}, "a bad photo of a great white shark."),
    "imagenet_r": (200, 400, 200, {0: "African chameleon", 199: "zebra"}, "art of a African chameleon."),
    "kmnist": (10, 20, 10, {9: "wo", 0: "o"}, "a photo of the character wo."),
    "mnist": (10, 20, 10, {0: "0", 9: "9"}, 'a photo of the number: "0".'),
    "oxford_pets": (37, 37, 37, {1: "American Bulldog"}, "a photo of a American Bulldog, a type of pet."),
    "pcam": (2, 4, 2, {0: "lymph node"}, "this is a photo of lymph node."),
    "rendered_sst2": (2, 4, 2, {1: "positive", 0: "negative"}, "a positive review of a movie."),
    "resisc45": (45, 180, 45, {2: "baseball diamond", 44: "wetland"}, "aerial view of the baseball diamond."),
    "stl10": (10, 10, 10, {2: "car", 7: "monkey"}, "a photo of the car."),
    "sun397": (397, 397, 397, {2: "athletic field outdoor", 0: "abbey"}, "a photo of a athletic field outdoor."),
    "svhn": (10, 10, 10, {0: "0", 9: "9"}, 'a photo of the number: "0".'),
    "tiny_imagenet": (200, 200, 200, {1: "European fire salamander"}, "a toy European fire salamander."),
}
DIVIDED = {"eurosat": 10, "imagenet_r": 3, "resisc45": 5}  # by a manifest: images of each class


@pytest.fixture(autouse=True)
def _checksums(monkeypatch):
    accept_checksums(monkeypatch)


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """A root where every archive is written once, when it is asked for; no test changes them."""
    root, written = tmp_path_factory.mktemp("archives"), set()

    def root_with(*names):
        for name in names:
            if name not in written:
                WRITERS[name](root)
                written.add(name)
        return root

    return root_with


@cache
def composed(name):
    """Composing takes longer than reading does."""
    return config("train", f"dataset={name}", "model=tiny")


def load(name, root, *overrides, results=None):
    """The source; what is remembered lies in `results`."""
    places = [f"data.root={root}", f"root={results or root / 'results'}"]
    return load_source(OmegaConf.merge(composed(name), OmegaConf.from_dotlist([*places, *overrides])))


def codes(split):
    return [code(split.images[i]) for i in range(len(split))]


def refusal(name, root, *overrides):
    """The one line that a dataset is refused with."""
    with pytest.raises(UserError) as caught:
        load(name, root, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def cut(path, part=0.5):
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])


def without_line(path, number):
    rows = path.read_text().splitlines()
    lines(path, [row for i, row in enumerate(rows) if i != number])


def test_no_dataset_is_forgotten():
    options = {path.stem for path in (ROOT / "configs/dataset").glob("*.yaml")}
    suites = {name for name in options if name.endswith("_datasets")}
    assert set(WRITERS) == set(FACTS) == options - suites - {"digits", "glyphs"}


@pytest.mark.parametrize("name", FACTS)
def test_datasets(name, archives):
    source = load(name, archives(name))
    classes, train, test, names, prompt = FACTS[name]
    assert (source.num_classes, len(source.train), len(source.test)) == (classes, train, test)
    assert {label: source.class_names[label] for label in names} == names
    assert prompt in source.prompts[next(iter(names))]
    assert len(source.prompts) == classes
    for class_name, said in zip(source.class_names, source.prompts, strict=True):
        assert said
        assert all(class_name in line for line in said)
    seen = []
    for split in (source.train, source.test):
        drawn = codes(split)
        assert isinstance(split.images[0], Image.Image)
        assert [label for label, _ in drawn] == split.labels.tolist()
        assert split.labels.dtype == np.int64
        seen += drawn
        if name not in DIVIDED:
            assert {number >= HELD_OUT for _, number in drawn} == {split is source.test}
    assert len(set(seen)) == len(seen)
    assert {label for label, _ in seen[:train]} == set(range(classes))
    copy = pickle.loads(pickle.dumps(source.test.images))  # as the processes of a loader get it
    assert code(copy[0]) == seen[train]


@pytest.mark.parametrize("name", ["dtd", "sun397"])
def test_another_partition(name, archives):
    source = load(name, archives(name), "dataset.partition=2")
    assert {number for _, number in codes(source.test)} == {0}
    assert HELD_OUT in {number for _, number in codes(source.train)}
    assert "11" in refusal(name, archives(name), "dataset.partition=11")


def test_emnist_is_upright(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (10, 28, 28), dtype=np.uint8)
    for part in ("train", "test"):
        stem = f"EMNIST/raw/emnist-digits-{part}"
        idx(tmp_path / f"{stem}-images-idx3-ubyte", images.transpose(0, 2, 1))
        idx(tmp_path / f"{stem}-labels-idx1-ubyte", np.arange(10, dtype=np.uint8))
    source = load("emnist", tmp_path)
    for split in (source.train, source.test):
        assert all(np.array_equal(split.images[i], images[i]) for i in range(10))


def test_imagenet_r_has_ids_by_name_and_styles_as_domains(archives):
    source = load("imagenet_r", archives("imagenet_r"))
    assert list(source.class_names) == sorted(source.class_names)
    assert source.domain_names == domains("imagenet_r")
    assert source.domain_orders["paper"][:2] == [9, 14]  # tattoo, sketch
    assert source.class_orders["paper"][:3] == [186, 157, 67]
    for split in (source.train, source.test):
        assert set(split.domains) == set(range(15))
        assert [style(*drawn) for drawn in codes(split)] == [source.domain_names[d] for d in split.domains]
        for position, path in files_of(split.images):
            assert Path(path).parent.name == wnid(split.labels[position])


def test_imagenet_r_refuses_what_it_does_not_know(tmp_path):
    WRITERS["imagenet_r"](tmp_path)
    folder = tmp_path / "imagenet-r"
    readme = (folder / "README.txt").read_text()
    lines(folder / "README.txt", [line for line in readme.splitlines() if wnid(7) not in line])
    assert f"{folder / wnid(7)} must be a class that {folder}/README.txt names" in refusal("imagenet_r", tmp_path)
    (folder / "README.txt").write_text(readme)
    image = folder / wnid(3) / "woodcut_3.jpg"
    save(image, 3, 5)
    assert re.search(rf"a style of deviantart, .*, sketch; got {image}$", refusal("imagenet_r", tmp_path))


def test_a_class_that_a_domain_of_domainnet_lacks_shifts_nothing(archives):
    source = load("domainnet", archives("domainnet"))
    assert source.domain_names == ["clipart", "infograph", "painting", "quickdraw", "real", "sketch"]
    assert source.domain_orders["paper"] == [0, 5, 4, 1, 3, 2]
    assert sorted(source.class_orders["paper"]) == list(range(345))
    for split, first in ((source.train, 0), (source.test, HELD_OUT)):
        assert [number - first for _, number in codes(split)] == split.domains.tolist()
        for domain in range(6):
            assert split.labels[split.domains == domain].tolist() == sorted({*range(domain, 345, 6), 344})


def test_svhn_has_the_digit_zero_as_class_zero(archives):
    source = load("svhn", archives("svhn"))
    assert source.test.labels.tolist() == list(range(10))
    assert code(source.test.images[0]) == (0, HELD_OUT)


def test_faces_of_both_competitions_are_the_test(archives):
    numbers = [number for _, number in codes(load("fer2013", archives("fer2013")).test)]
    assert numbers == [HELD_OUT] * 7 + [HELD_OUT + 1] * 7


# Manifests


def test_a_manifest_divides_every_class_by_names_alone():
    names = [f"{c}/{i}.jpg" for c, n in enumerate((10, 5, 3, 1)) for i in range(n)]
    labels = [int(name[0]) for name in names]
    train, test, record = divide(names, labels, test_fraction=0.2, seed=4)
    assert sorted([*train, *test]) == list(range(19))
    assert np.bincount(np.array(labels)[test], minlength=4).tolist() == [2, 1, 1, 0]  # of 2, 1, 0.6 and 0.2
    of_first = sorted(range(10), key=lambda i: key(4, "manifest", names[i]))
    assert {i for i in test if labels[i] == 0} == set(of_first[:2])
    written = sorted(f"{'test' if i in test else 'train'} {name}\n" for i, name in enumerate(names))
    assert record == {
        "split_seed": 4,
        "test_fraction": 0.2,
        "train": 15,
        "test": 4,
        "manifest_sha256": hashlib.sha256("".join(written).encode()).hexdigest(),
    }
    order = np.random.default_rng(0).permutation(19)
    shuffled = divide([names[i] for i in order], [labels[i] for i in order], test_fraction=0.2, seed=4)
    assert {names[order[i]] for i in shuffled[1]} == {names[i] for i in test}
    assert shuffled[2] == record


@pytest.mark.parametrize("value", [0, 1, -0.5, 1.5, True, "half", None, float("nan")])
def test_a_manifest_refuses_other_fractions(value):
    with pytest.raises(UserError, match=f"dataset.test_fraction must be .* 0 and 1; got dataset.test_fraction={value}"):
        divide(["a"], [0], test_fraction=value, seed=0)


@pytest.mark.parametrize("value", [0.5, True, "x", None])
def test_a_manifest_refuses_other_seeds(value):
    with pytest.raises(UserError, match=f"dataset.split_seed must be a whole number; got dataset.split_seed={value}"):
        divide(["a"], [0], test_fraction=0.5, seed=value)


@pytest.mark.parametrize("name", DIVIDED)
def test_datasets_without_a_split_are_divided(name, archives, tmp_path):
    root, count = archives(name), DIVIDED[name]
    source, again, other = load(name, root), load(name, root), load(name, root, "dataset.split_seed=1")
    assert np.bincount(source.test.labels).tolist() == [1] * source.num_classes  # 1 of 10, of 5 and of 3
    assert np.bincount(source.train.labels).tolist() == [count - 1] * source.num_classes
    assert len({*codes(source.train), *codes(source.test)}) == count * source.num_classes
    assert source.notes == again.notes != other.notes
    assert source.notes["manifest_sha256"] != other.notes["manifest_sha256"]
    assert codes(source.test) == codes(again.test) != codes(other.test)
    half = load(name, root, "dataset.test_fraction=0.6")
    assert len(half.test) == round(0.6 * count) * source.num_classes
    assert "dataset.test_fraction=2" in refusal(name, root, "dataset.test_fraction=2")
    WRITERS[name](tmp_path)  # the same archive elsewhere
    assert load(name, tmp_path).notes == source.notes


def test_the_manifest_is_described_with_the_stream(archives):
    values = ["dataset=eurosat", f"data.root={archives('eurosat')}", f"root={archives()}/results", "model=tiny"]
    description = load_stream(config("train", *values), tiny.tiny().transforms).describe()
    assert description["notes"]["test"] == 10
    assert len(description["notes"]["manifest_sha256"]) == 64


# Missing and damaged archives


@pytest.mark.parametrize("name", [name for name in FACTS if name != "folder"])
def test_missing_archives(name, tmp_path):
    said = refusal(name, tmp_path)
    assert said.startswith(f"dataset={name} needs {tmp_path}/")
    assert "which is not there. " in said
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
    assert "which is not there (<urlopen error no route to host>). Type the same command again to fetch it" in said
    (tmp_path / "dtd/dtd/images").mkdir(parents=True)
    said = refusal("dtd", tmp_path)
    assert f"Delete {tmp_path}/dtd/dtd and write data.download=true to fetch it (625 MB), or fetch" in said


@pytest.mark.parametrize("name", ["dtd", "sun397"])
def test_partitions_are_ten(name, tmp_path):
    said = refusal(name, tmp_path, "dataset.partition=11")
    assert said == "dataset.partition must be a whole number from 1 to 10; got dataset.partition=11"


def test_options_of_one_dataset_of_a_suite(tmp_path):
    WRITERS["eurosat"](tmp_path)
    options = {"eurosat": {"test_fraction": 0.5}}
    half, plain = (
        suite(str(tmp_path), ["eurosat", "digits"], options=options),
        suite(str(tmp_path), ["eurosat", "digits"]),
    )
    assert half.notes["eurosat"]["test_fraction"] == 0.5
    assert len(half.test) > len(plain.test)
    with pytest.raises(UserError, match=r"write \+dataset.options.cars.mirror=USER/NAME for a copy"):
        suite(str(tmp_path), ["eurosat", "cars"])
    with pytest.raises(UserError, match="dataset.options must be of digits; got dataset.options.cars"):
        suite(str(tmp_path), ["digits"], options={"cars": {"mirror": "a/b"}})


def test_every_class_is_divided():
    train, test, _ = divide(list("abcde"), [0, 0, 1, 2, 2], test_fraction=0.2, seed=0)
    assert sorted(np.array([0, 0, 1, 2, 2])[test]) == [0, 2]
    assert sorted(np.array([0, 0, 1, 2, 2])[train]) == [0, 1, 2]


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
    assert refusal("svhn", tmp_path).startswith(f"dataset=svhn needs {tmp_path}/test_32x32.mat, which is not there")


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
    assert refusal(name, tmp_path).startswith(f"{tmp_path / path} is listed by its dataset but is not there; ")


def test_a_list_that_ends_within_a_line_is_refused(tmp_path):
    WRITERS["domainnet"](tmp_path)
    cut(tmp_path / "domainnet/real_test.txt")
    assert refusal("domainnet", tmp_path).endswith(
        "is listed by its dataset but is not there; unpack the archive again"
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
    assert f"dataset=sun397 needs the official list {testing}, which is not there" in refusal("sun397", tmp_path)


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


# Corrupt images


@pytest.fixture
def photos(tmp_path):
    """Two classes of five JPEGs, undivided."""
    for label, name in enumerate(("cat", "dog")):
        for number in range(5):
            save(tmp_path / "photos" / name / f"{number}.jpg", label, number)
    return tmp_path / "photos"


def load_photos(photos, *overrides):
    return load("folder", photos, *overrides, results=photos.parent / "results")


def forbid_decoding(monkeypatch):
    monkeypatch.setattr(soundness, "fault", lambda path: pytest.fail(f"{path} was decoded again"))


def test_a_corrupt_image_is_an_error(photos):
    cut(photos / "cat/2.jpg")
    with pytest.raises(UserError) as caught:
        load_photos(photos)
    assert str(caught.value).startswith(f"{photos}/cat/2.jpg is no sound image (")
    assert "1 of 10 image files are corrupt" in str(caught.value)
    assert "write data.skip_corrupt=true" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (photos.parent / "results").exists()


def test_corrupt_images_are_left_out_where_asked(photos, capsys, monkeypatch):
    bad = [photos / "cat/2.jpg", photos / "dog/4.jpg"]
    cut(bad[0])
    bad[1].write_text("no image")
    for _ in range(2):
        source = load_photos(photos, "data.skip_corrupt=true")
        assert "left out 2 corrupt image files of 10" in capsys.readouterr().err
        assert source.notes["left_out_as_corrupt"] == sorted(map(str, bad))
        left = [(label, number) for split in (source.train, source.test) for label, number in codes(split)]
        assert sorted(left) == [(c, n) for c in (0, 1) for n in range(5) if (c, n) not in ((0, 2), (1, 4))]
        for split in (source.train, source.test):
            assert [label for label, _ in codes(split)] == split.labels.tolist()
        forbid_decoding(monkeypatch)
    with pytest.raises(UserError, match="2 of 10 image files are corrupt"):  # remembered too
        load_photos(photos)


def test_the_division_does_not_depend_on_what_is_corrupt(photos):
    whole = load_photos(photos)
    cut(photos / "cat/2.jpg")
    left = load_photos(photos, "data.skip_corrupt=true")
    assert set(codes(left.test)) == set(codes(whole.test)) - {(0, 2)}
    assert left.notes["manifest_sha256"] == whole.notes["manifest_sha256"]


def test_sound_images_are_decoded_once(photos, monkeypatch):
    decoded = []
    monkeypatch.setattr(soundness, "fault", lambda path, real=soundness.fault: decoded.append(path) or real(path))
    assert "left_out_as_corrupt" not in load_photos(photos).notes
    assert len(decoded) == 10
    load_photos(photos)
    assert len(decoded) == 10
    cut(photos / "dog/0.jpg")
    with pytest.raises(UserError, match="dog/0.jpg is no sound image"):
        load_photos(photos)
    assert len(decoded) == 20
    save(photos / "dog/0.jpg", 1, 9)
    assert (1, 9) in codes(load_photos(photos).train) + codes(load_photos(photos).test)


def test_many_images_are_announced(photos, capsys, monkeypatch):
    monkeypatch.setattr(soundness, "MANY", 9)
    load_photos(photos)
    assert "decoding 10 image files once" in capsys.readouterr().err


def test_domains_stay_with_the_images_that_are_left(photos, tmp_path):
    paths = [photos / name / f"{number}.jpg" for number in range(5) for name in ("cat", "dog")]
    split = Split(ImageFiles(paths), np.array([0, 1] * 5), np.repeat(np.arange(5), 2))
    memory = Split(Pictures(np.stack([picture(1, 9)])), np.array([1]), np.array([0]))
    cut(paths[3])
    source = Source(["cat", "dog"], [["cat"], ["dog"]], split, memory)
    left = soundness.without_corrupt(source, tmp_path / "memory", skip=True)
    assert codes(left.train) == [(i % 2, i // 2) for i in range(10) if i != 3]
    assert left.train.labels.tolist() == [i % 2 for i in range(10) if i != 3]
    assert left.train.domains.tolist() == [i // 2 for i in range(10) if i != 3]
    assert codes(left.test) == [(1, 9)]


def test_decoding_in_threads_leaves_the_warnings_as_they_were(photos, tmp_path, monkeypatch):
    """The second image is begun while the first is decoded, and done after it."""
    first_begun, second_begun, first_done = Event(), Event(), Event()
    decode, load_pixels = soundness.fault, JpegImageFile.load

    def fault(path):
        assert path.endswith("0.jpg") or first_begun.wait(60)
        reason = decode(path)
        if path.endswith("0.jpg"):
            first_done.set()
        return reason

    def load_in_turn(image):
        first = image.filename.endswith("0.jpg")
        (first_begun if first else second_begun).set()
        assert (second_begun if first else first_done).wait(60)
        return load_pixels(image)

    monkeypatch.setattr(soundness.machine, "cores", lambda: 2)
    monkeypatch.setattr(soundness, "PART", 1)
    monkeypatch.setattr(soundness, "fault", fault)
    monkeypatch.setattr(JpegImageFile, "load", load_in_turn)
    train, test = (Split(ImageFiles([photos / f"cat/{i}.jpg"]), np.zeros(1, dtype=np.int64)) for i in (0, 1))
    before = list(warnings.filters)
    soundness.without_corrupt(Source(["cat"], [["cat"]], train, test), tmp_path / "memory", skip=False)
    assert warnings.filters == before


# Directories of images


def test_a_folder_with_val_instead_of_test(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "test").rename(tmp_path / "val")
    source = load("folder", tmp_path, "dataset.templates=['the {}', '{}!']")
    assert (len(source.train), len(source.test)) == (6, 3)
    assert source.prompts[0] == ["the cat", "cat!"]
    assert source.notes == {}


def test_a_folder_without_a_split_is_divided(photos):
    source = load_photos(photos)
    assert source.class_names == ["cat", "dog"]
    assert np.bincount(source.train.labels).tolist() == [4, 4]
    assert np.bincount(source.test.labels).tolist() == [1, 1]
    for split in (source.train, source.test):
        assert [label for label, _ in codes(split)] == split.labels.tolist()
    assert len({*codes(source.train), *codes(source.test)}) == 10
    other = load_photos(photos, "dataset.split_seed=1")
    assert source.notes["manifest_sha256"] != other.notes["manifest_sha256"]
    photos.rename(photos.parent / "moved")
    assert load_photos(photos.parent / "moved").notes == source.notes
    with pytest.raises(UserError, match="dataset.test_fraction=1"):
        load_photos(photos.parent / "moved", "dataset.test_fraction=1")


def test_a_test_folder_that_lacks_a_class_shifts_nothing(tmp_path):
    write_folder(tmp_path)
    shutil.rmtree(tmp_path / "test/cat")
    source = load("folder", tmp_path)
    assert source.test.labels.tolist() == [1, 2] == [label for label, _ in codes(source.test)]


def test_folders_that_are_refused(tmp_path):
    write_folder(tmp_path)
    save(tmp_path / "test/owl/0.png", 3, 0)
    assert f"{tmp_path}/test/owl must be a class of {tmp_path}/train too" in refusal("folder", tmp_path)
    shutil.rmtree(tmp_path / "test/owl")
    (tmp_path / "train/dog").mkdir()
    assert "dataset.path must hold images in every class: " in refusal("folder", tmp_path)
    assert "dog" in refusal("folder", tmp_path)
    shutil.rmtree(tmp_path / "train/dog")
    assert len(load("folder", tmp_path).train) == 6
    for given in ("['a photo']", "[]", "['{}', 'a photo']"):
        assert "dataset.templates must each have a {}" in refusal("folder", tmp_path, f"dataset.templates={given}")
    path = tmp_path / "train/cat/0.png"
    assert f"got dataset.path={path}" in refusal("folder", tmp_path, f"dataset.path={path}")
    assert "dataset.path must be a folder" in refusal("folder", tmp_path / "nowhere")
    assert "dataset.path must be a folder" in refusal("folder", tmp_path, "dataset.path=null")
    assert "dataset.path must hold images" in refusal("folder", tmp_path / "train/cat")


# Suites


def test_a_suite_joins_datasets_and_keeps_their_prompts(archives):
    root = archives("mnist", "svhn", "cars", "eurosat")
    names = ["mnist", "eurosat", "cars", "svhn"]
    parts = {name: load(name, root) for name in names}
    values = [f"dataset.datasets=[{','.join(names)}]", "dataset.domains=4", "tasks=4"]
    source = load("eight_datasets", root, *values)
    assert source.num_classes == 10 + 10 + 196 + 10
    assert source.domain_names == names
    assert source.class_names == [name for part in parts.values() for name in part.class_names]
    assert source.prompts[0] == ['a photo of the number: "0".']
    assert source.prompts[20][3] == "i love my AM General Hummer SUV 2000!"
    assert len(source.prompts) == 226
    assert source.notes == {"eurosat": parts["eurosat"].notes}
    starts = dict(zip(names, (0, 10, 20, 216), strict=True))
    for which in ("train", "test"):
        joined = getattr(source, which)
        drawn = codes(joined)
        for domain, name in enumerate(names):
            split, (at,) = getattr(parts[name], which), np.nonzero(joined.domains == domain)
            assert [drawn[i] for i in at] == codes(split)
            assert (joined.labels[at] - starts[name]).tolist() == split.labels.tolist()
            assert at.tolist() == list(range(at[0], at[0] + len(split)))
    assert len(joined) == 10 + 10 + 196 + 10


def test_a_suite_takes_functions_by_their_path(archives):
    root = archives("mnist")
    source = suite(str(root), ["mnist", "mergestream.data.sources.digits.digits"])
    assert source.domain_names == ["mnist", "mergestream.data.sources.digits.digits"]
    assert source.num_classes == 20
    assert source.prompts[10:] == digits().prompts


def test_a_suite_in_which_an_image_is_corrupt(tmp_path, capsys):
    for name in ("eurosat", "mnist", "gtsrb"):
        WRITERS[name](tmp_path)
    bad = tmp_path / "gtsrb/GTSRB/Training/00007/00000_00000.ppm"
    cut(bad)
    values = ["dataset.datasets=[mnist,eurosat,gtsrb]", "dataset.domains=3"]
    assert refusal("eight_datasets", tmp_path, *values).startswith(f"{bad} is no sound image (")
    source = load("eight_datasets", tmp_path, *values, "data.skip_corrupt=true")
    assert "left out 1 corrupt image files of 186" in capsys.readouterr().err  # 100 + 86; those of MNIST are no files
    assert len(source.train) == 20 + 90 + 42
    starts = [0, 10, 20]
    for split in (source.train, source.test):
        assert [c + starts[d] for (c, _), d in zip(codes(split), split.domains, strict=True)] == split.labels.tolist()
    assert source.notes["left_out_as_corrupt"] == [str(bad)]
    assert source.notes["eurosat"]["test"] == 10


@pytest.mark.parametrize(
    "given",
    ["nothing", "images", "archive.official", "5", "mergestream.data.sources.glyphs.FONTS", "''", "os.system"],
)
def test_a_suite_refuses_what_is_no_dataset(given, tmp_path):
    said = refusal("eight_datasets", tmp_path, f"dataset.datasets=[digits,{given}]")
    assert said.startswith("dataset.datasets must be names of the dataset group, or package.module.function; got ")
    assert said.split("; got ")[1].split(":")[0] == given.strip("'")


def test_a_suite_refuses_duplicates_and_what_needs_more_than_a_root(tmp_path):
    for given in ("[digits,glyphs,digits]", "[]"):
        said = refusal("eight_datasets", tmp_path, f"dataset.datasets={given}")
        assert "dataset.datasets must be different datasets, at least one; got [" in said
    assert "folder" in refusal("eight_datasets", tmp_path, "dataset.datasets=[digits,folder]")
    assert "dataset=mnist needs " in refusal("eight_datasets", tmp_path, "dataset.datasets=[digits,mnist]")


# Mirrors


@pytest.fixture
def write_mirror(tmp_path, monkeypatch):
    """Writes a dataset as the Hub keeps it, in a folder; nothing is cached elsewhere, nothing is fetched."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()

    def write(names, splits, column="label", feature="class", images="image"):
        """`splits`: of each, the (label, number) of its images; the labels are positions in `names`."""
        kinds = {"class": datasets.ClassLabel(names=names), "text": datasets.Value("string")}
        kind = kinds.get(feature) or datasets.Value(feature)
        for split, samples in splits.items():
            drawn = [Image.fromarray(picture(label, number)) for label, number in samples]
            labels = [names[label] if feature == "text" else label for label, _ in samples]
            features = datasets.Features({images: datasets.Image(), column: kind})
            path = tmp_path / f"mirror/data/{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            datasets.Dataset.from_dict({images: drawn, column: labels}, features=features).to_parquet(path)
        return f"dataset.mirror={tmp_path}/mirror"

    return write


def by_name(names, split):
    """Classes of the images, as ids that belong to other `names`, and their numbers."""
    return [(names[label], number) for label, number in codes(split)]


@pytest.mark.parametrize("feature", ["class", "text"])
def test_labels_of_a_mirror_are_matched_by_name(feature, write_mirror, tmp_path):
    own = [name.replace(" ", "_").upper() for name in class_names("resisc45")[::-1]]
    samples = [(label, 0) for label in range(45)]
    mirror = write_mirror(own, {"train": samples, "test": [(c, HELD_OUT) for c, _ in samples[::2]]}, feature=feature)
    source = load("resisc45", tmp_path, mirror)
    assert source.class_names == class_names("resisc45")
    assert (len(source.train), len(source.test)) == (45, 23)
    for split, number in ((source.train, 0), (source.test, HELD_OUT)):
        assert [(44 - label, number) for label in split.labels] == codes(split)
        assert split.labels.dtype == np.int64
    assert source.notes == {"mirror": f"{tmp_path}/mirror"}
    assert code(pickle.loads(pickle.dumps(source.train.images))[3]) == (3, 0)


def test_a_mirror_with_one_split_is_divided(write_mirror, tmp_path):
    names = [name.replace(" ", "_") for name in class_names("imagenet_r")]
    samples = [(label, number) for number in range(5) for label in range(200)]
    mirror = write_mirror(names, {"test": samples}, column="class_name", feature="text")
    source = load("imagenet_r", tmp_path, mirror)
    assert np.bincount(source.train.labels).tolist() == [4] * 200
    assert np.bincount(source.test.labels).tolist() == [1] * 200
    assert sorted(codes(source.train) + codes(source.test)) == sorted(samples)
    for split in (source.train, source.test):
        assert [label for label, _ in codes(split)] == split.labels.tolist()
        assert split.domains is None
    assert source.notes["mirror"] == f"{tmp_path}/mirror"
    other = load("imagenet_r", tmp_path, mirror, "dataset.split_seed=1")
    assert source.notes["manifest_sha256"] != other.notes["manifest_sha256"]
    assert list(source.class_orders) == ["paper"]


@pytest.mark.parametrize(
    ("name", "own", "names"),
    [
        ("cars", some(196, "AM General Hummer SUV 2000"), some(196, "AM General Hummer SUV 2000", then="zone {:03d}")),
        ("cub200", some(200, "001.Black_footed_Albatross"), some(200, "Black footed Albatross", then="zone {:03d}")),
        ("domainnet", sorted(class_names("domainnet"), key=str.lower), class_names("domainnet")),
    ],
)
def test_other_mirrors(name, own, names, write_mirror, tmp_path):
    samples = [(label, 0) for label in range(len(own))]
    mirror = write_mirror(own, {"train": samples, "validation": samples[:7]})
    source = load(name, tmp_path, mirror)
    assert source.class_names == names
    assert templates(name)[0].format(names[0]) in source.prompts[0]
    assert (len(source.train), len(source.test)) == (len(own), 7)
    if name == "domainnet":
        assert [own[label] for label, _ in codes(source.train)] == [names[label] for label in source.train.labels]
    else:
        assert [label for label, _ in codes(source.train)] == source.train.labels.tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ["beach", "volcano"]}, "must have the classes of resisc45; it has volcano, which is none"),
        ({"column": "species"}, "must have a column of images and one of labels; its columns are image, species"),
        ({"feature": "int64"}, "must have a column of images and one of labels; its columns are image, label"),
        ({"splits": {"train": [(0, 0)], "extra": [(1, 0)]}}, "must have the splits train and test; it has"),
        ({"splits": {"train": [(0, 0)], "test": [(-1, 0)]}}, "must have a label for every image"),
    ],
)
def test_mirrors_that_are_refused(arguments, message, write_mirror, tmp_path):
    defaults = {"names": ["beach", "sea_ice"], "splits": {"train": [(0, 0)], "test": [(1, 0)]}}
    if arguments == {"column": "species"}:
        arguments = {**arguments, "feature": "text"}
    mirror = write_mirror(**{**defaults, **arguments})
    said = refusal("resisc45", tmp_path, mirror)
    assert said.startswith(f"dataset.mirror={tmp_path}/mirror ")
    assert message in said


@pytest.mark.parametrize("name", ["cars", "cub200"])
def test_a_mirror_without_class_names_is_refused(name, write_mirror, tmp_path):
    mirror = write_mirror([], {"train": [(0, 0), (1, 0)], "test": [(1, 0)]}, feature="int64")
    assert "its columns are image, label" in refusal(name, tmp_path, mirror)


def test_a_mirror_without_images_is_refused(tmp_path, write_mirror):
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror/train.jsonl").write_text(json.dumps({"image": "a.jpg", "label": "beach"}) + "\n")
    mirror = f"dataset.mirror={tmp_path}/mirror"
    assert "its columns are image, label" in refusal("resisc45", tmp_path, mirror)


def test_a_mirror_that_is_not_there(tmp_path, write_mirror):
    for place in ("nobody/nothing", tmp_path / "nowhere"):
        said = refusal("cars", tmp_path, f"dataset.mirror={place}")
        assert said.startswith(f"dataset.mirror={place} must be a dataset of the Hugging Face Hub: ")


def test_mirrors_need_another_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    said = refusal("cars", tmp_path, "dataset.mirror=nobody/nothing")
    assert said == "dataset.mirror needs another package; type: pip install mergestream[mirrors]"


def test_folder_with_training_images_alone(tmp_path):
    write_folder(tmp_path)
    shutil.rmtree(tmp_path / "test")
    with pytest.raises(UserError, match="must hold a folder for each class, or train and test .* has only train"):
        load("folder", tmp_path)


def test_home_in_a_data_root(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    WRITERS["eurosat"](tmp_path / "data")
    plain = load("eurosat", tmp_path / "data", results=tmp_path / "runs")
    assert load("eurosat", "~/data", results=tmp_path / "runs").notes == plain.notes

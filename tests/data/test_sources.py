"""Datasets from archives: labels, class names, prompts, splits and domains."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from archives import (
    HELD_OUT,
    SPLIT_BY_NAME,
    WRITERS,
    code,
    codes,
    dataset_group,
    error_line,
    idx,
    load,
    save,
    save_lines,
    style,
    wnid,
)
from helpers import config, shipped
from omegaconf import OmegaConf
from PIL import Image
from torch.utils.data import random_split

from mergestream.data.images import image_paths
from mergestream.data.protocol import class_names_by_folder, domains
from mergestream.runs.identity import config_hash

# dataset: (classes, training images, test images, {class id: class name, ...}, a prompt of the first of these classes)
FACTS = {
    "aircraft": (100, 200, 100, {2: "F-16A/B", 0: "707-320"}, "a photo of the F-16A/B, a type of aircraft."),
    "caltech101": (101, 404, 101, {0: "off-center face", 100: "yin and yang symbol"}, "a plastic off-center face."),
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
    "table": (3, 6, 3, {1: "great white shark", 2: "hen"}, "a photo of a great white shark."),
    "tiny_imagenet": (200, 200, 200, {1: "European fire salamander"}, "a toy European fire salamander."),
}

FOLDERS = class_names_by_folder("caltech101")

pytestmark = pytest.mark.usefixtures("any_checksum")


def test_every_dataset_option_has_an_archive_and_expected_values():
    options = set(shipped("dataset"))
    suites = {name for name in options if "datasets" in dataset_group(name)}
    assert set(WRITERS) == set(FACTS) == options - suites - {"digits", "glyphs"}


@pytest.mark.parametrize("name", FACTS)
def test_labels_names_prompts_and_splits(name, archives):
    source = load(name, archives(name))
    classes, train, test, names, prompt = FACTS[name]
    assert (source.num_classes, len(source.train), len(source.test)) == (classes, train, test)
    assert {label: source.class_names[label] for label in names} == names
    assert prompt in source.prompts[next(iter(names))]
    assert len(source.prompts) == classes
    for class_name, class_prompts in zip(source.class_names, source.prompts, strict=True):
        assert class_prompts
        assert all(class_name in prompt for prompt in class_prompts)
    seen = []
    for split in (source.train, source.test):
        drawn = codes(split)
        assert isinstance(split.images[0], Image.Image)
        assert [label for label, _ in drawn] == split.labels.tolist()
        assert split.labels.dtype == np.int64
        seen += drawn
        if name not in {*SPLIT_BY_NAME, "caltech101"}:  # split by a draw
            assert {number >= HELD_OUT for _, number in drawn} == {split is source.test}
    assert len(set(seen)) == len(seen)
    assert {label for label, _ in seen[:train]} == set(range(classes))
    copy = pickle.loads(pickle.dumps(source.test.images))  # as loader processes receive it
    assert code(copy[0]) == seen[train]


@pytest.mark.parametrize("name", ["dtd", "sun397"])
def test_partition_2_has_its_own_train_and_test_lists(name, archives):
    source = load(name, archives(name), "dataset.partition=2")
    assert {number for _, number in codes(source.test)} == {0}
    assert HELD_OUT in {number for _, number in codes(source.train)}


def test_emnist_images_are_upright(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (10, 28, 28), dtype=np.uint8)
    for part in ("train", "test"):
        stem = f"EMNIST/raw/emnist-digits-{part}"
        idx(tmp_path / f"{stem}-images-idx3-ubyte", images.transpose(0, 2, 1))
        idx(tmp_path / f"{stem}-labels-idx1-ubyte", np.arange(10, dtype=np.uint8))
    source = load("emnist", tmp_path)
    for split in (source.train, source.test):
        assert all(np.array_equal(split.images[i], images[i]) for i in range(10))


def test_imagenet_r_orders_classes_by_name_and_has_styles_as_domains(archives):
    source = load("imagenet_r", archives("imagenet_r"))
    assert list(source.class_names) == sorted(source.class_names)
    assert source.domain_names == domains("imagenet_r")
    assert source.domain_orders["paper"][:2] == [9, 14]  # tattoo, sketch
    assert source.class_orders["paper"][:3] == [186, 157, 67]
    for split in (source.train, source.test):
        assert set(split.domains) == set(range(15))
        assert [style(*drawn) for drawn in codes(split)] == [source.domain_names[d] for d in split.domains]
        for position, path in image_paths(split.images):
            assert Path(path).parent.name == wnid(split.labels[position])


def test_errors_for_an_unknown_class_or_style_of_imagenet_r(tmp_path):
    WRITERS["imagenet_r"](tmp_path)
    folder = tmp_path / "imagenet-r"
    readme = (folder / "README.txt").read_text()
    save_lines(folder / "README.txt", [line for line in readme.splitlines() if wnid(7) not in line])
    assert error_line("imagenet_r", tmp_path) == (
        f"{folder / wnid(7)} must be a class that {folder}/README.txt lists; it is not"
    )
    (folder / "README.txt").write_text(readme)
    image = folder / wnid(3) / "woodcut_3.jpg"
    save(image, 3, 5)
    assert error_line("imagenet_r", tmp_path) == (
        "images of ImageNet-R must be named STYLE_NUMBER.jpg, with a style from "
        f"{', '.join(domains('imagenet_r'))}; got {image}"
    )


def test_labels_of_domainnet_are_right_where_a_domain_lacks_classes(archives):
    source = load("domainnet", archives("domainnet"))
    assert source.domain_names == ["clipart", "infograph", "painting", "quickdraw", "real", "sketch"]
    assert source.domain_orders["paper"] == [0, 5, 4, 1, 3, 2]
    assert sorted(source.class_orders["paper"]) == list(range(345))
    for split, first in ((source.train, 0), (source.test, HELD_OUT)):
        assert [number - first for _, number in codes(split)] == split.domains.tolist()
        for domain in range(6):
            assert split.labels[split.domains == domain].tolist() == sorted({*range(domain, 345, 6), 344})


def test_digit_0_of_svhn_is_class_0(archives):
    source = load("svhn", archives("svhn"))
    assert source.test.labels.tolist() == list(range(10))
    assert code(source.test.images[0]) == (0, HELD_OUT)


def test_fer2013_tests_on_the_public_and_the_private_test_set(archives):
    numbers = [number for _, number in codes(load("fer2013", archives("fer2013")).test)]
    assert numbers == [HELD_OUT] * 7 + [HELD_OUT + 1] * 7


@pytest.mark.parametrize("name", ["dtd", "sun397"])
def test_error_for_partition_11(name, tmp_path):
    message = "dataset.partition must be a whole number, between 1 and 10; got dataset.partition=11"
    assert error_line(name, tmp_path, "dataset.partition=11") == message


def test_runs_on_the_former_names_of_imagenet_have_another_config_hash():
    now = OmegaConf.to_container(config("train", "dataset=imagenet"), resolve=True)
    before = {**now, "dataset": {key: value for key, value in now["dataset"].items() if key != "version"}}
    assert config_hash(now) != config_hash(before)


def test_caltech101_is_divided_by_the_draw_of_mtil(archives):
    source = load("caltech101", archives("caltech101"))
    images = [f"{folder}/image_{number:04d}.jpg" for folder in sorted(FOLDERS) for number in range(1, 6)]
    train, test = random_split(images, [404, 101], generator=torch.Generator().manual_seed(42))
    for part, split in ((train, source.train), (test, source.test)):
        paths = [Path(path) for _, path in image_paths(split.images)]
        assert [f"{path.parent.name}/{path.name}" for path in paths] == sorted(part, key=images.index)
    assert source.notes["test"] == 101


def test_error_for_a_category_of_caltech101_that_is_missing(tmp_path):
    WRITERS["caltech101"](tmp_path)
    (tmp_path / "caltech101/101_ObjectCategories/ant").rename(tmp_path / "caltech101/101_ObjectCategories/aunt")
    assert "its folders must be the 101 categories and BACKGROUND_Google" in error_line("caltech101", tmp_path)
    assert "needs nowhere/caltech101/101_ObjectCategories, which does not exist. " in error_line(
        "caltech101", tmp_path, "dataset.root=nowhere"
    )
    assert not Path("nowhere").exists()


@pytest.mark.parametrize(("name", "train", "test"), [("aircraft", 100, 100), ("dtd", 47, 47), ("flowers102", 102, 102)])
def test_mtil_trains_on_the_train_list_alone(archives, name, train, test):
    source = load(name, archives(name), "dataset.mtil=true")
    assert (len(source.train), len(source.test)) == (train, test)
    assert {number for _, number in codes(source.train)} == {0}


@pytest.mark.parametrize(("name", "train", "test"), [("eurosat", 80, 20), ("sun397", 636, 159)])
def test_mtil_divides_all_images_by_a_draw(archives, name, train, test):
    source = load(name, archives(name), "dataset.mtil=true")
    assert (len(source.train), len(source.test)) == (train, test)
    for split in (source.train, source.test):
        assert [label for label, _ in codes(split)] == split.labels.tolist()
    paths = [path for split in (source.train, source.test) for _, path in image_paths(split.images)]
    drawn = torch.randperm(len(paths), generator=torch.Generator().manual_seed(42))[: len(source.train)]
    assert paths[: len(source.train)] == [sorted(paths)[i] for i in drawn.sort().values]


@pytest.mark.parametrize("name", ["dtd", "eurosat", "flowers102", "sun397"])
def test_the_switch_to_mtil_changes_no_other_config_hash(name):
    now = OmegaConf.to_container(config("train", f"dataset={name}"), resolve=True)
    before = {**now, "dataset": {key: value for key, value in now["dataset"].items() if key != "mtil"}}
    assert config_hash(now) == config_hash(before)
    assert config_hash({**now, "dataset": {**now["dataset"], "mtil": True}}) != config_hash(now)

"""Datasets in the format of the Hugging Face Hub, read from a folder."""

from __future__ import annotations

import json
import pickle
import sys

import numpy as np
import pytest
from archives import HELD_OUT, class_list, code, codes, error_line, load, picture
from PIL import Image

from mergestream.data.protocol import class_names, templates

pytestmark = pytest.mark.usefixtures("any_checksum")


@pytest.fixture
def write_mirror(tmp_path, monkeypatch):
    """A function that writes a dataset in the format of the Hub; nothing is downloaded or cached elsewhere."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()

    def write(names, splits, column="label", feature="class", images="image"):
        """Write the (label, number) images of each split; labels are positions in `names`."""
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


def test_mirror_with_a_single_split_is_split_by_row(write_mirror, tmp_path):
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
        (
            "cars",
            class_list(196, "AM General Hummer SUV 2000"),
            class_list(196, "AM General Hummer SUV 2000", then="zone {:03d}"),
        ),
        (
            "cub200",
            class_list(200, "001.Black_footed_Albatross"),
            class_list(200, "Black footed Albatross", then="zone {:03d}"),
        ),
        ("domainnet", sorted(class_names("domainnet"), key=str.lower), class_names("domainnet")),
    ],
)
def test_mirror_with_its_own_class_names_or_order(name, own, names, write_mirror, tmp_path):
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
        ({"names": ["beach", "volcano"]}, "must have the classes of resisc45; volcano is not one of them"),
        ({"column": "species"}, "must have an image column and a label column; its columns are image, species"),
        ({"feature": "int64"}, "must have an image column and a label column; its columns are image, label"),
        (
            {"splits": {"train": [(0, 0)], "extra": [(1, 0)]}},
            "must have the splits train and test; it has train, extra",
        ),
        (
            {"splits": {"train": [(0, 0)], "test": [(-1, 0)]}},
            "must have a label for every image; its split test does not",
        ),
    ],
)
def test_errors_for_unusable_mirrors(arguments, message, write_mirror, tmp_path):
    defaults = {"names": ["beach", "sea_ice"], "splits": {"train": [(0, 0)], "test": [(1, 0)]}}
    if arguments == {"column": "species"}:
        arguments = {**arguments, "feature": "text"}
    mirror = write_mirror(**{**defaults, **arguments})
    assert error_line("resisc45", tmp_path, mirror) == f"dataset.mirror={tmp_path}/mirror {message}"


@pytest.mark.parametrize("name", ["cars", "cub200"])
def test_error_for_a_mirror_without_class_names(name, write_mirror, tmp_path):
    mirror = write_mirror([], {"train": [(0, 0), (1, 0)], "test": [(1, 0)]}, feature="int64")
    message = f"{mirror} must have an image column and a label column; its columns are image, label"
    assert error_line(name, tmp_path, mirror) == message


def test_error_for_a_mirror_without_images(tmp_path, write_mirror):
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror/train.jsonl").write_text(json.dumps({"image": "a.jpg", "label": "beach"}) + "\n")
    mirror = f"dataset.mirror={tmp_path}/mirror"
    message = f"{mirror} must have an image column and a label column; its columns are image, label"
    assert error_line("resisc45", tmp_path, mirror) == message


def test_error_for_a_missing_mirror(tmp_path, write_mirror):
    for place in ("nobody/nothing", tmp_path / "nowhere"):
        message = error_line("cars", tmp_path, f"dataset.mirror={place}")
        assert message.startswith(f"dataset.mirror={place} must be a dataset on the Hugging Face Hub: ")


def test_error_without_the_datasets_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = error_line("cars", tmp_path, "dataset.mirror=nobody/nothing")
    assert message == "dataset.mirror needs the package datasets; type: pip install mergestream[mirrors]"

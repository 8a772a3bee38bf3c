"""Any directory of images as a dataset."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from archives import codes, error_line, load, load_photos, save, write_folder

pytestmark = pytest.mark.usefixtures("any_checksum")


def test_val_folder_is_the_test_split(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "test").rename(tmp_path / "val")
    source = load("folder", tmp_path, "dataset.templates=['the {}', '{}!']")
    assert (len(source.train), len(source.test)) == (6, 3)
    assert source.prompts[0] == ["the cat", "cat!"]
    assert source.notes == {}


def test_folder_without_splits_is_split_by_name(photos):
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


def test_labels_are_right_where_the_test_folder_lacks_a_class(tmp_path):
    write_folder(tmp_path)
    shutil.rmtree(tmp_path / "test/cat")
    source = load("folder", tmp_path)
    assert source.test.labels.tolist() == [1, 2] == [label for label, _ in codes(source.test)]


def test_error_for_a_test_class_without_training_images(tmp_path):
    write_folder(tmp_path)
    save(tmp_path / "test/owl/0.png", 3, 0)
    assert error_line("folder", tmp_path) == f"{tmp_path}/test/owl must also be a class in {tmp_path}/train; it is not"


def test_error_for_a_class_without_images(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "train/dog").mkdir()
    message = error_line("folder", tmp_path)
    assert message.startswith("dataset.path must hold images in every class; ")
    assert "dog" in message
    message = error_line("folder", tmp_path / "train/cat")
    assert message == f"dataset.path must hold a folder of images for each class; {tmp_path}/train/cat has none"


def test_error_for_a_path_that_is_not_a_folder(tmp_path):
    write_folder(tmp_path)
    rule = "dataset.path must be a folder with one folder of images per class; got dataset.path="
    for path in (tmp_path / "train/cat/0.png", tmp_path / "nowhere", "null"):
        assert error_line("folder", tmp_path, f"dataset.path={path}") == rule + str(path).replace("null", "None")


def test_error_for_a_train_folder_without_a_test_folder(tmp_path):
    write_folder(tmp_path)
    shutil.rmtree(tmp_path / "test")
    rule = "dataset.path must hold only classes, or only one train and one test (or validation) folder"
    assert error_line("folder", tmp_path) == f"{rule}; {tmp_path} has train. Rename or move what is not a split"

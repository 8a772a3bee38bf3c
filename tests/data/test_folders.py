"""Directories of images as data sets."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from archives import codes, load, load_photos, refusal, save, write_folder

from mergestream.runtime.errors import UserError

pytestmark = pytest.mark.usefixtures("any_checksum")


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
    assert f"{tmp_path}/test/owl must also be a class in {tmp_path}/train; it is not" in refusal("folder", tmp_path)
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


def test_folder_with_training_images_alone(tmp_path):
    write_folder(tmp_path)
    shutil.rmtree(tmp_path / "test")
    with pytest.raises(UserError, match="must hold a folder for each class, or train and test .* has only train"):
        load("folder", tmp_path)

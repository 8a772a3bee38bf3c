"""Datasets without an official split, split by file name."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from archives import SPLIT_BY_NAME, WRITERS, codes, load
from helpers import config

from mergestream.compose.inputs import Inputs
from mergestream.data.manifest import split_by_name
from mergestream.models.tiny import tiny
from mergestream.runtime.errors import UserError
from mergestream.runtime.seeding import key

pytestmark = pytest.mark.usefixtures("any_checksum")


def test_split_depends_on_names_alone_and_is_stratified():
    names = [f"{c}/{i}.jpg" for c, n in enumerate((10, 5, 3, 1)) for i in range(n)]
    labels = [int(name[0]) for name in names]
    train, test, record = split_by_name(names, labels, test_fraction=0.2, seed=4)
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
    shuffled = split_by_name([names[i] for i in order], [labels[i] for i in order], test_fraction=0.2, seed=4)
    assert {names[order[i]] for i in shuffled[1]} == {names[i] for i in test}
    assert shuffled[2] == record


@pytest.mark.parametrize("value", [0, 1, -0.5, 1.5, True, "half", None, float("nan")])
def test_error_for_a_test_fraction_out_of_range(value):
    rule = f"dataset.test_fraction must be a number, above 0 and below 1; got dataset.test_fraction={value}"
    with pytest.raises(UserError, match=f"^{rule}$"):
        split_by_name(["a"], [0], test_fraction=value, seed=0)


@pytest.mark.parametrize("value", [0.5, True, "x", None])
def test_error_for_a_split_seed_that_is_not_a_whole_number(value):
    with pytest.raises(UserError, match=f"^dataset.split_seed must be a whole number; got dataset.split_seed={value}$"):
        split_by_name(["a"], [0], test_fraction=0.5, seed=value)


@pytest.mark.parametrize("name", SPLIT_BY_NAME)
def test_dataset_without_a_split_is_split_by_name(name, archives, tmp_path):
    root, count = archives(name), SPLIT_BY_NAME[name]
    source, again, other = load(name, root), load(name, root), load(name, root, "dataset.split_seed=1")
    assert np.bincount(source.test.labels).tolist() == [1] * source.num_classes  # 1 of 10, of 5 and of 3
    assert np.bincount(source.train.labels).tolist() == [count - 1] * source.num_classes
    assert len({*codes(source.train), *codes(source.test)}) == count * source.num_classes
    assert source.notes == again.notes != other.notes
    assert source.notes["manifest_sha256"] != other.notes["manifest_sha256"]
    assert codes(source.test) == codes(again.test) != codes(other.test)
    half = load(name, root, "dataset.test_fraction=0.6")
    assert len(half.test) == round(0.6 * count) * source.num_classes
    WRITERS[name](tmp_path)  # the same archive in another folder
    assert load(name, tmp_path).notes == source.notes


def test_stream_description_has_the_hash_of_the_manifest(archives):
    values = ["dataset=eurosat", f"data.root={archives('eurosat')}", f"root={archives()}/results", "model=tiny"]
    inputs = Inputs(config("train", *values))
    description = inputs.stream(tiny().transforms, inputs.source()).describe()
    assert description["notes"]["test"] == 10
    assert len(description["notes"]["manifest_sha256"]) == 64


def test_class_with_two_files_has_one_for_the_test_and_a_single_file_is_for_training():
    train, test, _ = split_by_name(list("abcde"), [0, 0, 1, 2, 2], test_fraction=0.2, seed=0)
    assert sorted(np.array([0, 0, 1, 2, 2])[test]) == [0, 2]
    assert sorted(np.array([0, 0, 1, 2, 2])[train]) == [0, 1, 2]

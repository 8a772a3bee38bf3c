"""The four ways to divide a dataset into tasks."""

from __future__ import annotations

import numpy as np
import pytest

from mergestream.data.source import Source, Split
from mergestream.data.sources.digits import digits
from mergestream.data.sources.glyphs import DOMAINS, glyphs
from mergestream.data.sources.suite import suite
from mergestream.data.tasks import class_incremental, data_incremental, dataset_incremental, domain_incremental
from mergestream.runtime.errors import UserError

NATURAL = {"seed": 0, "order": "natural", "validation": 0.0}


def positions(tasks, *splits):
    """All positions of the tasks in the given splits, sorted."""
    return sorted(np.concatenate([getattr(task, split) for task in tasks for split in splits]))


@pytest.mark.parametrize("tasks", [1, 3, 5, 10])
def test_class_tasks_are_disjoint_and_complete(tasks):
    source = digits()
    made = class_incremental(source, tasks=tasks, seed=5, order="shuffled", validation=0.2)
    assert len(made) == tasks
    assert positions(made, "test") == list(range(len(source.test)))
    assert positions(made, "train", "validation") == list(range(len(source.train)))
    for task in made:
        for labels in (source.train.labels[task.train], source.train.labels[task.validation]):
            assert set(labels) == set(task.classes)
        assert set(source.test.labels[task.test]) == set(task.classes)


def test_domain_tasks_have_all_classes_and_one_domain_each():
    source = glyphs(4, 1)
    made = domain_incremental(source, tasks=6, seed=5, order="natural", validation=0.25)
    assert [task.name for task in made] == list(DOMAINS)
    for number, task in enumerate(made):
        assert task.classes == list(range(100))
        assert set(source.train.domains[task.train]) == set(source.train.domains[task.validation]) == {number}
        assert set(source.test.domains[task.test]) == {number}
        assert (len(task.train), len(task.validation)) == (300, 100)
    assert positions(made, "train", "validation") == list(range(len(source.train)))
    assert positions(made, "test") == list(range(len(source.test)))


def test_shuffled_domain_order_depends_on_the_seed():
    def order(seed):
        made = domain_incremental(glyphs(1, 1), tasks=6, seed=seed, order="shuffled", validation=0.0)
        return [task.name for task in made]

    assert order(1) == order(1) != order(2)
    assert sorted(order(1)) == sorted(order(2)) == sorted(DOMAINS)


def test_published_domain_order():
    split = Split([None] * 4, np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1]))
    orders = {"paper": [1, 0]}
    source = Source(["a", "b"], [["a"], ["b"]], split, split, domain_names=["x", "y"], domain_orders=orders)
    made = domain_incremental(source, tasks=2, seed=0, order="paper", validation=0.0)
    assert [task.name for task in made] == ["y", "x"]
    assert made[0].train.tolist() == [2, 3]


def test_domain_that_lacks_a_class_keeps_the_class_ids():
    split = Split([None] * 3, np.array([0, 2, 1]), np.array([0, 0, 1]))
    source = Source(list("abc"), [["a"], ["b"], ["c"]], split, split, domain_names=["x", "y"])
    made = domain_incremental(source, tasks=2, **NATURAL)
    assert [task.classes for task in made] == [[0, 1, 2], [0, 1, 2]]
    assert [task.train.tolist() for task in made] == [[0, 1], [2]]


def test_error_for_a_domain_without_images():
    split = Split([None] * 2, np.array([0, 1]), np.array([0, 0]))
    source = Source(list("ab"), [["a"], ["b"]], split, split, domain_names=["x", "y"])
    with pytest.raises(UserError, match="^every task needs training and test images; y has no training images$"):
        domain_incremental(source, tasks=2, **NATURAL)


def test_errors_for_a_dataset_that_the_stream_cannot_divide():
    with pytest.raises(UserError, match="^stream=domain needs a dataset with domains, such as .*; this one has none$"):
        domain_incremental(digits(), tasks=6, **NATURAL)
    with pytest.raises(UserError, match="^tasks must be 6, one for each of plain, rotated, .*; got tasks=5$"):
        domain_incremental(glyphs(1, 1), tasks=5, **NATURAL)
    with pytest.raises(UserError, match="^stream=dataset needs several datasets, .*; this is a single dataset$"):
        dataset_incremental(glyphs(1, 1), tasks=6, seed=0, validation=0.0)


def test_dataset_tasks_have_their_own_classes():
    parts = {"digits": digits(), "glyphs": glyphs(1, 1)}
    source = suite("", {name: lambda part=part: part for name, part in parts.items()})
    first, second = dataset_incremental(source, tasks=2, seed=5, validation=0.1)
    assert (first.name, second.name) == ("digits", "glyphs")
    assert first.classes == list(range(10))
    assert second.classes == list(range(10, 110))
    assert (len(first.test), len(second.test)) == (445, 600)
    assert source.test.labels[second.test].tolist() == (parts["glyphs"].test.labels + 10).tolist()
    assert source.test.images[second.test[7]].tobytes() == parts["glyphs"].test.images[7].tobytes()


def test_data_tasks_have_all_classes_and_share_no_samples():
    source = digits()
    made = data_incremental(source, tasks=4, seed=5, validation=0.2)
    for task in made:
        for labels in (source.train.labels[task.train], source.train.labels[task.validation]):
            assert set(labels) == set(range(10))
        assert set(source.test.labels[task.test]) == set(range(10))
    assert positions(made, "train", "validation") == list(range(len(source.train)))
    assert positions(made, "test") == list(range(len(source.test)))
    with pytest.raises(UserError, match="^every task needs training and test images; part 1 has no training images$"):
        data_incremental(source, tasks=200, seed=5, validation=0.2)


def test_error_for_a_split_whose_lengths_differ():
    with pytest.raises(
        ValueError, match=r"^images, labels and domains of a split must have the same length, got \[2, 3\]"
    ):
        Split([None, None], np.zeros(3, dtype=np.int64))

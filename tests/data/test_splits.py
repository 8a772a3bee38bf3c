"""Class splits, class orders, validation samples and stratified parts."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers import GOLDEN
from hypothesis import given
from hypothesis import strategies as st

from mergestream.data.splits import class_splits, resolve_order, stratified_parts, validation_split
from mergestream.runtime.errors import UserError


@pytest.mark.parametrize("case", json.loads((GOLDEN / "class_splits.json").read_text()))
def test_published_splits(case):
    assert class_splits(case["classes"], case["tasks"], case["class_order"]) == case["split"]


def test_class_split_by_hand():
    # floor(7/3·t) = 0, 2, 4, 7
    assert class_splits(7, 3, [6, 5, 4, 3, 2, 1, 0]) == [[5, 6], [3, 4], [0, 1, 2]]


@given(st.integers(1, 300).flatmap(lambda c: st.tuples(st.just(c), st.integers(1, c), st.integers(0, 2**31))))
def test_class_splits_are_disjoint_complete_and_nearly_equal(case):
    classes, tasks, seed = case
    splits = class_splits(classes, tasks, resolve_order(classes, "shuffled", {}, seed, "class order"))
    assert sorted(c for task in splits for c in task) == list(range(classes))
    sizes = [len(task) for task in splits]
    assert len(sizes) == tasks
    assert max(sizes) - min(sizes) <= 1


def test_last_class_is_kept_where_floating_point_rounds_down():
    # In floating point 15/11·11 is below 15, so that the published formula would drop class 14.
    assert class_splits(15, 11)[-1][-1] == 14


def test_orders_by_name():
    assert resolve_order(4, "natural", {}, 1, "class order") == [0, 1, 2, 3]
    assert resolve_order(50, "shuffled", {}, 1, "class order") == resolve_order(50, "shuffled", {}, 1, "class order")
    assert resolve_order(50, "shuffled", {}, 1, "class order") != resolve_order(50, "shuffled", {}, 2, "class order")
    assert resolve_order(3, "paper", {"paper": [2, 0, 1]}, 1, "class order") == [2, 0, 1]
    with pytest.raises(
        UserError, match="^stream.order must be one of natural, shuffled for this dataset; got stream.order=paper$"
    ):
        resolve_order(3, "paper", {}, 1, "class order")


def test_shuffled_order_never_changes():
    # A change would turn every recorded run with shuffled classes into another experiment.
    assert resolve_order(10, "shuffled", {}, 5, "class order") == [2, 8, 4, 9, 5, 6, 3, 0, 1, 7]


@pytest.mark.parametrize("tasks", [0, -1, 11])
def test_error_for_a_number_of_tasks_out_of_range(tasks):
    rule = f"tasks must be between 1 and the number of classes, 10; got tasks={tasks}. Write for example tasks=5."
    with pytest.raises(UserError, match=f"^{rule}$"):
        class_splits(10, tasks)


def test_error_for_a_class_order_that_is_not_a_permutation():
    with pytest.raises(UserError, match=r"^a class order must be a permutation of 0 … 2; got 3 entries: \[0, 0, 1\]…$"):
        class_splits(3, 1, [0, 0, 1])


def test_validation_samples_are_stratified_and_disjoint():
    labels = np.repeat([0, 1, 2], [10, 20, 5])
    train, held_out = validation_split(labels, 0.2, seed=1)
    assert np.bincount(labels[held_out]).tolist() == [2, 4, 1]
    assert sorted([*train, *held_out]) == list(range(35))
    assert not np.array_equal(held_out, validation_split(labels, 0.2, seed=2)[1])
    assert len(validation_split(labels, 0.0, seed=1)[1]) == 0


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 6), st.integers(0, 2**31))
def test_stratified_parts_are_disjoint_complete_and_nearly_equal_for_every_class(labels, parts, seed):
    labels = np.array(labels)
    shares = stratified_parts(labels, np.arange(len(labels)), parts, seed, "train")
    assert sorted(np.concatenate(shares)) == list(range(len(labels)))
    for label in np.unique(labels):
        sizes = [int((labels[share] == label).sum()) for share in shares]
        assert max(sizes) - min(sizes) <= 1


def test_stratified_parts_depend_on_the_seed_and_the_split():
    labels = np.zeros(40, dtype=int)

    def first(seed, name="train"):
        return stratified_parts(labels, np.arange(40), 4, seed, name)[0].tolist()

    assert first(1) == first(1)
    assert first(1) != first(2)
    assert first(1) != first(1, "test")


def test_increments_are_the_sizes_of_the_tasks():
    assert class_splits(7, 3, [6, 5, 4, 3, 2, 1, 0], [4, 1, 2]) == [[3, 4, 5, 6], [2], [0, 1]]
    order = resolve_order(10, "shuffled", {}, 5, "class order")
    assert class_splits(10, 5, order, [2] * 5) == class_splits(10, 5, order)
    with pytest.raises(UserError, match=r"^tasks must be 2, the number of stream.increments, or .*; got tasks=3$"):
        class_splits(7, 3, increments=[4, 3])
    rule = r"^stream.increments must be positive and add up to 7, the number of classes; \[4, 2\] adds up to 6$"
    with pytest.raises(UserError, match=rule):
        class_splits(7, 2, increments=[4, 2])


def test_an_order_may_be_listed_by_number_and_by_name():
    def order(*listed, names=("cat", "red fox", "hen")):
        return resolve_order(3, listed, {}, 1, "class order", names)

    assert order(2, 0, 1) == order("hen", "cat", "red fox") == order("hen", 0, "red_fox") == [2, 0, 1]
    rule = "^stream.order must list each class once, by its number from 0 to 2 or its name; "
    for listed, said in (
        ([2, 0], "it lacks 'red fox'$"),
        ([2, 0, "hen"], r"it has 'hen' \(number 2\) twice$"),
        ([2, 0, 3], "it has the number 3$"),
        ([2, 0, "fox"], "it has 'fox', which is none of them"),
        ([2, 0, "red fix"], "it has 'red fix', which is none of them. Did you mean 'red fox'[?]$"),
    ):
        with pytest.raises(UserError, match=rule + said):
            order(*listed)
    with pytest.raises(UserError, match="'cat' is the name of the numbers 0, 2. Write the numbers$"):
        order("cat", 1, 2, names=("cat", "dog", "cat"))

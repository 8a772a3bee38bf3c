"""Names of rows, and the paper's accuracy for a row."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from made_up import LINE

from mergestream.reporting.paper import paper_accuracy
from mergestream.reporting.rows import label, row_names


def test_labels():
    assert label({**LINE, "method": "ind", "strategy": "magmax", "scale": "0.5"}) == "MaxAbs"
    assert label({**LINE, "strategy": "task_arithmetic", "scale": "0.3"}) == "seq + task arithmetic"
    ties = {**LINE, "method": "ind", "strategy": "ties"}
    assert label({**ties, "options": "scope = clip"}) == "TIES"  # as published
    assert label({**ties, "options": "density = 0.1"}) == "ind + ties, density = 0.1"
    assert label({**LINE, "strategy": "magmax", "options": "some = 1"}) == "MagMax, some = 1"
    assert label({**LINE, "tag": "mine"}) == "sequential, last task [mine]"


def test_names_hold_lambda_if_a_benchmark_has_several():
    def named(*lines):
        return row_names(pd.DataFrame([{**LINE, **line} for line in lines]))

    one, other = {"strategy": "magmax", "scale": "0.5"}, {"strategy": "magmax", "scale": "0.3"}
    assert named(one, {**other, "tasks": 5}, {"strategy": "ties", "scale": "0.3"}) == ["MagMax", "MagMax", "seq + ties"]
    assert named(one, other, {**one, "tasks": 5}, {}) == [
        *("MagMax, λ = 0.5", "MagMax, λ = 0.3", "MagMax, λ = 0.5"),
        "sequential, last task",
    ]
    assert named(one, {**one, "scale": "selected"}) == ["MagMax, λ = 0.5", "MagMax, λ on validation"]


@pytest.mark.parametrize(
    ("values", "published"),  # typed from the paper's tables
    [
        ({"dataset": "cifar100", "tasks": 10, "strategy": "magmax", "scale": "0.5"}, 80.41),
        ({"dataset": "imagenet_r", "tasks": 20, "method": "zeroshot"}, 77.73),
        ({"dataset": "cars", "tasks": 20, "method": "joint"}, 88.22),
        ({"dataset": "cub200", "tasks": 5, "method": "ewc", "strategy": "magmax", "scale": "0.5"}, 63.57),
        ({"dataset": "imagenet_r", "tasks": 50, "method": "lwf", "model": "vit_l_14"}, 90.60),
        (
            {"dataset": "cars", "tasks": 20, "method": "ind", "strategy": "ties", "options": "scope = clip"}
            | {"scale": "0.55", "model": "vit_b_16_laion400m"},
            82.09,
        ),
    ],
)
def test_accuracies_of_the_paper(values, published):
    given = {**LINE, "model": "vit_b_16", **values}
    assert paper_accuracy(given) == pytest.approx(published / 100)
    for other in ({"scale": "0.7"}, {"tag": "mine"}, {"model": "tiny"}, {"stream": "domain"}, {"options": "other = 1"}):
        assert math.isnan(paper_accuracy({**given, **other}))

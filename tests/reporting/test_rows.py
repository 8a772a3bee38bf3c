"""What a row is called, and the paper's number for it."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from helpers import ROOT
from made_up import LINE

from mergestream.reporting.paper import paper_accuracy
from mergestream.reporting.rows import label, names


def test_names():
    assert label({**LINE, "method": "ind", "strategy": "magmax", "scale": "0.5"}) == "MaxAbs"
    assert label({**LINE, "strategy": "task_arithmetic", "scale": "0.3"}) == "seq + task arithmetic"
    ties = {**LINE, "method": "ind", "strategy": "ties"}
    assert label({**ties, "options": "scope = clip"}) == "TIES"  # as published
    assert label({**ties, "options": "density = 0.1"}) == "ind + ties, density = 0.1"
    assert label({**LINE, "strategy": "magmax", "options": "some = 1"}) == "MagMax, some = 1"
    assert label({**LINE, "tag": "mine"}) == "sequential, last task [mine]"


def test_names_have_a_scale_where_a_benchmark_has_several():
    def named(*lines):
        return names(pd.DataFrame([{**LINE, **line} for line in lines]))

    one, other = {"strategy": "magmax", "scale": "0.5"}, {"strategy": "magmax", "scale": "0.3"}
    assert named(one, {**other, "tasks": 5}, {"strategy": "ties", "scale": "0.3"}) == ["MagMax", "MagMax", "seq + ties"]
    assert named(one, other, {**one, "tasks": 5}, {}) == [
        *("MagMax, λ = 0.5", "MagMax, λ = 0.3", "MagMax, λ = 0.5"),
        "sequential, last task",
    ]
    assert named(one, {**one, "scale": "selected"}) == ["MagMax, λ = 0.5", "MagMax, λ on validation"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"dataset": "cifar100", "tasks": 10, "strategy": "magmax", "scale": "0.5"}, "main-1"),
        ({"dataset": "cars", "tasks": 20, "method": "joint"}, "main-1-inferred"),
        ({"dataset": "cub200", "tasks": 5, "method": "ewc", "strategy": "magmax", "scale": "0.5"}, "main-2"),
        ({"dataset": "imagenet_r", "tasks": 50, "method": "lwf", "model": "vit_l_14"}, "supp-1"),
    ],
)
def test_the_papers_number(values, expected):
    given = {**LINE, "model": "vit_b_16", **values}
    method = {"seq": "MagMax", "joint": "Joint", "ewc": "EWC + MagMax", "lwf": "LwF"}[given["method"]]
    dataset = {"cifar100": "CIFAR100", "cars": "Cars", "cub200": "CUB200", "imagenet_r": "ImageNet-R"}[given["dataset"]]
    numbers = pd.read_csv(ROOT / "src/mergestream/reporting/paper_results.csv", dtype=str)
    tasks = "all" if method == "Joint" else str(given["tasks"])
    found = numbers[
        (numbers[["table", "method", "dataset", "tasks"]] == [expected, method, dataset, tasks]).all(axis=1)
    ]
    assert paper_accuracy(given) == float(found["accuracy"].iloc[0]) / 100
    for other in ({"scale": "0.7"}, {"tag": "mine"}, {"model": "tiny"}, {"stream": "domain"}):
        if other != {"scale": "0.7"} or given["scale"]:
            assert math.isnan(paper_accuracy({**given, **other}))

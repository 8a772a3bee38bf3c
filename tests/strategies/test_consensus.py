"""Consensus TA: which parameters are kept, and what is refused."""

from __future__ import annotations

import pytest
import torch
from weights import draw, merge, refused, write

TAUS = [{"w": torch.tensor([1.0, 4.0, 1.0, 2.0])}, {"w": torch.tensor([1.0, 0.5, -1.0, 1.0])}]
BASE = {"w": torch.zeros(4)}


def test_selfish_and_cancelling_parameters_are_dropped(tmp_path):
    # Against the other task alone, with λ_t = 0.5: 1 ≥ ½ twice; 4 ≥ ¼, but ½ < 2; 1 ≥ ½ twice, and the sum is 0; 1 ≥ 1.
    merged, _ = merge(tmp_path, *write(tmp_path, BASE, *TAUS), strategy="consensus", threshold=0.5, scale=1.0)
    assert merged["w"].tolist() == [2.0, 0.0, 0.0, 3.0]
    merged, _ = merge(tmp_path, *write(tmp_path, BASE, *TAUS), strategy="consensus", threshold=0.5, tasks=1, scale=1.0)
    assert merged["w"].tolist() == [2.0, 4.5, 0.0, 3.0]


def test_scaling_the_task_vectors_scales_the_merge(tmp_path):
    taus = [draw(50, seed=seed) for seed in (1, 2, 3)]
    once, twice = (
        merge(tmp_path, *write(tmp_path, {"w": torch.zeros(50)}, *({"w": k * t} for t in taus)), strategy="consensus")
        for k in (1, 2)
    )
    assert torch.equal(twice[0]["w"], 2 * once[0]["w"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": -1}, r"strategy.threshold must be a number, 0 or more, or a list of 2, .*; got .*=-1"),
        ({"threshold": [0.5]}, r"or a list of 2, one for each task; got strategy.threshold=\[0.5\]"),
        ({"threshold": "high"}, "got strategy.threshold=high"),
        ({"tasks": -1}, "strategy.tasks must be a whole number, 0 or more; got strategy.tasks=-1"),
    ],
)
def test_bad_options_are_refused(options, message, tmp_path):
    refused(tmp_path, message, *write(tmp_path, BASE, *TAUS), strategy="consensus", **options)

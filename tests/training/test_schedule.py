"""The learning-rate schedule."""

from __future__ import annotations

import json

import pytest
from helpers import GOLDEN

from mergestream.training import warmup_cosine


@pytest.mark.parametrize("case", json.loads((GOLDEN / "cosine_lr.json").read_text()))
def test_published_schedule(case):
    rates = [
        warmup_cosine(step, base_lr=case["base_lr"], warmup_steps=case["warmup"], total_steps=case["steps"])
        for step in range(len(case["lr"]))
    ]
    assert rates == pytest.approx(case["lr"], rel=1e-14)


def test_by_hand():
    rates = [warmup_cosine(s, base_lr=2.0, warmup_steps=2, total_steps=6) for s in range(6)]
    assert rates == pytest.approx([1.0, 2.0, 2.0, 1 + 2**-0.5, 1.0, 1 - 2**-0.5])


def test_warmup_longer_than_training_never_peaks():
    assert warmup_cosine(199, base_lr=1e-5, warmup_steps=500, total_steps=200) == pytest.approx(4e-6)

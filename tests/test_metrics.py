"""Counts from logits, and the summary of the accuracy matrix."""

from __future__ import annotations

import math

import pytest
import torch

from mergestream.evaluation import TaskAccuracy
from mergestream.metrics import row, summarize

R = [[0.9, 0.2, 0.1], [0.6, 0.8, 0.3], [0.5, 0.7, 1.0]]
ZERO_SHOT = [0.4, 0.3, 0.2]


def test_summary_by_hand():
    summary = summarize(R, ZERO_SHOT)
    assert summary["average_accuracy"] == summary["last"] == pytest.approx((0.5 + 0.7 + 1.0) / 3)
    assert summary["forgetting"] == pytest.approx(((0.9 - 0.5) + (0.8 - 0.7)) / 2)
    assert summary["bwt"] == pytest.approx(((0.5 - 0.9) + (0.7 - 0.8)) / 2)
    assert summary["fwt"] == pytest.approx(((0.2 - 0.3) + (0.3 - 0.2)) / 2)
    assert summary["transfer"] == pytest.approx((0.2 + (0.1 + 0.3) / 2) / 2)


def test_forgetting_takes_the_best_before_the_last():
    # Task 1 peaks after task 2: 0.7 − 0.4; the last row itself never counts as a peak.
    assert summarize([[0.5, 0, 0], [0.7, 0.6, 0], [0.4, 0.9, 1]], ZERO_SHOT)["forgetting"] == pytest.approx(
        ((0.7 - 0.4) + (0.6 - 0.9)) / 2
    )


@pytest.mark.parametrize("matrix", [[[0.5]], [[0.5, 0.6, 0.7]]])
def test_undefined_is_nan(matrix):
    summary = summarize(matrix, ZERO_SHOT)
    assert summary["average_accuracy"] == pytest.approx(sum(matrix[-1]) / len(matrix[-1]))
    assert all(math.isnan(summary[name]) for name in ("forgetting", "bwt", "fwt", "transfer"))


@pytest.mark.parametrize("seen", [0, 1, 2, 3])
def test_counts_against_a_loop(seen):
    generator = torch.Generator().manual_seed(0)
    classes = [[0, 3], [1, 4, 5], [2, 6]]
    task_of = {c: t for t, ids in enumerate(classes) for c in ids}
    logits, labels = torch.randn(200, 7, generator=generator), torch.randint(7, (200,), generator=generator)
    tasks = torch.tensor([task_of[int(c)] for c in labels])
    metric = TaskAccuracy(classes, 7, seen)
    for part in torch.arange(200).split(64):
        metric.update(logits[part], labels[part], tasks[part])

    expected = {name: [0, 0, 0] for name in ("total", "agnostic", "aware", "seen_correct")}
    allowed = [c for ids in classes[:seen] for c in ids]
    for values, label, task in zip(logits.tolist(), labels.tolist(), tasks.tolist(), strict=True):
        expected["total"][task] += 1
        expected["agnostic"][task] += max(range(7), key=lambda c: values[c]) == label
        expected["aware"][task] += max(classes[task], key=lambda c: values[c]) == label
        if task < seen:
            expected["seen_correct"][task] += max(allowed, key=lambda c: values[c]) == label
    assert metric.compute() == expected


def test_row_by_hand():
    counts = {"total": [4, 6], "agnostic": [1, 3], "aware": [2, 6], "seen_correct": [3, 0]}
    result = row(counts, seen=1)
    assert (result.task_agnostic, result.task_aware) == ([0.25, 0.5], [0.5, 1.0])
    assert (result.overall, result.seen) == (0.4, 0.75)
    assert row(counts, seen=0).seen is None

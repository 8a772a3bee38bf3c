"""Accuracies from counts, and the summary of an accuracy matrix."""

from __future__ import annotations

import math

import pytest

from mergestream.metrics import ClassMeans, across_domains, class_means, row, summarize

R = [[0.9, 0.2, 0.1], [0.6, 0.8, 0.3], [0.5, 0.7, 1.0]]
ZERO_SHOT = [0.4, 0.3, 0.2]


def test_summary_by_hand():
    summary = summarize(R, ZERO_SHOT)
    assert summary["average_accuracy"] == summary["last"] == pytest.approx((0.5 + 0.7 + 1.0) / 3)
    assert summary["forgetting"] == pytest.approx(((0.9 - 0.5) + (0.8 - 0.7)) / 2)
    assert summary["bwt"] == pytest.approx(((0.5 - 0.9) + (0.7 - 0.8)) / 2)
    assert summary["fwt"] == pytest.approx(((0.2 - 0.3) + (0.3 - 0.2)) / 2)
    assert summary["transfer"] == pytest.approx((0.2 + (0.1 + 0.3) / 2) / 2)


def test_transfer_avg_and_last_of_mtil_by_hand():
    assert across_domains(R) == pytest.approx(
        {
            "transfer": (0.2 + (0.1 + 0.3) / 2) / 2,  # data set 2 before step 2, data set 3 before step 3
            "avg": (0.9 + 0.2 + 0.1 + 0.6 + 0.8 + 0.3 + 0.5 + 0.7 + 1.0) / 9,
            "last": (0.5 + 0.7 + 1.0) / 3,
        }
    )
    # By data set: Avg is the mean over steps, Transfer that of the steps above the diagonal.
    assert across_domains([[0.5, 0.25], [0.75, 1.0]]) == {"transfer": 0.25, "avg": 0.625, "last": 0.875}


def test_forgetting_compares_with_the_best_accuracy_before_the_last_task():
    # The peak of task 1 is after task 2: 0.7 − 0.4. The last row never counts as a peak.
    assert summarize([[0.5, 0, 0], [0.7, 0.6, 0], [0.4, 0.9, 1]], ZERO_SHOT)["forgetting"] == pytest.approx(
        ((0.7 - 0.4) + (0.6 - 0.9)) / 2
    )


@pytest.mark.parametrize("matrix", [[[0.5]], [[0.5, 0.6, 0.7]]])
def test_undefined_values_are_nan(matrix):
    summary = summarize(matrix, ZERO_SHOT)
    assert summary["average_accuracy"] == pytest.approx(sum(matrix[-1]) / len(matrix[-1]))
    assert all(math.isnan(summary[name]) for name in ("forgetting", "bwt", "fwt", "transfer"))


def test_accuracies_by_hand():
    counts = {"total": [4, 6], "agnostic": [1, 3], "aware": [2, 6], "seen_correct": [3, 0]}
    result = row(counts, seen=1)
    assert (result.task_agnostic, result.task_aware) == ([0.25, 0.5], [0.5, 1.0])
    assert (result.overall, result.seen) == (0.4, 0.75)
    assert row(counts, seen=0).seen is None


def test_means_over_classes_by_hand():
    total, correct = [10, 4, 0, 2], [5, 4, 0, 1]  # a class without samples counts nowhere
    found = class_means(total, correct, seen=[0, 2])
    assert found == ClassMeans(macro=2 / 3, seen=0.5, unseen=0.75, harmonic=pytest.approx(2 * 0.5 * 0.75 / 1.25))
    assert class_means(total, correct, range(4)) == ClassMeans(2 / 3, 2 / 3, None, None)
    assert class_means(total, correct, []) == ClassMeans(2 / 3, None, 2 / 3, None)
    assert class_means([1, 1], [0, 0], [0]).harmonic == 0

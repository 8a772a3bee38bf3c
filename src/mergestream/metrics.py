"""Metrics of continual learning: accuracies from counts, and the summary of an accuracy matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike


class Counts(TypedDict):
    """Numbers of samples and of correct predictions of one encoder, one entry per task.

    - total: samples
    - agnostic: correct among all classes
    - aware: correct among the classes of the sample's own task
    - seen_correct: correct among the classes of the tasks seen so far; 0 for later tasks
    """

    total: list[int]
    agnostic: list[int]
    aware: list[int]
    seen_correct: list[int]


@dataclass(frozen=True)
class Row:
    """Accuracies of one encoder as fractions: one row of the accuracy matrix.

    Args:
        task_agnostic, task_aware: accuracy on each task, among all classes and among the classes of the task.
        overall: accuracy on all samples, among all classes.
        seen: accuracy on the samples of the tasks seen so far, among their classes; None before the first task.
    """

    task_agnostic: list[float]
    task_aware: list[float]
    overall: float
    seen: float | None


def row(counts: Counts, seen: int) -> Row:
    """Return the accuracies of an encoder that has been trained on the first `seen` tasks."""
    total = counts["total"]

    def fractions(correct: list[int]) -> list[float]:
        return [c / n if n else float("nan") for c, n in zip(correct, total, strict=True)]

    of_seen = sum(total[:seen])
    return Row(
        task_agnostic=fractions(counts["agnostic"]),
        task_aware=fractions(counts["aware"]),
        overall=sum(counts["agnostic"]) / sum(total),
        seen=sum(counts["seen_correct"]) / of_seen if of_seen else None,
    )


def outgrown(counts: Counts, tasks: Sequence[Sequence[int]]) -> Counts:
    """Return the counts of an encoder that is gone, for a stream to which tasks have been added since.

    What holds on among the classes of one task, or of the tasks seen by then, stays. What was counted among all classes
    is None if there are more classes now, and so is everything about the new tasks.

    Args:
        counts: as they were measured.
        tasks: class ids of each task now.
    """
    known = len(counts["total"])
    lacking: list[None] = [None] * (len(tasks) - known)
    same = set().union(*tasks) == set().union(*tasks[:known])
    return {
        "total": [*counts["total"], *lacking],
        "agnostic": [*(counts["agnostic"] if same else [None] * known), *lacking],
        "aware": [*counts["aware"], *lacking],
        "seen_correct": [*counts["seen_correct"], *lacking],
    }


def summarize(accuracy: ArrayLike, zero_shot: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Summarize an accuracy matrix R [T, T], where R[i, j] is the accuracy on task j after task i, both from 1.

    - average_accuracy, last: mean_j R[T, j] (Lopez-Paz & Ranzato 2017; Zheng et al. 2023)
    - forgetting: mean_{j<T} (max_{j≤l<T} R[l, j] − R[T, j]) (Chaudhry et al. 2018)
    - bwt: mean_{j<T} (R[T, j] − R[j, j]) (Lopez-Paz & Ranzato 2017)
    - fwt: mean_{j≥2} (R[j−1, j] − zero_shot[j]) (Lopez-Paz & Ranzato 2017)
    - transfer: mean_{j≥2} mean_{1≤i<j} R[i, j] (Zheng et al. 2023)

    Args:
        accuracy: R as fractions, row by row. If it is not square (joint training, a single merge), only the last row
            counts.
        zero_shot: accuracy of θ₀ on each task.

    Returns:
        The values above, NaN where undefined (T = 1, or R is not square).
    """
    R = np.asarray(accuracy, dtype=np.float64)
    rows, tasks = R.shape
    last = float(R[-1].mean())
    summary = dict.fromkeys(("forgetting", "bwt", "fwt", "transfer"), float("nan"))
    if rows == tasks and tasks > 1:
        past = range(tasks - 1)
        later = range(1, tasks)
        summary["forgetting"] = float(np.mean([R[j:-1, j].max() - R[-1, j] for j in past]))
        summary["bwt"] = float(np.mean([R[-1, j] - R[j, j] for j in past]))
        summary["fwt"] = float(np.mean([R[j - 1, j] - zero_shot[j] for j in later]))
        summary["transfer"] = float(np.mean([R[:j, j].mean() for j in later]))
    return {"average_accuracy": last, "last": last, **summary}

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


def across_domains(accuracy: ArrayLike) -> dict[str, float]:
    """Return the three measures of MTIL (Zheng et al. 2023) for an accuracy matrix R [T, T], T > 1.

    - transfer: mean_{j≥2} mean_{1≤i<j} R[i, j], the accuracy on a data set before it is trained
    - avg: mean_{i, j} R[i, j], over all steps and data sets
    - last: mean_j R[T, j]

    X-TAIL (Xu et al. 2024) takes the same of accuracies among the classes of all data sets. `summarize` has the rest.

    Args:
        accuracy: R as fractions, row by row.
    """
    R = np.asarray(accuracy, dtype=np.float64)
    transfer = [R[:j, j].mean() for j in range(1, len(R))]
    return {"transfer": float(np.mean(transfer)), "avg": float(R.mean()), "last": float(R[-1].mean())}

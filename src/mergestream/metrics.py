"""Metrics of continual learning: accuracies from counts, and the summary of an accuracy matrix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from math import isnan
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike
from typing_extensions import NotRequired


class Counts(TypedDict):
    """Numbers of samples and of correct predictions of one encoder, one entry per task, then one per class.

    An entry is None where it was not measured; see `still_known`.

    - total: samples
    - agnostic: correct among all classes
    - aware: correct among the classes of the sample's own task
    - seen_correct: correct among the classes of the tasks seen so far; 0 for later tasks
    - class_total: samples of each class; None in records of versions that did not count them
    - class_correct: correct among all classes, of each class; None likewise
    """

    total: list[int]
    agnostic: list[int]
    aware: list[int]
    seen_correct: list[int]
    class_total: NotRequired[list[int] | None]
    class_correct: NotRequired[list[int] | None]


@dataclass(frozen=True)
class ClassMeans:
    """Means of the accuracies on single classes, as fractions, all among all classes.

    Args:
        macro: the mean over all classes that have samples.
        seen, unseen: the means over the classes that are part of a task seen so far, and over the others; None if there
            are none.
        harmonic: 2 · seen · unseen / (seen + unseen) (Xian et al. 2018); 0 if both are 0, None if one is None.
    """

    macro: float
    seen: float | None
    unseen: float | None
    harmonic: float | None


@dataclass(frozen=True)
class Row:
    """Accuracies of one encoder as fractions: one row of the accuracy matrix.

    Args:
        task_agnostic, task_aware: accuracy on each task, among all classes and among the classes of the task; NaN where
            it is unknown.
        overall: accuracy on all samples, among all classes; NaN if it is unknown for a task.
        seen: accuracy on the samples of the tasks seen so far, among their classes; None before the first task.
        classes: means over classes; None if the samples of each class were not counted.
    """

    task_agnostic: list[float]
    task_aware: list[float]
    overall: float
    seen: float | None
    classes: ClassMeans | None = None


def class_means(total: Sequence[int], correct: Sequence[int], seen: Iterable[int]) -> ClassMeans:
    """Return the means over classes of one encoder.

    Args:
        total: samples of each class; a class without samples has no accuracy and counts nowhere.
        correct: correct predictions of each class.
        seen: ids of the classes seen so far.
    """
    known = set(seen)
    accuracy = {c: k / n for c, (k, n) in enumerate(zip(correct, total, strict=True)) if n}

    def mean(values: list[float]) -> float | None:
        return sum(values) / len(values) if values else None

    of_seen = mean([value for c, value in accuracy.items() if c in known])
    of_unseen = mean([value for c, value in accuracy.items() if c not in known])
    harmonic = None
    if of_seen is not None and of_unseen is not None:
        harmonic = 2 * of_seen * of_unseen / (of_seen + of_unseen) if of_seen + of_unseen else 0.0
    return ClassMeans(sum(accuracy.values()) / len(accuracy), of_seen, of_unseen, harmonic)


def row(counts: Counts, seen: int, heads: Sequence[Sequence[int]] = ()) -> Row:
    """Return the accuracies of an encoder that has been trained on the first `seen` tasks.

    Args:
        counts: of the encoder.
        seen: the number of these tasks.
        heads: class ids of each task; without them, there are no means over classes.
    """
    total = counts["total"]
    classes, correct = counts.get("class_total"), counts.get("class_correct")

    def fractions(correct: Sequence[int | None]) -> list[float]:
        return [c / n if n and c is not None else float("nan") for c, n in zip(correct, total, strict=True)]

    def fraction(correct: Sequence[int | None], of: Sequence[int | None]) -> float:
        known = [(c, n) for c, n in zip(correct, of, strict=True) if c is not None and n is not None]
        count = sum(n for _, n in known)
        return sum(c for c, _ in known) / count if count and len(known) == len(of) else float("nan")

    of_seen = fraction(counts["seen_correct"][:seen], total[:seen])
    return Row(
        task_agnostic=fractions(counts["agnostic"]),
        task_aware=fractions(counts["aware"]),
        overall=fraction(counts["agnostic"], total),
        seen=None if isnan(of_seen) else of_seen,
        classes=class_means(classes, correct, chain.from_iterable(heads[:seen]))
        if heads and classes and correct
        else None,
    )


def still_known(counts: Counts, seen: int, tasks: int) -> Counts:
    """Return what is known of an encoder that is gone, after tasks have been added to the stream.

    On the tasks that it had seen, accuracies among the classes of one task, or of those tasks, stay as they are. All
    else is None: there may be other classes and images now.

    Args:
        counts: as they were measured.
        seen: number of tasks that the encoder has been trained on.
        tasks: number of tasks now.
    """
    lacking: list[None] = [None] * (tasks - seen)
    return {
        "total": [*counts["total"][:seen], *lacking],  # type: ignore[list-item]
        "agnostic": [None] * tasks,  # type: ignore[list-item]
        "aware": [*counts["aware"][:seen], *lacking],  # type: ignore[list-item]
        "seen_correct": [*counts["seen_correct"][:seen], *lacking],  # type: ignore[list-item]
        "class_total": None,
        "class_correct": None,
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

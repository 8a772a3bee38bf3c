"""From logits to the numbers of continual learning: exact counts first, then the summary of the accuracy matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric


class TaskAccuracy(Metric):
    """Correct predictions per task, counted from one pass over the test set of all tasks.

    Task-agnostic: argmax over all classes. Task-aware: argmax over the classes of the sample's own task. Seen:
    samples and classes of the first `seen` tasks only. All states are integers, so that the sum over processes is
    exact.

    Args:
        task_classes: class ids of each task.
        num_classes: columns of the logits.
        seen: how many tasks count as seen.
    """

    full_state_update = False
    allowed_TC: Tensor
    seen_C: Tensor
    total: Tensor
    agnostic: Tensor
    aware: Tensor
    seen_correct: Tensor

    def __init__(self, task_classes: Sequence[Sequence[int]], num_classes: int, seen: int):
        super().__init__()
        allowed_TC = torch.zeros(len(task_classes), num_classes, dtype=torch.bool)
        for row, classes in zip(allowed_TC, task_classes, strict=True):
            row[list(classes)] = True
        self.seen = seen
        self.register_buffer("allowed_TC", allowed_TC, persistent=False)
        self.register_buffer("seen_C", allowed_TC[:seen].any(0), persistent=False)
        for name in ("total", "agnostic", "aware", "seen_correct"):
            self.add_state(name, torch.zeros(len(task_classes), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits_BC: Tensor, labels_B: Tensor, tasks_B: Tensor) -> None:
        """Count a batch: logits [B, C], class ids [B], tasks [B]."""

        def count(correct_B: Tensor) -> Tensor:
            return torch.bincount(tasks_B[correct_B], minlength=len(self.total))

        def correct(allowed: Tensor) -> Tensor:
            return logits_BC.masked_fill(~allowed, -torch.inf).argmax(-1) == labels_B

        self.total += torch.bincount(tasks_B, minlength=len(self.total))
        self.agnostic += count(logits_BC.argmax(-1) == labels_B)
        self.aware += count(correct(self.allowed_TC[tasks_B]))
        if self.seen:
            self.seen_correct += count(correct(self.seen_C) & (tasks_B < self.seen))

    def compute(self) -> dict[str, list[int]]:
        """Counts per task: total, agnostic, aware, seen_correct."""
        return {name: getattr(self, name).tolist() for name in ("total", "agnostic", "aware", "seen_correct")}


@dataclass(frozen=True)
class Row:
    """What one encoder achieves, as fractions.

    Args:
        task_agnostic, task_aware: per task, among all classes and among the classes of the task.
        overall: over all samples, among all classes.
        seen: over the samples of the tasks seen so far, among their classes; None before the first.
    """

    task_agnostic: list[float]
    task_aware: list[float]
    overall: float
    seen: float | None


def row(counts: dict[str, list[int]], seen: int) -> Row:
    """Fractions from the counts of `TaskAccuracy`, of an encoder that has seen the first `seen` tasks."""
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


def summarize(accuracy: Sequence[Sequence[float]], zero_shot: Sequence[float]) -> dict[str, float]:
    """Summary of an accuracy matrix R [T, T]; R[i, j] is the accuracy on task j after task i, both from 1.

    average_accuracy, last   mean_j R[T, j]                              (Lopez-Paz & Ranzato 2017; Zheng et al. 2023)
    forgetting               mean_{j<T} (max_{j≤l<T} R[l, j] − R[T, j])  (Chaudhry et al. 2018)
    bwt                      mean_{j<T} (R[T, j] − R[j, j])              (Lopez-Paz & Ranzato 2017)
    fwt                      mean_{j≥2} (R[j−1, j] − zero_shot[j])       (Lopez-Paz & Ranzato 2017)
    transfer                 mean_{j≥2} mean_{1≤i<j} R[i, j]             (Zheng et al. 2023)

    Args:
        accuracy: R as fractions, row by row. A matrix of another number of rows (joint training, one merge) has
            only its last row to offer.
        zero_shot: accuracy of θ₀ on each task.

    Returns:
        The values above; those that are not defined (T = 1, or no square matrix) are NaN.
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

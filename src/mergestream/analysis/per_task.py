"""Accuracy task by task, before and after merging (Marczak et al. 2024, supplement, Fig. 2)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mergestream.analysis.subject import Subject
from mergestream.display.plots import COLOURS, axes


def per_task(subject: Subject) -> tuple[pd.DataFrame, Figure]:
    """Task-agnostic accuracy on every task: of θ₀, of the last task's encoder, and of the merge of all.

    Args:
        subject: a run, with the ``strategy`` and ``lambda`` of its config.

    Returns:
        task, name, model (zero-shot, last task or joint, merged), task_agnostic, task_aware.
    """
    last_name = "joint" if subject.method.data == "all" else "last task"
    names = ("zero-shot", last_name, f"{subject.strategy.name}, λ = {subject.scale:g}")
    last, merged = subject.task_vector(-1), subject.merged()
    models = (subject.accuracy({}), subject.accuracy(last), subject.accuracy(merged, subject.scale))
    rows = [
        (task + 1, title, name, found.task_agnostic[task], found.task_aware[task])
        for name, found in zip(names, models, strict=True)
        for task, title in enumerate(subject.task_names)
    ]
    frame = pd.DataFrame(rows, columns=["task", "name", "model", "task_agnostic", "task_aware"])
    figure, (axis,) = axes(1, 1, (max(6, 0.5 * len(subject.task_names)), 4))
    places, width = np.arange(1, len(subject.task_names) + 1), 0.8 / len(names)
    for index, (colour, name) in enumerate(zip(COLOURS, names, strict=False)):
        values = 100 * frame[frame["model"] == name]["task_agnostic"]
        axis.bar(places + (index - 1) * width, values, width, color=colour, label=name)
    axis.set(xlabel="task", ylabel="accuracy among all classes (%)", xticks=places, ylim=(0, 100))
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return frame, figure

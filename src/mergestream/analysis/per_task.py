"""Accuracy on each task before and after merging (Marczak et al. 2024, supplement, Fig. 2)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mergestream.analysis.subject import Subject
from mergestream.display.plots import COLOURS, subplots
from mergestream.strategies.strategy import BoundStrategy


def per_task(subject: Subject, *, strategy: BoundStrategy, scale: float) -> tuple[pd.DataFrame, Figure]:
    """Measure the accuracy on each task: of θ₀, of the encoder of the last task, and of the merged encoder.

    Args:
        subject: a run.
        strategy: merges the task vectors.
        scale: λ.

    Returns:
        A table of task, name (of the task), model (zero-shot; last task or joint; the merge), task_agnostic,
        task_aware; and its figure.
    """
    last_name = "joint" if subject.method.data == "all" else "last task"
    last, merged = subject.task_vector(-1), subject.merged(strategy)  # before the data are loaded
    models = {
        "zero-shot": subject.accuracy({}),
        last_name: subject.accuracy(last),
        f"{strategy.strategy.name}, λ = {scale:g}": subject.accuracy(merged, scale),
    }
    rows = [
        (task + 1, name, model, found.task_agnostic[task], found.task_aware[task])
        for model, found in models.items()
        for task, name in enumerate(subject.task_names)
    ]
    frame = pd.DataFrame(rows, columns=["task", "name", "model", "task_agnostic", "task_aware"])
    return frame, _draw(frame)


def _draw(frame: pd.DataFrame) -> Figure:
    tasks, models = frame["task"].unique(), frame["model"].unique()
    figure, (axes,) = subplots(1, 1, (max(6, 0.5 * len(tasks)), 4))
    width = 0.8 / len(models)
    for index, (colour, model) in enumerate(zip(COLOURS, models, strict=False)):
        values = 100 * frame[frame["model"] == model]["task_agnostic"]
        axes.bar(np.array(tasks) + (index - 1) * width, values, width, color=colour, label=model)
    axes.set(xlabel="task", ylabel="accuracy among all classes (%)", xticks=tasks, ylim=(0, 100))
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure

"""Accuracy on each class, and which class is taken for which, before and after merging."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mergestream.analysis.subject import Subject
from mergestream.display.plots import subplots
from mergestream.strategies.strategy import BoundStrategy

NAMED = 26  # classes up to which their names fit beside the matrix
NAME_LENGTH = 16


def confusion(subject: Subject, *, strategy: BoundStrategy, scale: float) -> tuple[pd.DataFrame, Figure]:
    """Count the predictions of each class: of θ₀, of the encoder of the last task, and of the merged encoder.

    Args:
        subject: a run.
        strategy: merges the task vectors.
        scale: λ.

    Returns:
        A table of model (zero-shot; last task or joint; the merge), class (its id), name, task (the first that has it),
        images, correct, accuracy, and ``predicted 0`` … ``predicted C−1``, the images that were taken for each class;
        and its figure. Classes are in the order of the stream.
    """
    last_name = "joint" if subject.method.data == "all" else "last task"
    last, merged = subject.task_vector(-1), subject.merged(strategy)  # before the data are loaded
    matrices = {
        "zero-shot": subject.confusion({}),
        last_name: subject.confusion(last),
        f"{strategy.strategy.name}, λ = {scale:g}": subject.confusion(merged, scale),
    }
    classes = _classes(subject.run.stream()["tasks"])
    frame = pd.concat([_table(model, matrix_CC, classes) for model, matrix_CC in matrices.items()], ignore_index=True)
    return frame, _draw(frame, classes)


def _classes(tasks: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return class, name and task of every class, in the order of the stream."""
    of_tasks = [
        pd.DataFrame({"class": task["classes"], "name": task["class_names"], "task": t + 1})
        for t, task in enumerate(tasks)
    ]
    return pd.concat(of_tasks).drop_duplicates("class", ignore_index=True)


def _table(model: str, matrix_CC: np.ndarray, classes: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of one model.

    Args:
        model: its name.
        matrix_CC: images by class and prediction.
        classes: from `_classes`.
    """
    matrix_CC = matrix_CC[classes["class"]]
    images, correct = matrix_CC.sum(1), matrix_CC[np.arange(len(classes)), classes["class"]]
    accuracy = np.divide(correct, images, out=np.full(len(classes), np.nan), where=images > 0)
    table = classes.assign(images=images, correct=correct, accuracy=accuracy)
    table.insert(0, "model", model)
    predicted = pd.DataFrame(matrix_CC, columns=[f"predicted {c}" for c in range(matrix_CC.shape[1])])
    return pd.concat([table, predicted], axis=1)


def _draw(frame: pd.DataFrame, classes: pd.DataFrame) -> Figure:
    models, columns = frame["model"].unique(), [f"predicted {c}" for c in classes["class"]]
    named = len(classes) <= NAMED
    side = 0.22 * len(classes) + 1.5 if named else 4.0
    figure, axes = subplots(1, len(models), (len(models) * max(3.2, side), max(3.2, side) + 0.4))
    for number, (ax, model) in enumerate(zip(axes, models, strict=True)):
        lines = frame[frame["model"] == model]
        shares = 100 * lines[columns].to_numpy() / lines[["images"]].where(lines[["images"]] > 0).to_numpy()
        image = ax.imshow(shares, cmap="viridis", vmin=0, vmax=100, interpolation="nearest")
        mean = 100 * lines["accuracy"].mean()
        ax.set_title(f"{model}\nmean over classes {mean:.1f} %", fontsize=10)
        ax.set_xlabel("predicted class")
        _mark(ax, classes, labelled=named and number == 0)
    axes[0].set_ylabel("class, in the order of the stream")
    figure.colorbar(image, ax=axes, label="share of the images of a class (%)", shrink=0.8)
    return figure


def _mark(axes: Axes, classes: pd.DataFrame, labelled: bool) -> None:
    """Draw lines between the tasks, and write the names of the classes if they fit."""
    for end in list(accumulate(classes.groupby("task", sort=False).size()))[:-1]:
        axes.axhline(end - 0.5, color="white", linewidth=0.5)
        axes.axvline(end - 0.5, color="white", linewidth=0.5)
    axes.set_xticks([])
    names = [str(name)[:NAME_LENGTH] for name in classes["name"]] if labelled else []
    axes.set_yticks(range(len(names)), names, fontsize=7)

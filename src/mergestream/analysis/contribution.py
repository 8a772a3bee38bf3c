"""How much each task contributes to MagMax."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from mergestream.analysis.subject import Subject
from mergestream.analysis.weights import blocks_and_kinds, count_values, magmax_tasks, sum_by_weight
from mergestream.display.plots import COLOURS, subplots
from mergestream.merging.vectors import Block


def contribution(subject: Subject) -> tuple[pd.DataFrame, Figure]:
    """Count the parameters whose value MagMax takes from each task: the one that moves them furthest.

    Of equal magnitudes, the later task wins; a parameter that no task moves is won by none.

    Args:
        subject: a run.

    Returns:
        A table of weight, block, kind, task, parameters (of the weight), won (how many of them the task wins); and its
        figure.
    """
    with subject.vectors() as vectors:
        blocks, tasks = vectors.blocks(vectors.encoder_names), len(vectors)

        def count(_block: Block, _base: Tensor, taus: Tensor) -> np.ndarray:
            return count_values(magmax_tasks(taus.flatten(1)), tasks)

        won = sum_by_weight(blocks, vectors.map(count, blocks))
    where = blocks_and_kinds(won)
    rows = [
        (name, *where[name], task + 1, size, number)
        for name, (size, numbers) in won.items()
        for task, number in enumerate(numbers.tolist())
    ]
    frame = pd.DataFrame(rows, columns=["weight", "block", "kind", "task", "parameters", "won"])
    frame = frame.astype({"block": "Int64"})
    return frame, _draw(frame)


def _draw(frame: pd.DataFrame) -> Figure:
    figure, (axes,) = subplots(1, 1, (6, 4))
    won = frame.groupby("task")["won"].sum()
    share = 100 * won / frame[frame["task"] == 1]["parameters"].sum()
    axes.bar(share.index, share, color=COLOURS[0])
    axes.axhline(100 / len(share), color=COLOURS[-1], linestyle=":", linewidth=1, label="equal shares")
    axes.legend(frameon=False)
    axes.set(xlabel="task", ylabel="parameters won (%)", xticks=share.index)
    return figure

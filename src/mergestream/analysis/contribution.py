"""Which task's values MagMax takes."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from mergestream.analysis.subject import Subject, counted, kind_of, winners
from mergestream.plots import COLOURS, axes


def contribution(subject: Subject) -> tuple[pd.DataFrame, Figure]:
    """Share of the parameters that each task wins: its magnitude is the largest, the later task's of equals.

    Args:
        subject: a run.

    Returns:
        weight, block, kind, task, parameters (of the weight), won; parameters that no task moves are won by none.
    """
    with subject.vectors() as vectors:
        blocks, tasks = vectors.blocks(vectors.encoder_names), len(vectors)

        def count(_block, _: Tensor, taus: Tensor) -> np.ndarray:
            return counted(winners(taus.flatten(1)), tasks)

        found = vectors.map(count, blocks)
    won: dict[str, np.ndarray] = {}
    size: dict[str, int] = {}
    for block, numbers in zip(blocks, found, strict=True):
        won[block.name] = won.get(block.name, 0) + numbers
        size[block.name] = size.get(block.name, 0) + block.size
    rows = [
        (name, *kind_of(name), task + 1, size[name], int(number))
        for name, numbers in won.items()
        for task, number in enumerate(numbers)
    ]
    frame = pd.DataFrame(rows, columns=["weight", "block", "kind", "task", "parameters", "won"])
    frame = frame.astype({"block": "Int64"})
    figure, (axis,) = axes(1, 1, (6, 4))
    share = frame.groupby("task")["won"].sum() / sum(size.values())
    axis.bar(share.index, 100 * share, color=COLOURS[0])
    axis.axhline(100 / tasks, color=COLOURS[-1], linestyle=":", linewidth=1)
    axis.set(xlabel="task", ylabel="parameters won (%)", xticks=share.index)
    return frame, figure

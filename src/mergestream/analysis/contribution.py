"""Which task's values MagMax takes."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from mergestream.analysis.subject import Subject, counted, per_weight, places, winners
from mergestream.display.plots import COLOURS, axes


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

        won = per_weight(blocks, vectors.map(count, blocks))
    place = places(won)
    rows = [
        (name, *place[name], task + 1, size, number)
        for name, (size, numbers) in won.items()
        for task, number in enumerate(numbers.tolist())
    ]
    frame = pd.DataFrame(rows, columns=["weight", "block", "kind", "task", "parameters", "won"])
    frame = frame.astype({"block": "Int64"})
    figure, (axis,) = axes(1, 1, (6, 4))
    share = frame.groupby("task")["won"].sum() / sum(block.size for block in blocks)
    axis.bar(share.index, 100 * share, color=COLOURS[0])
    axis.axhline(100 / tasks, color=COLOURS[-1], linestyle=":", linewidth=1, label="equal shares")
    axis.legend(frameon=False)
    axis.set(xlabel="task", ylabel="parameters won (%)", xticks=share.index)
    return frame, figure

"""How task vectors' values are spread, and which of them MagMax takes (Marczak et al. 2024, supplement, Fig. 4)."""

from __future__ import annotations

from threading import Lock

import numpy as np
import pandas as pd
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from mergestream.analysis.subject import Subject, winners
from mergestream.display.plots import axes
from mergestream.runtime.rules import require_whole


def distribution(subject: Subject, *, bins: int = 101) -> tuple[pd.DataFrame, Figure]:
    """Histograms of every task vector, and of the values that MagMax takes from it.

    Args:
        subject: a run.
        bins: of equal width between minus and plus the largest magnitude of all.

    Returns:
        task, left, right (edges of the bin), task_vector, contribution (numbers of parameters).

    Raises:
        UserError: if bins is not a whole number from 2 to 100,000.
    """
    require_whole("analysis.bins", bins, 2, 100_000)
    with subject.vectors() as vectors:
        blocks = vectors.blocks(vectors.encoder_names)
        largest = max(vectors.map(lambda _block, _, taus: taus.abs().max().item(), blocks)) or 1.0

        counts, lock = np.zeros((len(vectors), 2, bins), dtype=np.int64), Lock()

        def count(_block, _: Tensor, taus: Tensor) -> None:
            flat = taus.flatten(1)
            won = winners(flat)
            place = ((flat / largest + 1) * (bins / 2)).long().clamp(0, bins - 1)
            for t in range(len(flat)):
                for which, values in enumerate((place[t], place[t][won == t])):
                    found = torch.bincount(values, minlength=bins).numpy()
                    with lock:
                        counts[t, which] += found

        vectors.map(count, blocks)
    edges = np.linspace(-largest, largest, bins + 1)
    frame = pd.DataFrame(
        [
            (task + 1, edges[i], edges[i + 1], *counts[task, :, i].tolist())
            for task in range(len(counts))
            for i in range(bins)
        ],
        columns=["task", "left", "right", "task_vector", "contribution"],
    )
    figure, found = axes(1, 2, (10, 4))
    for axis, measure, title in zip(
        found, ("task_vector", "contribution"), ("each task vector", "what MagMax takes of it"), strict=True
    ):
        for task, lines in frame.groupby("task"):
            colour = colormaps["viridis"]((task - 1) / max(1, len(counts) - 1) * 0.9)
            axis.stairs(lines[measure], edges, color=colour, label=f"task {task}")
        axis.set(xlabel="τ", ylabel="parameters", yscale="symlog", title=title)
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.yaxis.set_major_formatter("{x:,.0f}")
    ends = axis.get_legend_handles_labels() if len(counts) <= 10 else _ends(*axis.get_legend_handles_labels())
    axis.legend(*ends, frameon=False, fontsize=7)
    return frame, figure


def _ends(handles: list, labels: list[str]) -> tuple[list, list[str]]:
    """The first and the last of many, between which the colours go from dark to bright."""
    return [handles[0], handles[-1]], [labels[0], labels[-1]]

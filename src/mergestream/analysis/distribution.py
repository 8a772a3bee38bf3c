"""How the values of task vectors are spread, and which MagMax takes (Marczak et al. 2024, supplement, Fig. 4)."""

from __future__ import annotations

from threading import Lock

import numpy as np
import pandas as pd
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from mergestream.analysis.subject import Subject
from mergestream.analysis.weights import magmax_tasks
from mergestream.display.plots import subplots
from mergestream.merging.vectors import Block, TaskVectors
from mergestream.runtime.rules import require_whole


def distribution(subject: Subject, *, bins: int = 101) -> tuple[pd.DataFrame, Figure]:
    """Compute histograms of every task vector and of the values that MagMax takes from it.

    Args:
        subject: a run.
        bins: number of bins, of equal width, between minus and plus the largest magnitude of all task vectors.

    Returns:
        A table of task, left, right (edges of the bin), task_vector, contribution (numbers of parameters); and its
        figure.

    Raises:
        UserError: if bins is not a whole number from 2 to 100,000.
    """
    require_whole("analysis.bins", bins, 2, 100_000)
    with subject.vectors() as vectors:
        largest, counts = _histograms(vectors, bins)
    edges = np.linspace(-largest, largest, bins + 1)
    rows = [
        (task + 1, edges[i], edges[i + 1], *counts[task, :, i].tolist())
        for task in range(len(counts))
        for i in range(bins)
    ]
    frame = pd.DataFrame(rows, columns=["task", "left", "right", "task_vector", "contribution"])
    return frame, _draw(frame, edges)


def _histograms(vectors: TaskVectors, bins: int) -> tuple[float, np.ndarray]:
    """Return the largest magnitude and the numbers of parameters, int64 [T, 2, bins]: all, and those MagMax takes."""
    blocks = vectors.blocks(vectors.encoder_names)

    def magnitude(_block: Block, _base: Tensor, taus: Tensor) -> float:
        return taus.abs().max().item()

    largest = max(vectors.map(magnitude, blocks)) or 1.0
    counts, lock = np.zeros((len(vectors), 2, bins), dtype=np.int64), Lock()

    def count(_block: Block, _base: Tensor, taus: Tensor) -> None:
        flat = taus.flatten(1)
        taken = magmax_tasks(flat)
        indices = ((flat / largest + 1) * (bins / 2)).long().clamp(0, bins - 1)
        for t in range(len(flat)):
            for which, values in enumerate((indices[t], indices[t][taken == t])):
                found = torch.bincount(values, minlength=bins).numpy()
                with lock:
                    counts[t, which] += found

    vectors.map(count, blocks)
    return largest, counts


def _draw(frame: pd.DataFrame, edges: np.ndarray) -> Figure:
    figure, found = subplots(1, 2, (10, 4))
    tasks, titles = frame["task"].max(), ("each task vector", "what MagMax takes of it")
    for axes, measure, title in zip(found, ("task_vector", "contribution"), titles, strict=True):
        for task, lines in frame.groupby("task"):
            colour = colormaps["viridis"]((task - 1) / max(1, tasks - 1) * 0.9)
            axes.stairs(lines[measure], edges, color=colour, label=f"task {task}")
        axes.set(xlabel="τ", ylabel="parameters", yscale="symlog", title=title)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter("{x:,.0f}")
    handles, labels = found[-1].get_legend_handles_labels()
    if tasks > 10:  # the colours run from dark to bright, so the ends say enough
        handles, labels = [handles[0], handles[-1]], [labels[0], labels[-1]]
    found[-1].legend(handles, labels, frameon=False, fontsize=7)
    return figure

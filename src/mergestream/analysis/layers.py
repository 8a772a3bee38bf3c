"""Where in the network task vectors are large (Marczak et al. 2024, supplement, Fig. 3)."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from mergestream.analysis.subject import Subject
from mergestream.analysis.weights import blocks_and_kinds, sum_by_weight
from mergestream.display.plots import COLOURS, integer_ticks, subplots
from mergestream.merging.vectors import Block


def layers(subject: Subject) -> tuple[pd.DataFrame, Figure]:
    """Compute the mean |τ_t| of each weight; the figure shows it by kind of weight and by block.

    Args:
        subject: a run.

    Returns:
        A table of task, weight, block (empty outside the blocks), kind, parameters, mean_magnitude; and its figure.
    """
    with subject.vectors() as vectors:
        blocks = vectors.blocks(vectors.encoder_names)

        def total(_block: Block, _base: Tensor, taus: Tensor) -> np.ndarray:
            # One task at a time: a float64 copy of all would take twice their memory.
            return np.array([tau.abs_().sum(dtype=torch.float64) for tau in taus.flatten(1)])

        sums = sum_by_weight(blocks, vectors.map(total, blocks))
    where = blocks_and_kinds(sums)
    rows = [
        (task + 1, name, *where[name], size, magnitude / size)
        for name, (size, magnitudes) in sums.items()
        for task, magnitude in enumerate(magnitudes.tolist())
    ]
    columns = ["task", "weight", "block", "kind", "parameters", "mean_magnitude"]
    frame = pd.DataFrame(rows, columns=columns).astype({"block": "Int64"})
    return frame, _draw(frame)


def _draw(frame: pd.DataFrame) -> Figure:
    figure, (left, right) = subplots(1, 2, (11, 4.5))
    sums = frame.assign(sum=frame["mean_magnitude"] * frame["parameters"])
    by_kind = _means(sums, "kind").sort_values()
    left.barh(by_kind.index, by_kind, color=COLOURS[0])
    left.tick_params(axis="y", labelsize=7)
    left.set(xlabel="mean |τ| over tasks")

    inside = sums.dropna(subset="block")
    matrices = inside[inside["kind"].str.contains("weight") & ~inside["kind"].str.startswith("ln")]
    largest = matrices.groupby("kind")["parameters"].sum().nlargest(len(COLOURS)).index
    for colour, kind in zip(COLOURS, sorted(largest), strict=False):
        means = _means(matrices[matrices["kind"] == kind], "block")
        right.plot(means.index + 1, means, marker="o", markersize=3, color=colour, label=kind)
    right.set(xlabel="block", ylabel="mean |τ| over tasks", ylim=(0, None))
    integer_ticks(right.xaxis)
    right.legend(frameon=False, fontsize=8)
    return figure


def _means(sums: pd.DataFrame, key: str) -> pd.Series:
    """Return the mean magnitude of all parameters of each group."""
    groups = sums.groupby(key)[["sum", "parameters"]].sum()
    return groups["sum"] / groups["parameters"]

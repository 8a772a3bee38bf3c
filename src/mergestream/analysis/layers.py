"""Where in the network a task vector is large (Marczak et al. 2024, supplement, Fig. 3)."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from mergestream.analysis.subject import Subject, per_weight, places
from mergestream.display.plots import COLOURS, axes


def layers(subject: Subject) -> tuple[pd.DataFrame, Figure]:
    """Mean |τ_t| of each weight, by its kind and by its block.

    Args:
        subject: a run.

    Returns:
        task, weight, block (of the transformer; empty outside), kind, parameters, mean_magnitude.
    """
    with subject.vectors() as vectors:
        blocks = vectors.blocks(vectors.encoder_names)

        def total(_block, _: Tensor, taus: Tensor) -> np.ndarray:
            # One at a time: a float64 copy of all of them is twice as large as they are.
            return np.array([tau.abs_().sum(dtype=torch.float64) for tau in taus.flatten(1)])

        sums = per_weight(blocks, vectors.map(total, blocks))
    place = places(sums)
    rows = [
        (task + 1, name, *place[name], size, magnitude / size)
        for name, (size, found) in sums.items()
        for task, magnitude in enumerate(found.tolist())
    ]
    columns = ["task", "weight", "block", "kind", "parameters", "mean_magnitude"]
    frame = pd.DataFrame(rows, columns=columns).astype({"block": "Int64"})
    figure, (left, right) = axes(1, 2, (11, 4.5))
    means = frame.assign(sum=frame["mean_magnitude"] * frame["parameters"])
    kinds = means.groupby("kind")[["sum", "parameters"]].sum()
    kinds = (kinds["sum"] / kinds["parameters"]).sort_values()
    left.barh(kinds.index, kinds, color=COLOURS[0])
    left.tick_params(axis="y", labelsize=7)
    left.set(xlabel="mean |τ| over tasks")
    inside = means.dropna(subset="block")
    matrices = inside[inside["kind"].str.contains("weight") & ~inside["kind"].str.startswith("ln")]
    largest = matrices.groupby("kind")["parameters"].sum().nlargest(len(COLOURS)).index
    for colour, kind in zip(COLOURS, sorted(largest), strict=False):
        of = matrices[matrices["kind"] == kind].groupby("block")[["sum", "parameters"]].sum()
        right.plot(of.index + 1, of["sum"] / of["parameters"], marker="o", markersize=3, color=colour, label=kind)
    right.set(xlabel="block", ylabel="mean |τ| over tasks", ylim=(0, None))
    right.xaxis.get_major_locator().set_params(integer=True)
    right.legend(frameon=False, fontsize=8)
    return frame, figure

"""How often task vectors disagree in sign (Marczak et al. 2024, Fig. 2; supplement, Fig. 1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from mergestream.analysis.subject import Subject
from mergestream.display.plots import COLOURS, integer_ticks, plot_mean, subplots
from mergestream.merging.vectors import Block, TaskVectors
from mergestream.runtime.rules import require_fraction
from mergestream.strategies.ties import thresholds, trimmed

COLUMNS = ["method", "seed", "tasks", "parameters", "surviving", "conflicting", "share", "share_of_surviving"]


def sign_conflicts(
    subject: Subject,
    *,
    density: float = 0.2,
    methods: Sequence[str] = ("ind", "seq"),
    seeds: Sequence[int] | None = None,
) -> tuple[pd.DataFrame, Figure]:
    """Count the parameters that are positive in one of the first t task vectors and negative in another.

    Each task vector is first trimmed to its largest values, as `ties` does it.

    Args:
        subject: a run.
        density: share of each task vector that survives trimming.
        methods: methods to compare; the run of each must exist.
        seeds: seeds whose mean and deviation the figure shows; None is the seed of the run.

    Returns:
        A table of method (and what else its run differs in), seed, tasks (t), parameters, surviving (in at least two
        of the t task vectors), conflicting, share (of all parameters), share_of_surviving; and its figure.

    Raises:
        UserError: if the density is not in (0, 1], or the runs cannot be compared.
    """
    require_fraction("analysis.density", density)
    by_seed = {seed: other.with_methods(methods) for seed, other in subject.with_seeds(seeds).items()}
    rows = []
    for seed, label, other in [(seed, *item) for seed, others in by_seed.items() for item in others.items()]:
        with other.vectors() as vectors:
            total = sum(block.size for block in vectors.blocks(vectors.encoder_names))
            counts = _count(vectors, density).tolist()
        for t, (surviving, conflicting) in enumerate(counts[1:], start=2):
            shares = conflicting / total, conflicting / surviving if surviving else float("nan")
            rows.append((label, seed, t, total, surviving, conflicting, *shares))
    frame = pd.DataFrame(rows, columns=COLUMNS)
    return frame, _draw(frame)


def _count(vectors: TaskVectors, density: float) -> np.ndarray:
    """Return the numbers of parameters that survive twice and that conflict in the first t tasks, int64 [T, 2]."""
    limits = thresholds(vectors, density, "encoder")

    def count(block: Block, _base: Tensor, taus: Tensor) -> list[list[int]]:
        kept = trimmed(taus, limits[block.name])
        positive, negative = (kept > 0).int().cumsum(0), (kept < 0).int().cumsum(0)
        surviving = (positive + negative > 1).flatten(1).sum(1)
        conflicting = ((positive > 0) & (negative > 0)).flatten(1).sum(1)
        # Plain numbers: small tensors, left between the large ones of a block, would fragment the heap.
        return [surviving.tolist(), conflicting.tolist()]

    return np.sum(vectors.map(count, vectors.blocks(vectors.encoder_names)), axis=0).T


def _draw(frame: pd.DataFrame) -> Figure:
    figure, found = subplots(1, 2, (9, 3.6))
    titles = {"share": "of all parameters", "share_of_surviving": "of those that survive in two or more"}
    for axes, (measure, title) in zip(found, titles.items(), strict=True):
        for colour, (method, lines) in zip(COLOURS, frame.groupby("method", sort=False), strict=False):
            shares = lines.pivot(index="seed", columns="tasks", values=measure)
            plot_mean(axes, shares.columns, shares.to_numpy(), colour, method)
        axes.set(xlabel="tasks", ylabel="sign conflicts (%)", ylim=(0, None))
        axes.set_title(title, fontsize=10)
        integer_ticks(axes.xaxis)
    found[0].legend(frameon=False)
    return figure

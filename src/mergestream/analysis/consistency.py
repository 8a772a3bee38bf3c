"""Whether large parameters are those that all tasks move in the same direction (Marczak et al. 2024, Fig. 4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from mergestream.analysis.subject import Subject
from mergestream.analysis.weights import count_values
from mergestream.display.plots import COLOURS, integer_ticks, subplots
from mergestream.merging.vectors import Block, TaskVectors


def consistency(subject: Subject, *, methods: Sequence[str] = ("ind", "seq")) -> tuple[pd.DataFrame, Figure]:
    """Measure how the magnitude of MagMax's task vector depends on the number of consistent updates.

    A parameter has max(#{t: update > 0}, #{t: update < 0}) consistent updates. The update of task t is θ_t − θ_{t−1}
    if each task continues from the previous one, else θ_t − θ₀.

    Args:
        subject: a run.
        methods: methods to compare; the run of each must exist.

    Returns:
        A table of method (and what else its run differs in), consistent (number of updates), parameters, share,
        mean_magnitude; and its figure.

    Raises:
        UserError: if the methods cannot be compared.
    """
    rows = []
    for label, other in subject.with_methods(methods).items():
        with other.vectors() as vectors:
            counts, sums = _count(vectors, chained=other.method.start == "previous")
        for consistent in np.flatnonzero(counts):
            size = counts[consistent]
            rows.append((label, consistent, int(size), size / counts.sum(), sums[consistent] / size))
    frame = pd.DataFrame(rows, columns=["method", "consistent", "parameters", "share", "mean_magnitude"])
    return frame, _draw(frame)


def _count(vectors: TaskVectors, chained: bool) -> np.ndarray:
    """Return the number of parameters and the sum of their magnitudes, by consistent updates, float64 [2, T + 1]."""

    def count(_block: Block, _base: Tensor, taus: Tensor) -> np.ndarray:
        flat = taus.flatten(1)
        merged = flat.abs().amax(0)
        updates = flat.diff(dim=0, prepend=torch.zeros_like(flat[:1])) if chained else flat
        consistent = torch.maximum((updates > 0).sum(0), (updates < 0).sum(0))
        sums = torch.bincount(consistent, weights=merged.double(), minlength=len(flat) + 1)
        return np.stack([count_values(consistent, len(flat) + 1).astype(float), sums.numpy()])

    return np.sum(vectors.map(count, vectors.blocks(vectors.encoder_names)), axis=0)


def _draw(frame: pd.DataFrame) -> Figure:
    figure, (left, right) = subplots(1, 2, (9, 3.6))
    for colour, (method, lines) in zip(COLOURS, frame.groupby("method", sort=False), strict=False):
        style = {"marker": "o", "markersize": 3, "color": colour, "label": method}
        left.plot(lines["consistent"], lines["mean_magnitude"], **style)
        right.plot(lines["consistent"], 100 * lines["share"], **style)
    left.set(xlabel="updates in the same direction", ylabel="mean |τ| after MagMax", ylim=(0, None))
    right.set(xlabel="updates in the same direction", ylabel="share of the parameters (%)", ylim=(0, None))
    integer_ticks(left.xaxis, right.xaxis)
    left.legend(frameon=False)
    return figure

"""How similar task vectors are."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mergestream.analysis.subject import Subject
from mergestream.display.plots import integer_ticks, subplots
from mergestream.strategies._gram import grams


def cosine(subject: Subject) -> tuple[pd.DataFrame, Figure]:
    """Compute the cosine between every two task vectors, ⟨τ_a, τ_b⟩ / (‖τ_a‖ ‖τ_b‖), in float64.

    Args:
        subject: a run.

    Returns:
        A table of a, b (tasks), cosine (NaN if a task vector is zero); and its figure.
    """
    with subject.vectors() as vectors:
        by_weight = grams(vectors)
        products = np.sum([by_weight[name].numpy() for name in vectors.encoder_names], axis=0)
    norms = np.sqrt(np.diag(products))
    with np.errstate(invalid="ignore"):
        values = products / np.outer(norms, norms)
    rows = [(a + 1, b + 1, value) for (a, b), value in np.ndenumerate(values)]
    return pd.DataFrame(rows, columns=["a", "b", "cosine"]), _draw(values)


def _draw(values: np.ndarray) -> Figure:
    """Draw the cosines [T, T] as a heat map."""
    figure, (axes,) = subplots(1, 1, (5, 4))
    ends = (0.5, len(values) + 0.5)
    image = axes.imshow(values, vmin=-1, vmax=1, cmap="RdBu_r", extent=(*ends, *ends[::-1]))
    if len(values) <= 10:
        for (i, j), value in np.ndenumerate(values):
            colour = "white" if abs(value) > 0.6 else "black"
            axes.text(j + 1, i + 1, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    axes.set(xlabel="task", ylabel="task")
    integer_ticks(axes.xaxis, axes.yaxis)
    figure.colorbar(image, ax=axes, label="cosine")
    return figure

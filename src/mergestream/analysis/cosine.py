"""How alike task vectors are."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mergestream.analysis.subject import Subject
from mergestream.display.plots import axes
from mergestream.strategies._gram import grams


def cosine(subject: Subject) -> tuple[pd.DataFrame, Figure]:
    """Cosine of the angle between every two task vectors, ⟨τ_a, τ_b⟩ / (‖τ_a‖ ‖τ_b‖), summed in float64.

    Args:
        subject: a run.

    Returns:
        a, b, cosine; nothing where a task vector is zero.
    """
    with subject.vectors() as vectors:
        by_weight = grams(vectors)
        products = np.sum([by_weight[name].numpy() for name in vectors.encoder_names], axis=0)
    norms = np.sqrt(np.diag(products))
    with np.errstate(invalid="ignore"):
        values = products / np.outer(norms, norms)
    rows = [(a + 1, b + 1, values[a, b]) for a in range(len(values)) for b in range(len(values))]
    frame = pd.DataFrame(rows, columns=["a", "b", "cosine"])
    figure, (axis,) = axes(1, 1, (5, 4))
    ends = (0.5, len(values) + 0.5)
    image = axis.imshow(values, vmin=-1, vmax=1, cmap="RdBu_r", extent=(*ends, *ends[::-1]))
    if len(values) <= 10:
        for (i, j), value in np.ndenumerate(values):
            colour = "white" if abs(value) > 0.6 else "black"
            axis.text(j + 1, i + 1, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    axis.set(xlabel="task", ylabel="task")
    for ticks in (axis.xaxis, axis.yaxis):
        ticks.get_major_locator().set_params(integer=True)
    figure.colorbar(image, ax=axis, label="cosine")
    return frame, figure

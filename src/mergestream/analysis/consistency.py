"""Whether large parameters are those that all tasks move the same way (Marczak et al. 2024, Fig. 4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from mergestream.analysis.subject import Subject, counted
from mergestream.display.plots import COLOURS, axes


def consistency(subject: Subject, *, methods: Sequence[str] = ("ind", "seq")) -> tuple[pd.DataFrame, Figure]:
    """Mean magnitude of MagMax's merged task vector, by how many tasks update the parameter in the same direction.

    The update of task t is θ_t − θ_{t−1} where a task continues from the one before, else θ_t − θ₀. A parameter has
    max(#{t: update > 0}, #{t: update < 0}) consistent updates.

    Args:
        subject: a run; the runs of the other methods lie beside it.
        methods: that are compared.

    Returns:
        method (and in what else its run differs), consistent, parameters, share, mean_magnitude.

    Raises:
        UserError: if the methods cannot be compared.
    """
    rows = []
    for method, other in subject.of_methods(methods).items():
        with other.vectors() as vectors:

            def count(_block, _: Tensor, taus: Tensor, chained: bool = other.method.start == "previous") -> np.ndarray:
                flat = taus.flatten(1)
                merged = flat.abs().amax(0)
                updates = flat.diff(dim=0, prepend=torch.zeros_like(flat[:1])) if chained else flat
                agree = torch.maximum((updates > 0).sum(0), (updates < 0).sum(0))
                sums = torch.bincount(agree, weights=merged.double(), minlength=len(flat) + 1)
                return np.stack([counted(agree, len(flat) + 1).astype(float), sums.numpy()])

            number, magnitude = np.sum(vectors.map(count, vectors.blocks(vectors.encoder_names)), axis=0)
        for consistent in np.flatnonzero(number):
            size = number[consistent]
            rows.append((method, consistent, int(size), size / number.sum(), magnitude[consistent] / size))
    frame = pd.DataFrame(rows, columns=["method", "consistent", "parameters", "share", "mean_magnitude"])
    figure, (left, right) = axes(1, 2, (9, 3.6))
    for colour, (method, lines) in zip(COLOURS, frame.groupby("method", sort=False), strict=False):
        style = {"marker": "o", "markersize": 3, "color": colour, "label": method}
        left.plot(lines["consistent"], lines["mean_magnitude"], **style)
        right.plot(lines["consistent"], 100 * lines["share"], **style)
    left.set(xlabel="updates in the same direction", ylabel="mean |τ| after MagMax", ylim=(0, None))
    right.set(xlabel="updates in the same direction", ylabel="share of the parameters (%)", ylim=(0, None))
    for axis in (left, right):
        axis.xaxis.get_major_locator().set_params(integer=True)
    left.legend(frameon=False)
    return frame, figure

"""How often task vectors pull a parameter both ways (Marczak et al. 2024, Fig. 2; supplement, Fig. 1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from mergestream.analysis.subject import Subject
from mergestream.display.plots import COLOURS, axes, band
from mergestream.runtime.rules import require_fraction
from mergestream.strategies.ties import thresholds, trimmed


def sign_conflicts(
    subject: Subject,
    *,
    density: float = 0.2,
    methods: Sequence[str] = ("ind", "seq"),
    seeds: Sequence[int] | None = None,
) -> tuple[pd.DataFrame, Figure]:
    """Share of the parameters that are positive in one task vector and negative in another, once each is trimmed to
    its largest values as `ties` does it, for the first t tasks.

    Args:
        subject: a run; the runs of the other methods lie beside it.
        density: share of each task vector that survives.
        methods: that are compared.
        seeds: of which the figure shows mean and deviation; None is the run's own.

    Returns:
        method (and in what else its run differs), seed, tasks (t), parameters, surviving (in at least two of the t),
        conflicting, share (of all parameters), share_of_surviving.

    Raises:
        UserError: if the density is not in (0, 1], or the runs cannot be compared.
    """
    require_fraction("analysis.density", density)
    rows = []
    runs = [
        (s, *pair) for s, of_seed in subject.of_seeds(seeds).items() for pair in of_seed.of_methods(methods).items()
    ]
    for seed, method, other in runs:
        with other.vectors() as vectors:
            limits = thresholds(vectors, density, "encoder")

            def count(block, _: Tensor, taus: Tensor, limits: dict = limits) -> list[list[int]]:
                kept = trimmed(taus, limits[block.name])
                positive, negative = (kept > 0).int().cumsum(0), (kept < 0).int().cumsum(0)
                conflicting = ((positive > 0) & (negative > 0)).flatten(1).sum(1)
                # As numbers: small arrays, left between the large ones of a block, keep the heap from being used again.
                return [(positive + negative > 1).flatten(1).sum(1).tolist(), conflicting.tolist()]

            blocks = vectors.blocks(vectors.encoder_names)
            surviving, conflicting = np.sum(vectors.map(count, blocks), axis=0)
            total = sum(block.size for block in blocks)
        for t in range(1, len(conflicting)):
            both, most = int(conflicting[t]), int(surviving[t])
            rows.append((method, seed, t + 1, total, most, both, both / total, both / most if most else float("nan")))
    columns = ["method", "seed", "tasks", "parameters", "surviving", "conflicting", "share", "share_of_surviving"]
    frame = pd.DataFrame(rows, columns=columns)
    figure, found = axes(1, 2, (9, 3.6))
    titles = ("of all parameters", "of those that survive in two or more")
    for axis, measure, title in zip(found, ("share", "share_of_surviving"), titles, strict=True):
        for colour, (method, lines) in zip(COLOURS, frame.groupby("method", sort=False), strict=False):
            shares = lines.pivot(index="seed", columns="tasks", values=measure)
            band(axis, shares.columns, shares.to_numpy(), colour, method)
        axis.set(xlabel="tasks", ylabel="sign conflicts (%)", ylim=(0, None))
        axis.set_title(title, fontsize=10)
        axis.xaxis.get_major_locator().set_params(integer=True)
    found[0].legend(frameon=False)
    return frame, figure

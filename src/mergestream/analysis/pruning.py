"""How much of a task vector is needed: accuracy when only k % of it is kept (Marczak et al. 2024, Fig. 1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from mergestream.analysis.subject import Subject
from mergestream.display.plots import COLOURS, axes, band
from mergestream.runtime.rules import require_numbers
from mergestream.runtime.seeding import key
from mergestream.strategies._ranks import smallest_magnitudes

ORDERS = ("highest", "random", "lowest")


def pruning(
    subject: Subject, *, keep: Sequence[float] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
) -> tuple[pd.DataFrame, Figure]:
    """Accuracy of θ₀ + τ_t on the test images of task t (joint: of all), with the parameters of τ_t of
    highest or lowest magnitude, or drawn at random, in the whole encoder; the others are zero.

    Args:
        subject: a run.
        keep: the shares that are kept; 0, which is θ₀, is added.

    Returns:
        task, order, kept, task_aware (among the task's classes, which the figure shows), task_agnostic.

    Raises:
        UserError: if a share is not above 0 and at most 1.
    """
    require_numbers("analysis.keep", keep, "above 0, at most 1", lambda x: 0 < x <= 1)
    shares = sorted(set(keep))
    with subject.vectors() as vectors:
        total = sum(vectors.base.entries[name].numel for name in vectors.names)
        kept = [max(1, round(share * total)) for share in shares]
        lowest = smallest_magnitudes(vectors, vectors.names, kept)
        highest = smallest_magnitudes(vectors, vectors.names, [total - count + 1 for count in kept])
    rows = []
    joint = subject.method.data == "all"
    for task, name in enumerate(["all"] if joint else subject.task_names):
        tau, only = subject.task_vector(task), None if joint else task
        tested = slice(None) if joint else slice(task, task + 1)
        none = subject.accuracy({}, only=only)
        for order in ORDERS:
            for index, share in enumerate([0.0, *shares], start=-1):
                found = none
                if index >= 0:
                    pruned = {}
                    for weight, values in tau.items():
                        if order == "random":  # the same draw for every share, so that the larger holds the smaller
                            seed = key(subject.cfg.seed, "pruning", task, weight)
                            mask = torch.rand(values.shape, generator=torch.Generator().manual_seed(seed)) < share
                        elif order == "highest":
                            mask = values.abs() >= highest[task][index]
                        else:
                            mask = values.abs() <= lowest[task][index]
                        pruned[weight] = values * mask
                    found = subject.accuracy(pruned, only=only)
                aware, agnostic = (float(np.mean(of[tested])) for of in (found.task_aware, found.task_agnostic))
                rows.append((task + 1, name, order, share, aware, agnostic))
    frame = pd.DataFrame(rows, columns=["task", "name", "order", "kept", "task_aware", "task_agnostic"])
    figure, (axis,) = axes(1, 1, (6, 4))
    for colour, order in zip(COLOURS, ORDERS, strict=False):
        table = frame[frame["order"] == order].pivot(index="task", columns="kept", values="task_aware")
        band(axis, 100 * table.columns, table.to_numpy(), colour, f"{order} magnitude" if order != "random" else order)
    axis.set(xlabel="kept of the task vector (%)", ylabel="accuracy among the task's classes (%)")
    if not joint:
        axis.set_title("mean and deviation over tasks", fontsize=10)
    axis.legend(frameon=False)
    return frame, figure

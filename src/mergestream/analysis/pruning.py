"""Accuracy when only a share of each task vector is kept (Marczak et al. 2024, Fig. 1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from mergestream.analysis.subject import Subject
from mergestream.display.plots import COLOURS, plot_mean, subplots
from mergestream.runtime.rules import require_numbers
from mergestream.runtime.seeding import key
from mergestream.strategies._ranks import smallest_magnitudes

LABELS = {"highest": "highest magnitude", "random": "random", "lowest": "lowest magnitude"}


def pruning(
    subject: Subject, *, keep: Sequence[float] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
) -> tuple[pd.DataFrame, Figure]:
    """Measure the accuracy of θ₀ + τ_t on task t when all but a share of τ_t is set to zero.

    The parameters that are kept have the highest or the lowest magnitude of the whole encoder, or are drawn at random.
    A joint run has one task vector, which is tested on all tasks.

    Args:
        subject: a run.
        keep: the shares to keep; 0, which gives θ₀, is added.

    Returns:
        A table of task, name, order (highest, random, lowest), kept (the share), task_aware, task_agnostic; and a
        figure of task_aware.

    Raises:
        UserError: if a share is not above 0 and at most 1.
    """
    require_numbers("analysis.keep", keep, "above 0, at most 1", lambda x: 0 < x <= 1)
    shares = sorted(set(keep))
    highest, lowest = _limits(subject, shares)
    joint = subject.method.data == "all"
    rows = []
    for task, name in enumerate(["all"] if joint else subject.task_names):
        tau, only = subject.task_vector(task), None if joint else task
        tested = slice(None) if joint else slice(task, task + 1)
        zero_shot = subject.accuracy({}, only=only)
        for order in LABELS:
            found = [(0.0, zero_shot)]
            for share, high, low in zip(shares, highest[task], lowest[task], strict=True):
                if order == "random":
                    pruned = _draw_share(tau, share, subject.run.seed, task)
                elif order == "highest":
                    pruned = {weight: values * (values.abs() >= high) for weight, values in tau.items()}
                else:
                    pruned = {weight: values * (values.abs() <= low) for weight, values in tau.items()}
                found.append((share, subject.accuracy(pruned, only=only)))
            for share, row in found:
                aware, agnostic = (float(np.mean(a[tested])) for a in (row.task_aware, row.task_agnostic))
                rows.append((task + 1, name, order, share, aware, agnostic))
    frame = pd.DataFrame(rows, columns=["task", "name", "order", "kept", "task_aware", "task_agnostic"])
    return frame, _draw(frame)


def _limits(subject: Subject, shares: Sequence[float]) -> tuple[list[list[float]], list[list[float]]]:
    """Return the magnitude cut-offs for each task and share: of the highest values to keep, and of the lowest."""
    with subject.vectors() as vectors:
        total = sum(vectors.base.entries[name].numel for name in vectors.names)
        counts = [max(1, round(share * total)) for share in shares]
        highest = smallest_magnitudes(vectors, vectors.names, [total - count + 1 for count in counts])
        lowest = smallest_magnitudes(vectors, vectors.names, counts)
    return highest, lowest


def _draw_share(tau: dict[str, Tensor], share: float, seed: int, task: int) -> dict[str, Tensor]:
    """Return `tau` with all but a random share set to zero; a larger share keeps what a smaller one keeps."""
    pruned = {}
    for weight, values in tau.items():
        generator = torch.Generator().manual_seed(key(seed, "pruning", task, weight))
        pruned[weight] = values * (torch.rand(values.shape, generator=generator) < share)
    return pruned


def _draw(frame: pd.DataFrame) -> Figure:
    figure, (axes,) = subplots(1, 1, (6, 4))
    for colour, (order, label) in zip(COLOURS, LABELS.items(), strict=False):
        table = frame[frame["order"] == order].pivot(index="task", columns="kept", values="task_aware")
        plot_mean(axes, 100 * table.columns, table.to_numpy(), colour, label)
    axes.set(xlabel="kept of the task vector (%)", ylabel="accuracy among the task's classes (%)")
    if frame["task"].nunique() > 1:
        axes.set_title("mean and deviation over tasks", fontsize=10)
    axes.legend(frameon=False)
    return figure

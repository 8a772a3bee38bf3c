"""Accuracy along lines in weight space: from θ₀ through the merged encoder, and from one θ_t to another."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from mergestream.analysis.subject import Subject
from mergestream.display.plots import COLOURS, subplots
from mergestream.runtime.rules import require_numbers
from mergestream.strategies.strategy import BoundStrategy


def interpolation(
    subject: Subject,
    *,
    strategy: BoundStrategy,
    scales: Sequence[float] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5),
    steps: Sequence[float] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    between: Sequence[int] | None = None,
) -> tuple[pd.DataFrame, Figure]:
    """Measure the accuracy of θ₀ + λ · τ_merged along λ, and of (1 − s) θ_a + s θ_b along s.

    Args:
        subject: a run.
        strategy: merges the task vectors.
        scales: values of λ.
        steps: values of s.
        between: the tasks a and b, counted from 1; None is the first and the last.

    Returns:
        A table of line, position (λ or s), overall (accuracy among all classes), task_agnostic and task_aware (means
        over tasks); and its figure.

    Raises:
        UserError: if an option breaks its rule.
    """
    require_numbers("analysis.scales", scales, "such as [0,0.5,1]")
    require_numbers("analysis.steps", steps, "such as [0,0.5,1]")
    a, b = subject.pair(between)
    merged, (tau_a, tau_b) = subject.merged(strategy), (subject.task_vector(a - 1), subject.task_vector(b - 1))
    name = strategy.strategy.name
    found = [(f"{name}, λ", scale, subject.accuracy(merged, scale)) for scale in sorted(scales)]
    for step in sorted(steps):
        mixed = {weight: (1 - step) * tau + step * tau_b[weight] for weight, tau in tau_a.items()}
        found.append((f"θ{a} to θ{b}", step, subject.accuracy(mixed)))
    rows = [
        (line, position, row.overall, pd.Series(row.task_agnostic).mean(), pd.Series(row.task_aware).mean())
        for line, position, row in found
    ]
    frame = pd.DataFrame(rows, columns=["line", "position", "overall", "task_agnostic", "task_aware"])
    return frame, _draw(frame, f"merged by {name}", ("λ", f"from θ{a} (0) to θ{b} (1)"))


def _draw(frame: pd.DataFrame, title: str, xlabels: tuple[str, str]) -> Figure:
    figure, found = subplots(1, 2, (9, 3.6))
    measures = {"overall": "among all classes", "task_aware": "among the task's classes"}
    for axes, (_, lines), xlabel in zip(found, frame.groupby("line", sort=False), xlabels, strict=True):
        for colour, (measure, label) in zip(COLOURS, measures.items(), strict=False):
            axes.plot(lines["position"], 100 * lines[measure], marker="o", markersize=3, color=colour, label=label)
        axes.set(xlabel=xlabel, ylabel="accuracy (%)")
    found[0].set_title(title, fontsize=10)
    found[1].legend(frameon=False, fontsize=8)
    return figure

"""Accuracy along lines in the space of weights: from θ₀ through the merge, and from one θ to another."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from mergestream.analysis.subject import Subject
from mergestream.display.plots import COLOURS, axes
from mergestream.runtime.rules import require_numbers


def interpolation(
    subject: Subject,
    *,
    scales: Sequence[float] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5),
    steps: Sequence[float] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    between: Sequence[int] | None = None,
) -> tuple[pd.DataFrame, Figure]:
    """Accuracy of θ₀ + λ · τ_merged along λ, and of (1 − s) θ_a + s θ_b along s.

    Args:
        subject: a run, with the ``strategy`` of its config.
        scales: values of λ.
        steps: values of s.
        between: a and b, counted from 1; None is the first and the last task.

    Returns:
        line, position (λ or s), overall (accuracy among all classes), task_agnostic and task_aware (means over tasks).

    Raises:
        UserError: if an option is out of range.
    """
    require_numbers("analysis.scales", scales, "such as [0,0.5,1]")
    require_numbers("analysis.steps", steps, "such as [0,0.5,1]")
    a, b = subject.pair("analysis.between", between)
    merged, (tau_a, tau_b) = subject.merged(), (subject.task_vector(a - 1), subject.task_vector(b - 1))
    names = (f"{subject.strategy.name}, λ", f"θ{a} to θ{b}")
    rows = []
    for scale in sorted(scales):
        rows.append((names[0], scale, subject.accuracy(merged, scale)))
    for step in sorted(steps):
        mixed = {name: (1 - step) * tau + step * tau_b[name] for name, tau in tau_a.items()}
        rows.append((names[1], step, subject.accuracy(mixed)))
    frame = pd.DataFrame(
        [
            (line, position, row.overall, pd.Series(row.task_agnostic).mean(), pd.Series(row.task_aware).mean())
            for line, position, row in rows
        ],
        columns=["line", "position", "overall", "task_agnostic", "task_aware"],
    )
    figure, found = axes(1, 2, (9, 3.6))
    for axis, name, label in zip(found, names, ("λ", f"from θ{a} (0) to θ{b} (1)"), strict=True):
        lines = frame[frame["line"] == name]
        for colour, measure in zip(COLOURS, ("overall", "task_aware"), strict=False):
            title = "among all classes" if measure == "overall" else "among the task's classes"
            axis.plot(lines["position"], 100 * lines[measure], marker="o", markersize=3, color=colour, label=title)
        axis.set(xlabel=label, ylabel="accuracy (%)")
    found[0].set_title(f"merged by {subject.strategy.name}", fontsize=10)
    found[1].legend(frameon=False, fontsize=8)
    return frame, figure

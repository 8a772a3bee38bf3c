"""Accuracy on the plane through θ₀ and two fine-tuned encoders."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from mergestream.analysis.subject import Subject
from mergestream.display.plots import axes
from mergestream.runtime.errors import UserError
from mergestream.runtime.rules import require_numbers, require_whole


def landscape(
    subject: Subject, *, grid: int = 9, margin: float = 0.25, between: Sequence[int] | None = None
) -> tuple[pd.DataFrame, Figure]:
    """Accuracy among all classes of θ₀ + x · u + y · v, with u = τ_a, and v = τ_b without its part along u.

    x and y are in units of ‖τ_a‖, so that the picture keeps angles and lengths: θ₀ lies at (0, 0), θ_a at (1, 0).

    Args:
        subject: a run.
        grid: points along each side.
        margin: how far the grid goes beyond the three, as a share of their extent.
        between: a and b, counted from 1; None is the first and the last task.

    Returns:
        model, x, y, overall: the points of the grid, which have no name, then θ₀, θ_a and θ_b.

    Raises:
        UserError: if an option is out of range, or the two task vectors are parallel.
    """
    require_whole("analysis.grid", grid, 2, 101)
    require_numbers("analysis.margin", [margin], "at least 0", lambda x: x >= 0)
    a, b = subject.pair("analysis.between", between)
    u, w = subject.task_vector(a - 1), subject.task_vector(b - 1)

    def inner(one: dict, two: dict) -> float:
        return sum((one[name].double() * two[name].double()).sum().item() for name in one)

    length = inner(u, u) ** 0.5
    along = inner(u, w) / length**2 if length else float("nan")
    v = {name: tau - along * u[name] for name, tau in w.items()}
    height = inner(v, v) ** 0.5
    if not height > 1e-6 * length > 0:
        raise UserError(
            f"analysis.between must be encoders that span a plane with θ₀; θ{a} and θ{b} lie on a line. "
            f"Type analysis.between=[{a},C] with another task C"
        )
    places = {"θ₀": (0.0, 0.0), f"θ{a}": (1.0, 0.0), f"θ{b}": (along, height / length)}
    xs, ys = (_range([place[i] for place in places.values()], margin, grid) for i in (0, 1))
    rows = []
    for y in ys:
        for x in xs:
            tau = {name: x * u[name] + y * length / height * v[name] for name in u}
            rows.append(("", x, y, subject.accuracy(tau).overall))
    for name, (x, y) in places.items():
        tau = {key: x * u[key] + y * length / height * v[key] for key in u}
        rows.append((name, x, y, subject.accuracy(tau).overall))
    frame = pd.DataFrame(rows, columns=["model", "x", "y", "overall"])
    width = 3.6 * float(np.ptp(xs) / np.ptp(ys))  # as the axes keep the proportions
    figure, (axis,) = axes(1, 1, (min(10, max(1.5, width) + 2), 4.5))
    values = 100 * frame["overall"].to_numpy()[: grid * grid].reshape(grid, grid)
    drawn = axis.contourf(xs, ys, values, levels=20, cmap="viridis")
    figure.colorbar(drawn, ax=axis, label="accuracy among all classes (%)")
    for name, (x, y) in places.items():
        axis.plot(x, y, "o", color="white", markeredgecolor="black")
        label = axis.annotate(name, (x, y), xytext=(6, 6), textcoords="offset points", color="white", weight="bold")
        label.set_path_effects([withStroke(linewidth=2, foreground="black")])
    axis.set_aspect("equal")
    axis.set(xlabel=f"along τ{a}, in units of its length", ylabel="across it")
    return frame, figure


def _range(values: Sequence[float], margin: float, count: int) -> np.ndarray:
    low, high = min(values), max(values)
    return np.linspace(low - margin * (high - low), high + margin * (high - low), count)

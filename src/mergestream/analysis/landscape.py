"""Accuracy on the plane through θ₀ and two fine-tuned encoders."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from torch import Tensor

from mergestream.analysis.subject import Subject
from mergestream.display.plots import subplots
from mergestream.runtime.errors import UserError
from mergestream.runtime.rules import require_numbers, require_whole


def landscape(
    subject: Subject, *, grid: int = 9, margin: float = 0.25, between: Sequence[int] | None = None
) -> tuple[pd.DataFrame, Figure]:
    """Measure the accuracy among all classes of θ₀ + x · u + y · v, where u = τ_a and v is τ_b orthogonal to u.

    Both axes are in units of ‖τ_a‖, so the figure keeps angles and lengths: θ₀ is at (0, 0), θ_a at (1, 0).

    Args:
        subject: a run.
        grid: number of points along each side.
        margin: how far the grid extends beyond the three encoders, as a share of their extent.
        between: the tasks a and b, counted from 1; None is the first and the last.

    Returns:
        A table of model, x, y, overall: first the points of the grid, whose model is empty, then θ₀, θ_a and θ_b; and
        its figure.

    Raises:
        UserError: if an option breaks its rule, or the two task vectors are parallel.
    """
    require_whole("analysis.grid", grid, 2, 101)
    require_numbers("analysis.margin", [margin], "at least 0", lambda x: x >= 0)
    a, b = subject.pair(between)
    u, tau_b = subject.task_vector(a - 1), subject.task_vector(b - 1)
    length = _inner(u, u) ** 0.5
    along = _inner(u, tau_b) / length**2 if length else float("nan")
    v = {name: tau - along * u[name] for name, tau in tau_b.items()}
    height = _inner(v, v) ** 0.5
    if not height > 1e-6 * length > 0:
        raise UserError(
            f"analysis.between must be encoders that span a plane with θ₀; θ{a} and θ{b} lie on a line. "
            f"Type analysis.between=[{a},C] with another task C"
        )
    models = {"θ₀": (0.0, 0.0), f"θ{a}": (1.0, 0.0), f"θ{b}": (along, height / length)}
    xs, ys = (_ticks([point[i] for point in models.values()], margin, grid) for i in (0, 1))
    points = [("", x, y) for y in ys for x in xs] + [(name, x, y) for name, (x, y) in models.items()]
    rows = []
    for name, x, y in points:
        tau = {weight: x * u[weight] + y * length / height * v[weight] for weight in u}
        rows.append((name, x, y, subject.accuracy(tau).overall))
    frame = pd.DataFrame(rows, columns=["model", "x", "y", "overall"])
    return frame, _draw(frame, f"along τ{a}, in units of its length")


def _inner(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    """Return the inner product of two task vectors, in float64."""
    return sum((one[name].double() * two[name].double()).sum().item() for name in one)


def _ticks(values: Sequence[float], margin: float, count: int) -> np.ndarray:
    """Return `count` coordinates that cover `values` and a margin on both sides."""
    low, high = min(values), max(values)
    return np.linspace(low - margin * (high - low), high + margin * (high - low), count)


def _draw(frame: pd.DataFrame, xlabel: str) -> Figure:
    on_grid = frame["model"] == ""
    values = 100 * frame[on_grid].pivot(index="y", columns="x", values="overall")
    xs, ys = values.columns.to_numpy(), values.index.to_numpy()
    width = 3.6 * float(np.ptp(xs) / np.ptp(ys))  # both axes have the same unit
    figure, (axes,) = subplots(1, 1, (min(10, max(1.5, width) + 2), 4.5))
    contours = axes.contourf(xs, ys, values.to_numpy(), levels=20, cmap="viridis")
    figure.colorbar(contours, ax=axes, label="accuracy among all classes (%)")
    for name, x, y in frame[~on_grid][["model", "x", "y"]].itertuples(index=False):
        axes.plot(x, y, "o", color="white", markeredgecolor="black")
        label = axes.annotate(name, (x, y), xytext=(6, 6), textcoords="offset points", color="white", weight="bold")
        label.set_path_effects([withStroke(linewidth=2, foreground="black")])
    axes.set_aspect("equal")
    axes.set(xlabel=xlabel, ylabel="orthogonal to it, in the same units")
    return figure

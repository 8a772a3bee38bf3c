"""What all figures share: axes without a screen, colours that everybody can tell apart, and how they become files."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import rc_context, rcParams
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

rcParams["text.parse_math"] = False  # names may have a dollar
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999", "#000000")  # Okabe & Ito


def axes(
    rows: int, columns: int, size: tuple[float, float], sharey: bool = False, margins: Mapping[str, float] | None = None
) -> tuple[Figure, np.ndarray]:
    """A figure and its axes, row by row; without pyplot, which keeps every figure and picks a screen.

    Args:
        rows, columns: of axes.
        size: in inches.
        sharey: whether all have the same y.
        margins: as of `subplots_adjust`. Without them they are fitted, which takes as long as drawing.
    """
    figure = Figure(figsize=size, dpi=100, layout=None if margins else "constrained")
    if margins:
        figure.subplots_adjust(**margins)
    return figure, figure.subplots(rows, columns, squeeze=False, sharey=sharey).ravel()


def band(axis: Any, x: Any, values: np.ndarray, colour: str, name: str) -> None:
    """Mean ± sample deviation of fractions [repetitions, n] as a line and a band, in per cent."""
    mean = 100 * values.mean(axis=0)
    deviation = 100 * values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros_like(mean)
    axis.plot(x, mean, marker="o", markersize=3, color=colour, label=name)
    axis.fill_between(x, mean - deviation, mean + deviation, color=colour, alpha=0.15, linewidth=0)


def content(figure: Figure, kind: str) -> bytes:
    """A figure as the content of a png or svg file, the same for the same figure."""
    buffer = io.BytesIO()
    if kind == "png":  # savefig would draw it once more, for the layout, which drawing makes anyway
        FigureCanvasAgg(figure).print_png(buffer)
        return buffer.getvalue()
    with rc_context({"svg.hashsalt": "mergestream"}):
        figure.savefig(buffer, format=kind, metadata={"Date": None})
    return buffer.getvalue()

"""Figures: axes that need no screen, colours that everybody can tell apart, and rendering to PNG and SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import AutoLocator

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999", "#000000")  # Okabe & Ito


def subplots(
    rows: int, columns: int, size: tuple[float, float], sharey: bool = False, margins: Mapping[str, float] | None = None
) -> tuple[Figure, list[Axes]]:
    """Return a figure and its axes, row by row.

    Pyplot is not used: it keeps every figure in memory and picks a screen.

    Args:
        rows, columns: numbers of axes.
        size: width and height in inches.
        sharey: whether all axes share one y-axis.
        margins: arguments of `Figure.subplots_adjust`; None fits the margins, which takes as long as drawing.
    """
    figure = Figure(figsize=size, dpi=100, layout=None if margins else "constrained")
    if margins:
        figure.subplots_adjust(**margins)
    return figure, list(figure.subplots(rows, columns, squeeze=False, sharey=sharey).ravel())


def integer_ticks(*axes: Axis) -> None:
    """Place ticks at whole numbers only."""
    for axis in axes:
        locator = AutoLocator()
        locator.set_params(integer=True)
        axis.set_major_locator(locator)


def plot_mean(axes: Axes, x: Any, values: np.ndarray, colour: str, label: str) -> None:
    """Plot mean ± sample deviation over repetitions, as a line with a band around it.

    Args:
        axes: where to plot.
        x: positions [n].
        values: fractions [repetitions, n]; they are shown in per cent.
        colour, label: of the line.
    """
    mean = 100 * values.mean(axis=0)
    deviation = 100 * values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros_like(mean)
    plot_band(axes, x, mean, deviation, colour, label)


def plot_band(axes: Axes, x: Any, mean: Any, deviation: Any, colour: str, label: str) -> None:
    """Plot a line with a band of one deviation around it."""
    axes.plot(x, mean, marker="o", markersize=3, color=colour, label=label)
    axes.fill_between(x, mean - deviation, mean + deviation, color=colour, alpha=0.15, linewidth=0)


def render(figure: Figure, kind: Literal["png", "svg"]) -> bytes:
    """Return a figure as the content of a file; equal figures give equal bytes."""
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "mergestream", "text.parse_math": False}):
        for text in figure.findobj(Text):
            text.set_parse_math(False)  # the name of a run may hold a dollar sign
        if kind == "png":  # savefig would draw the figure twice, once for its layout
            FigureCanvasAgg(figure).print_png(buffer)
        else:
            figure.savefig(buffer, format=kind, metadata={"Date": None})
    return buffer.getvalue()

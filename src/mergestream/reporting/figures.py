"""The figures of a report: curves over the stream, accuracy matrices, λ sweeps, and all rows in comparison."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mergestream.display.plots import COLOURS, integer_ticks, plot_band, plot_mean, subplots
from mergestream.metrics import summarize
from mergestream.reporting.notes import is_whole
from mergestream.reporting.rows import NAMES, ROW, is_bound, without_scale
from mergestream.reporting.tables import sorted_names
from mergestream.runs.results import Metrics

METHODS = ("seq", "ind", "ewc", "lwf")  # have the same colours in every figure
MAX_CURVES = 8  # as many as colours
MAX_MATRICES = 6
MAX_ROWS = 32
SWEEP = [key for key in ROW if key != "scale"]  # columns that identify a λ sweep


class CaptionedFigure(NamedTuple):
    """A figure, a short name for its file, and its caption."""

    name: str
    caption: str
    figure: Figure


def benchmark_figures(runs: pd.DataFrame, metrics: Mapping[int, Metrics]) -> Iterator[CaptionedFigure]:
    """Yield the figures that the runs of one benchmark allow.

    Args:
        runs: the runs of the benchmark, as in `Collected`, with names.
        metrics: the content of their metrics.json, by index of `runs`.
    """
    found = _stepwise(runs, metrics)
    if found:
        shown = {name: found[name] for name in _select(list(found), MAX_CURVES)}
        note = _selection_note(MAX_CURVES, len(found))
        caption = f"Accuracy on the tasks seen so far, and forgetting: mean and deviation over seeds{note}"
        yield CaptionedFigure("curves", caption, curves(shown))
        note = f"; {MAX_MATRICES} of these rows" if len(shown) > MAX_MATRICES else ""
        caption = f"Accuracy (%) among all classes, after each task (rows) on each task (columns){note}"
        yield CaptionedFigure("matrices", caption, matrices(shown))
    merges = runs[(runs["strategy"] != "") & ~runs["scale"].isin(["", "selected"])]
    sweeps = [lines for _, lines in merges.groupby(SWEEP, sort=False) if lines["scale"].nunique() > 2]
    if sweeps:
        note = f"; the best {len(COLOURS)} of {len(sweeps)}" if len(sweeps) > len(COLOURS) else ""
        caption = f"Final accuracy against λ: mean and deviation over seeds{note}"
        yield CaptionedFigure("lambda", caption, scale_curves(sweeps))


def stream_figures(lines: pd.DataFrame) -> Iterator[CaptionedFigure]:
    """Yield the comparison of all rows of one stream and model, if there are more than bounds.

    Args:
        lines: the rows, from `aggregate`.
    """
    if count := lines.loc[~is_bound(lines), "name"].nunique():
        caption = f"Final accuracy: mean and 95 % interval over seeds{_selection_note(MAX_ROWS, count)}"
        yield CaptionedFigure("comparison", caption, comparison(lines))


def comparison(lines: pd.DataFrame) -> Figure:
    """Draw the final accuracy of up to `MAX_ROWS` rows on each benchmark, with its 95 % interval.

    The bounds are vertical lines.

    Args:
        lines: the rows of one stream and model, from `aggregate`.
    """
    names = _select(sorted_names(lines[~is_bound(lines)]), MAX_ROWS)
    benchmarks = [(key, rows) for key, rows in lines.groupby(["dataset", "tasks"]) if not is_bound(rows).all()]
    size = 2.6 + 2.2 * len(benchmarks), 1.5 + 0.19 * len(names)
    figure, found = subplots(1, len(benchmarks), size, sharey=True)
    colours = _method_colours(set(lines[lines["name"].isin(names)]["method"]))
    bounds = list(lines[is_bound(lines)]["name"].unique())
    for axes, ((dataset, tasks), rows) in zip(found, benchmarks, strict=True):
        for line in rows[is_bound(rows)].to_dict("records"):
            axes.axvline(100 * line["final_accuracy"], **_bound_style(line["name"], bounds))
        _plot_intervals(axes, rows[rows["name"].isin(names)], names, colours)
        axes.set_title(f"{dataset}, {tasks} tasks", fontsize=9)
    found[0].set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
    for label in found[0].get_yticklabels():
        label.set_fontweight("bold" if without_scale(label.get_text()) == "MagMax" else "normal")
    keys = [Line2D([], [], color=colour, marker="o", markersize=4, linestyle="") for colour in colours.values()]
    keys += [Line2D([], [], **_bound_style(name, bounds)) for name in bounds]
    figure.legend(keys, [*colours, *bounds], loc="outside lower center", ncols=8, frameon=False, fontsize=8)
    return figure


def _plot_intervals(axes: Axes, rows: pd.DataFrame, names: Sequence[str], colours: Mapping[str, str]) -> None:
    for method, lines in rows.groupby("method", sort=False):
        positions, interval = [names.index(name) for name in lines["name"]], 100 * lines["final_accuracy_ci95"]
        style: dict[str, Any] = {"fmt": "o", "markersize": 4, "color": colours[method], "capsize": 2, "linewidth": 1}
        xerr = None if interval.isna().all() else interval
        axes.errorbar(100 * lines["final_accuracy"], positions, xerr=xerr, **style)
    axes.set_xlabel("final accuracy (%)", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", linewidth=0.3)


def _method_colours(present: set[str]) -> dict[str, str]:
    """Return the colour of each method, `METHODS` first."""
    methods = [*METHODS, *sorted(present - set(METHODS))]
    colours = dict(zip(methods, COLOURS * len(methods), strict=False))
    return {method: colours[method] for method in methods if method in present}


def _bound_style(name: str, bounds: Sequence[str]) -> dict[str, Any]:
    return {"color": "#777777", "linestyle": ("--", ":", "-.")[bounds.index(name) % 3], "linewidth": 1}


def _select(names: Sequence[str], limit: int) -> list[str]:
    """Return up to `limit` names in their order: MagMax, then the rows of the paper and fine-tuning, then the first."""
    named = set(NAMES.values())
    first = sorted(names, key=lambda name: (without_scale(name) != "MagMax", without_scale(name) not in named))[:limit]
    return [name for name in names if name in first]


def _selection_note(limit: int, count: int) -> str:
    return (
        f"; {limit} of {count} rows: those of the paper, plain fine-tuning, and the best others"
        if count > limit
        else ""
    )


def _stepwise(runs: pd.DataFrame, metrics: Mapping[int, Metrics]) -> dict[str, list[Metrics]]:
    """Return the results that have an accuracy after every task, by row name, best row first."""
    found: dict[str, list[Metrics]] = {}
    by_name = runs.groupby("name")
    members, tasks = by_name.groups, runs["tasks"].iloc[0]
    for name in by_name["final_accuracy"].mean().sort_values(ascending=False).index:
        results = [
            metrics[i] for i in members[name] if len(metrics[i]["overall"]) == tasks > 1 and is_whole(metrics[i])
        ]
        if results:
            found[name] = results
    return found


def curves(results: Mapping[str, Sequence[Metrics]]) -> Figure:
    """Draw the accuracy on the tasks seen so far, and forgetting, after each task; one line for each row."""
    margins = {"left": 0.06, "right": 0.99, "bottom": 0.25, "top": 0.97, "wspace": 0.16}
    figure, (left, right) = subplots(1, 2, (10, 4), margins=margins)
    for colour, (name, seeds) in zip(COLOURS, results.items(), strict=False):
        seen = np.array([metrics["seen"] for metrics in seeds], dtype=float)
        plot_mean(left, range(1, seen.shape[1] + 1), seen, colour, name)
        matrices: list[Any] = [metrics["accuracy"]["task_agnostic"] for metrics in seeds]
        forgotten = np.array([forgetting(matrix) for matrix in matrices], dtype=float)
        plot_mean(right, range(2, seen.shape[1] + 1), forgotten, colour, name)
    integer_ticks(left.xaxis, right.xaxis)
    left.set(xlabel="tasks seen", ylabel="accuracy on their classes (%)")
    right.set(xlabel="tasks seen", ylabel="forgetting (%)")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def forgetting(matrix: Sequence[Sequence[float]]) -> list[float]:
    """Return the forgetting of `summarize` after each task t ≥ 2.

    Args:
        matrix: accuracies [T, T], after each task on each task.
    """
    R = np.asarray(matrix, dtype=float)
    return [summarize(R[:t, :t], R[0, :t])["forgetting"] for t in range(2, len(R) + 1)]


def matrices(results: Mapping[str, Sequence[Metrics]]) -> Figure:
    """Draw accuracy matrices, averaged over seeds, as heat maps."""
    shown = _select(list(results), MAX_MATRICES)
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    width, height = 3.1 * columns + 0.8, 3 * rows
    margins = {"left": 0.3 / width, "right": 1 - 0.9 / width, "bottom": 0.3 / height, "top": 1 - 0.3 / height}
    figure, found = subplots(rows, columns, (width, height), margins={**margins, "wspace": 0.15, "hspace": 0.25})
    for axes in found[len(shown) :]:
        axes.set_axis_off()
    for axes, name in zip(found, shown, strict=False):
        found_matrices: list[Any] = [metrics["accuracy"]["task_agnostic"] for metrics in results[name]]
        accuracies = np.array(found_matrices, dtype=float)
        mean = 100 * np.mean(accuracies, axis=0)
        image = axes.imshow(mean, vmin=0, vmax=100, cmap="viridis")
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        if len(mean) <= 10:
            axes.set(xticks=range(len(mean)), yticks=range(len(mean)))
            axes.set(xticklabels=range(1, len(mean) + 1), yticklabels=range(1, len(mean) + 1))
            for (i, j), value in np.ndenumerate(mean):
                colour = "white" if value < 60 else "black"
                axes.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=6, color=colour)
    figure.colorbar(image, cax=figure.add_axes((1 - 0.7 / width, 0.15, 0.15 / width, 0.7)))
    return figure


def scale_curves(sweeps: Sequence[pd.DataFrame]) -> Figure:
    """Draw final accuracy against λ, one line for each sweep: the runs of one method and strategy."""
    figure, (axes,) = subplots(1, 1, (6, 4), margins={"left": 0.11, "right": 0.98, "bottom": 0.13, "top": 0.97})
    best_first = sorted(sweeps, key=lambda runs: -runs.groupby("scale")["final_accuracy"].mean().max())
    for colour, runs in zip(COLOURS, best_first, strict=False):
        by_scale = runs.assign(scale=runs["scale"].astype(float)).groupby("scale")["final_accuracy"]
        mean, deviation = 100 * by_scale.mean(), 100 * by_scale.std().fillna(0)
        plot_band(axes, mean.index, mean, deviation, colour, without_scale(runs["name"].iloc[0]))
    axes.set(xlabel="λ", ylabel="final accuracy (%)")
    axes.legend(frameon=False, fontsize=8)
    return figure

"""A benchmark as pictures: how accuracy and forgetting go, what λ does, and accuracy task by task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mergestream.display.plots import COLOURS, axes, band
from mergestream.metrics import summarize
from mergestream.reporting.rows import NAMES, ROW, is_bound, without_scale
from mergestream.reporting.tables import in_order

METHODS = ("seq", "ind", "ewc", "lwf")  # have the same colours everywhere
LINES = 8  # that one can tell apart
MATRICES = 6
ROWS = 32


def of_benchmark(runs: pd.DataFrame, contents: Mapping[int, dict[str, Any]]) -> Iterator[tuple[str, str, Figure]]:
    """(short name, caption, figure) for everything that the runs of one benchmark can show.

    Args:
        runs: of `collect`, those of the benchmark.
        contents: of `collect`, by ``runs.index``.
    """
    found = _followed(runs, contents)
    if found:
        followed = {name: found[name] for name in _selected(list(found), LINES)}
        some_of = _some_of(LINES, len(found))
        yield "curves", f"After each task, mean and deviation over seeds{some_of}", curves(followed)
        some = f"; {MATRICES} of them" if len(followed) > MATRICES else ""
        said = f"Accuracy (%) among all classes: after each task (down) on each (across){some}"
        yield "matrices", said, matrices(followed)
    scales = runs[(runs["strategy"] != "") & ~runs["scale"].isin(["", "selected"])]
    swept = [key for key, group in scales.groupby(_LINE, sort=False) if group["scale"].nunique() > 2]
    if swept:
        best = f"; the best {len(COLOURS)} of {len(swept)}" if len(swept) > len(COLOURS) else ""
        yield "lambda", f"Final accuracy along λ, mean and deviation over seeds{best}", scale_curves(scales, swept)


def of_stream(lines: pd.DataFrame) -> Iterator[tuple[str, str, Figure]]:
    """The same for the benchmarks of one stream and model: `comparison`, if there is more than bounds.

    Args:
        lines: of `aggregate`.
    """
    if count := lines.loc[~is_bound(lines), "name"].nunique():
        yield "comparison", f"Mean and 95 % interval over seeds{_some_of(ROWS, count)}", comparison(lines)


def comparison(lines: pd.DataFrame) -> Figure:
    """Final accuracy of `ROWS` rows on each benchmark of one stream and model, with its 95 % interval; the bounds are
    lines from top to bottom.

    Args:
        lines: of `aggregate`.
    """
    names = _selected(in_order(lines[~is_bound(lines)]), ROWS)
    benchmarks = [(key, of) for key, of in lines.groupby(["dataset", "tasks"]) if not is_bound(of).all()]
    width = 2.6 + 2.2 * len(benchmarks)
    figure, found = axes(1, len(benchmarks), (width, 1.5 + 0.19 * len(names)), sharey=True)
    present = set(lines[lines["name"].isin(names)]["method"])
    methods = [*(m for m in METHODS if m in present), *sorted(present - set(METHODS))]
    colours = dict(zip([*METHODS, *methods[len(present & set(METHODS)) :]], COLOURS * len(methods), strict=False))
    bounds = list(lines[is_bound(lines)]["name"].unique())
    for axis, ((dataset, tasks), of) in zip(found, benchmarks, strict=True):
        for line in of[is_bound(of)].to_dict("records"):
            axis.axvline(100 * line["final_accuracy"], **_bound_style(line["name"], bounds))
        for method, rows in of[of["name"].isin(names)].groupby("method", sort=False):
            at, interval = [names.index(name) for name in rows["name"]], 100 * rows["final_accuracy_ci95"]
            style = {"fmt": "o", "markersize": 4, "color": colours[method], "capsize": 2, "linewidth": 1}
            axis.errorbar(100 * rows["final_accuracy"], at, xerr=None if interval.isna().all() else interval, **style)
        axis.set_title(f"{dataset}, {tasks} tasks", fontsize=9)
        axis.set_xlabel("final accuracy (%)", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(axis="y", linewidth=0.3)
    found[0].set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
    keys = [Line2D([], [], color=colours[method], marker="o", markersize=4, linestyle="") for method in methods]
    keys += [Line2D([], [], **_bound_style(name, bounds)) for name in bounds]
    for label in found[0].get_yticklabels():
        label.set_fontweight("bold" if without_scale(label.get_text()) == "MagMax" else "normal")
    figure.legend(keys, [*methods, *bounds], loc="outside lower center", ncols=8, frameon=False, fontsize=8)
    return figure


def _bound_style(name: str, bounds: Sequence[str]) -> dict[str, Any]:
    return {"color": "#777777", "linestyle": ("--", ":", "-.")[bounds.index(name) % 3], "linewidth": 1}


_LINE = [key for key in ROW if key != "scale"]


def _selected(names: Sequence[str], most: int) -> list[str]:
    """At most `most` of `names`, which are best first: MagMax, the other rows that have names, the best of the rest."""
    named = set(NAMES.values())
    first = sorted(names, key=lambda name: (without_scale(name) != "MagMax", without_scale(name) not in named))[:most]
    return [name for name in names if name in first]


def _some_of(most: int, count: int) -> str:
    return f"; {most} of {count}, the paper's, plain fine-tuning and the best of the others" if count > most else ""


def _followed(runs: pd.DataFrame, contents: Mapping[int, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Results with a row for every step of the stream, by name, best first."""
    found: dict[str, list[dict[str, Any]]] = {}
    by_name = runs.groupby("name")
    members, tasks = by_name.groups, runs["tasks"].iloc[0]
    for name in by_name["final_accuracy"].mean().sort_values(ascending=False).index:
        results = [contents[i] for i in members[name] if len(contents[i]["overall"]) == tasks > 1]
        if results:
            found[name] = results
    return found


def curves(followed: dict[str, list[dict[str, Any]]]) -> Figure:
    """Accuracy on the tasks seen so far, and forgetting so far, after each task."""
    margins = {"left": 0.06, "right": 0.99, "bottom": 0.25, "top": 0.97, "wspace": 0.16}
    figure, (left, right) = axes(1, 2, (10, 4), margins=margins)
    for colour, (name, results) in zip(COLOURS, followed.items(), strict=False):
        seen = np.array([result["seen"] for result in results], dtype=float)
        band(left, range(1, seen.shape[1] + 1), seen, colour, name)
        forgotten = np.array([forgetting(r["accuracy"]["task_agnostic"]) for r in results], dtype=float)
        band(right, range(2, seen.shape[1] + 1), forgotten, colour, name)
    for axis in (left, right):
        axis.xaxis.get_major_locator().set_params(integer=True)
    left.set(xlabel="tasks seen", ylabel="accuracy on their classes (%)")
    right.set(xlabel="tasks seen", ylabel="forgetting (%)")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def forgetting(matrix: Sequence[Sequence[float]]) -> list[float]:
    """`summarize`'s forgetting after each task t ≥ 2 of an accuracy matrix."""
    R = np.asarray(matrix, dtype=float)
    return [summarize(R[:t, :t], R[0, :t])["forgetting"] for t in range(2, len(R) + 1)]


def matrices(followed: dict[str, list[dict[str, Any]]]) -> Figure:
    """Heat maps of the accuracy matrices, averaged over seeds."""
    shown = [(name, followed[name]) for name in _selected(list(followed), MATRICES)]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    width, height = 3.1 * columns + 0.8, 3 * rows
    margins = {"left": 0.3 / width, "right": 1 - 0.9 / width, "bottom": 0.3 / height, "top": 1 - 0.3 / height}
    figure, found = axes(rows, columns, (width, height), margins={**margins, "wspace": 0.15, "hspace": 0.25})
    for axis in found[len(shown) :]:
        axis.set_axis_off()
    for axis, (name, results) in zip(found, shown, strict=False):
        mean = 100 * np.mean(np.array([r["accuracy"]["task_agnostic"] for r in results], dtype=float), axis=0)
        image = axis.imshow(mean, vmin=0, vmax=100, cmap="viridis")
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=7)
        if len(mean) <= 10:
            axis.set(xticks=range(len(mean)), yticks=range(len(mean)))
            axis.set(xticklabels=range(1, len(mean) + 1), yticklabels=range(1, len(mean) + 1))
            for (i, j), value in np.ndenumerate(mean):
                colour = "white" if value < 60 else "black"
                axis.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=6, color=colour)
    figure.colorbar(image, cax=figure.add_axes((1 - 0.7 / width, 0.15, 0.15 / width, 0.7)))
    return figure


def scale_curves(runs: pd.DataFrame, swept: Sequence[tuple[Any, ...]]) -> Figure:
    """Final accuracy along λ, a line for each method and strategy."""
    figure, (axis,) = axes(1, 1, (6, 4), margins={"left": 0.11, "right": 0.98, "bottom": 0.13, "top": 0.97})
    by_line = dict(iter(runs.groupby(_LINE, sort=False)))
    best = sorted(swept, key=lambda key: -by_line[key].groupby("scale")["final_accuracy"].mean().max())
    for colour, key in zip(COLOURS, best, strict=False):
        of = by_line[key].assign(scale=by_line[key]["scale"].astype(float)).groupby("scale")["final_accuracy"]
        mean, deviation = 100 * of.mean(), 100 * of.std().fillna(0)
        name = without_scale(by_line[key]["name"].iloc[0])
        axis.plot(mean.index, mean, marker="o", markersize=3, color=colour, label=name)
        axis.fill_between(mean.index, mean - deviation, mean + deviation, color=colour, alpha=0.15, linewidth=0)
    axis.set(xlabel="λ", ylabel="final accuracy (%)")
    axis.legend(frameon=False, fontsize=8)
    return figure

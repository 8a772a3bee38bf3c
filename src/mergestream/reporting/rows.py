"""The rows of a report: runs that differ only in the seed, and their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from mergestream.reporting.paper import PAPER_NAMES

BENCHMARK = ["dataset", "stream", "tasks", "model"]
ROW = [*BENCHMARK, "method", "strategy", "options", "scale", "tag"]
MEASURES = {
    "final_accuracy": "final accuracy",
    "average_incremental_accuracy": "average incremental",
    "average_accuracy": "average over tasks",
    "forgetting": "forgetting",
    "bwt": "backward transfer",
    "fwt": "forward transfer",
    "transfer": "transfer",
    "macro_accuracy": "mean over classes",
    "seen_classes": "seen classes",
    "unseen_classes": "unseen classes",
    "harmonic_mean": "harmonic mean",
    "retention": "retention",
}
# Of dataset-incremental streams alone; see `metrics.across_domains`.
DOMAIN_MEASURES = {
    "mtil_transfer": "MTIL Transfer",
    "mtil_avg": "MTIL Avg",
    "mtil_last": "MTIL Last",
    "xtail_transfer": "X-TAIL Transfer",
    "xtail_avg": "X-TAIL Avg",
    "xtail_last": "X-TAIL Last",
}
BOUNDS = ("zeroshot", "joint")  # methods that a continual learner is compared with, but does not compete with
# (method, strategy, options) → name, besides the paper's; others are named "method + strategy".
NAMES = {**PAPER_NAMES, ("seq", "", ""): "sequential, last task", ("ind", "", ""): "independent, last task"}


def retention_columns(runs: pd.DataFrame) -> list[str]:
    """Return the columns with the retention on single data sets."""
    return [str(column) for column in runs if str(column).startswith("retention[") and str(column).endswith("]")]


def measures_of(runs: pd.DataFrame) -> dict[str, str]:
    """Return the columns of a table that hold a measure, and their titles."""
    known = {key: title for key, title in {**MEASURES, **DOMAIN_MEASURES}.items() if key in runs}
    return known | {column: f"retention on {data_set(column)}" for column in retention_columns(runs)}


def retention_column(name: str) -> str:
    """Return the column with the retention on a data set."""
    return f"retention[{name}]"


def data_set(column: str) -> str:
    """Return the data set of a `retention_column`."""
    return column[len("retention[") : -1]


def row_names(runs: pd.DataFrame) -> list[str]:
    """Return the name of each run's row: its `label`, and λ if a benchmark has several for this label."""
    labels = pd.Series([label(line) for line in runs.to_dict("records")], index=runs.index, dtype=str)
    several = runs.groupby([*(runs[key] for key in BENCHMARK), labels])["scale"].nunique() > 1
    scaled = set(several[several].index.get_level_values(-1))
    suffix = {scale: ", λ on validation" if scale == "selected" else f", λ = {scale}" for scale in set(runs["scale"])}
    return [name + suffix[s] if name in scaled else name for name, s in zip(labels, runs["scale"], strict=True)]


def label(line: Mapping[str, Any]) -> str:
    """Return the name of a method and strategy as in the paper, with changed options and the tag.

    Args:
        line: the columns `ROW` of one run.
    """
    method, strategy = line["method"], line["strategy"]
    options = line["options"].replace("calibration = ", "")
    name = NAMES.get((method, strategy, options))
    if name is None:
        plain = f"{method} + {strategy.replace('_', ' ')}" if strategy else method
        name = NAMES.get((method, strategy, ""), plain) + (f", {options}" if options else "")
    return name + (f" [{line['tag']}]" if line["tag"] else "")


def without_scale(name: str) -> str:
    """Return the name of a row without its λ."""
    return name.partition(", λ")[0]


def benchmark_title(dataset: str, stream: str, tasks: int, model: str) -> str:
    """Return the title of a benchmark, such as "digits, class-incremental, 5 tasks, tiny"."""
    return f"{dataset}, {stream_title(stream)}, {tasks} tasks, {model}"


def stream_title(stream: str) -> str:
    """Return the title of a kind of stream, such as "class-incremental"."""
    return f"{'folder' if stream == 'folders' else stream}-incremental"


def is_bound(lines: pd.DataFrame) -> pd.Series:
    """Return which rows are bounds, zero-shot or joint, rather than competitors."""
    return lines["method"].isin(BOUNDS)


def is_borrowed(line: Mapping[str, Any]) -> bool:
    """Return whether a row was measured with another T; see `statistics.borrow_bounds`."""
    return line["trained_tasks"] != line["tasks"]

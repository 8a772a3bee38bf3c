"""What a row of the report is: the runs that differ in nothing but the seed; and what it is called."""

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
}
BOUNDS = ("zeroshot", "joint")  # methods that no continual learner competes with
# (method, strategy, options) → name, besides the paper's; others are named "method + strategy".
NAMES = {**PAPER_NAMES, ("seq", "", ""): "sequential, last task", ("ind", "", ""): "independent, last task"}


def names(runs: pd.DataFrame) -> list[str]:
    """Name of each run's row: `label`, and λ where a benchmark has several of the same label."""
    labels = pd.Series([label(line) for line in runs.to_dict("records")], index=runs.index, dtype=str)
    several = runs.groupby([*(runs[key] for key in BENCHMARK), labels])["scale"].nunique() > 1
    scaled = set(several[several].index.get_level_values(-1))
    suffix = {scale: ", λ on validation" if scale == "selected" else f", λ = {scale}" for scale in set(runs["scale"])}
    return [n + suffix[s] if n in scaled else n for n, s in zip(labels, runs["scale"], strict=True)]


def label(line: Mapping[str, Any]) -> str:
    """The method as the paper calls it, what differs from the strategy's defaults, and the tag."""
    method, strategy, options = line["method"], line["strategy"], line["options"]
    name = NAMES.get((method, strategy, options))
    if name is None:
        plain = f"{method} + {strategy.replace('_', ' ')}" if strategy else method
        name = NAMES.get((method, strategy, ""), plain) + (f", {options}" if options else "")
    return name + (f" [{line['tag']}]" if line["tag"] else "")


def without_scale(name: str) -> str:
    """The name of a row without its λ."""
    return name.partition(", λ")[0]


def benchmark_title(dataset: str, stream: str, tasks: int, model: str) -> str:
    """Such as "digits, class-incremental, 5 tasks, tiny"."""
    return f"{dataset}, {stream}-incremental, {tasks} tasks, {model}"


def is_bound(lines: pd.DataFrame) -> pd.Series:
    """Whether a row is no competitor but what competitors lie between."""
    return lines["method"].isin(BOUNDS)


def lent(line: Mapping[str, Any]) -> bool:
    """Whether a row was measured at another T, see `statistics.with_bounds`."""
    return line["trained_tasks"] != line["tasks"]

"""What a reader of a benchmark must know besides its table: circumstances that differ, and steps without results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from mergestream.reporting.retention import retained_on
from mergestream.reporting.rows import data_set, retention_columns
from mergestream.runs.results import Metrics

# Circumstances that can change the last bits of a training, though no config names them.
CIRCUMSTANCES = ("threads", "processes", "cpu", "gpus", "torch")


def notes(runs: pd.DataFrame, metrics: Mapping[int, Metrics]) -> list[str]:
    """Return sentences about the runs of one benchmark.

    Args:
        runs: the runs, as in `Collected`, with names.
        metrics: the content of their metrics.json, by index of `runs`.
    """
    trainings = [metrics[index] for index in runs.index[runs["strategy"] == ""]]
    found = [_differing(name, trainings) for name in CIRCUMSTANCES]
    lacking = runs.loc[[not is_whole(metrics[index]) for index in runs.index], "name"].unique()
    if len(lacking):
        found.append(
            f"Not evaluated on all tasks after every task, so without forgetting, averages over the stream and curves: "
            f"{', '.join(sorted(lacking))}."
        )
    found.append(_retention(runs))
    return [note for note in found if note]


def _retention(runs: pd.DataFrame) -> str:
    """Return a sentence about the data sets that retention was measured on; nothing if it was not."""
    if not (used := [data_set(column) for column in retention_columns(runs) if runs[column].notna().any()]):
        return ""
    shown = retained_on(runs)
    mean = "" if len(shown) < 2 else "mean "
    found = f"Retention: {mean}zero-shot accuracy on {', '.join(shown)} minus that of θ₀, in points."
    if not shown:
        found = "No retention in this table: no data set was measured for all rows that have any."
    rest = [name for name in used if name not in shown]
    return found + (f" That on {', '.join(rest)}, which some rows lack, is in report.csv." if rest else "")


def is_whole(metrics: Metrics) -> bool:
    """Return whether a run was evaluated after every task that it trained."""
    return None not in metrics["overall"]


def _differing(name: str, trainings: list[Metrics]) -> str:
    """Return a sentence about a circumstance in which trainings differ from each other; nothing if they agree."""
    counts = pd.Series([_circumstance(name, metrics) for metrics in trainings], dtype=str).value_counts(sort=False)
    if len(counts) < 2:
        return ""
    values = ", ".join(f"{value} ({count} {'run' if count == 1 else 'runs'})" for value, count in counts.items())
    return f"The trainings differ in {name}, which can change the last bits: {values}."


def _circumstance(name: str, metrics: Metrics) -> str:
    """Return the value of a circumstance; both values, if the run was continued elsewhere."""
    begun = metrics["provenance"].get("begun", {}).get("environment")
    found = [_text(_value(name, environment)) for environment in (begun, metrics["environment"]) if environment]
    return " then ".join(dict.fromkeys(found))


def _value(name: str, environment: Mapping[str, Any]) -> Any:
    return environment.get("packages", {}).get(name) if name == "torch" else environment.get(name)


def _text(value: Any) -> str:
    return (" + ".join(value) or "none") if isinstance(value, list) else str(value)

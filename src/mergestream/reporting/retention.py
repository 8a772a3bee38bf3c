"""The retention of results: what evaluate.py has measured of their encoders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from mergestream.reporting.rows import BENCHMARK, data_set, retention_column, retention_columns
from mergestream.runs.directory import ADAPTER, ENCODER
from mergestream.runs.identity import equal_hash
from mergestream.runs.results import Metrics
from mergestream.runs.retention import Measurement, all_beside, read
from mergestream.runtime import files
from mergestream.runtime.errors import UserError, program


def retention(results: Mapping[Path, Metrics]) -> tuple[dict[Path, dict[str, float]], dict[Path, str], dict[Path, str]]:
    """Read the retention of every result.

    Args:
        results: metrics.json by path.

    Returns:
        The columns of `retention_column` for each path; why a file is left out although nothing is wrong with it; and
        what is wrong with others.
    """
    found: dict[Path, dict[Path, Measurement]] = {}
    stale: dict[Path, str] = {}
    wrong: dict[Path, str] = {}
    for result, metrics in results.items():
        encoder = _encoder(result, metrics)
        for path in all_beside(encoder):
            try:
                measurement = read(path)
                if measurement["encoder_sha256"] == files.stated_checksum(encoder):
                    found.setdefault(result, {})[path] = measurement
                else:
                    stale[path] = f"it is of an earlier encoder; type {program('evaluate')} again"
            except (UserError, OSError) as error:
                wrong[path] = str(error)
    wrong |= _of_other_data(found)
    values = {
        result: {retention_column(m["dataset"]): float(m["retention"]) for path, m in of.items() if path not in wrong}
        for result, of in found.items()
    }
    return values, stale, wrong


def _encoder(result: Path, metrics: Metrics) -> Path:
    """Return the encoder whose accuracy is the final one of a metrics.json."""
    if metrics["kind"] == "merge":
        return result.with_name("merged.safetensors")
    name = ADAPTER if metrics["config"]["model"].get("adapter") else ENCODER
    return result.parent / f"task-{len(metrics['overall']) - 1:02d}" / name


def _of_other_data(found: Mapping[Path, Mapping[Path, Measurement]]) -> dict[Path, str]:
    """Return the files whose data set has the name but not the data or the options of most others, and why."""
    everything = {path: measurement for of in found.values() for path, measurement in of.items()}
    kinds = {path: equal_hash([m["config"]["dataset"], m["data_sha256"]]) for path, m in everything.items()}
    counts: dict[str, Counter[str]] = {}
    for path, measurement in everything.items():
        counts.setdefault(measurement["dataset"], Counter())[kinds[path]] += 1
    usual = {name: counter.most_common(1)[0][0] for name, counter in counts.items()}
    reason = "it was measured on other data or with other options than most results on {0}; for a column of its own, "
    reason += "type +options.OPTION.name=NAME with it"
    names = {path: m["dataset"] for path, m in everything.items()}
    return {path: reason.format(names[path]) for path in everything if kinds[path] != usual[names[path]]}


def with_mean_retention(runs: pd.DataFrame) -> pd.DataFrame:
    """Return `runs` with ``retention``, the mean over the data sets ``retention_on``.

    These are, for each benchmark, the data sets of all runs that have any.
    """
    result = runs.assign(retention=float("nan"), retention_on="")
    for _, lines in runs.groupby(BENCHMARK, sort=False):
        columns = retention_columns(lines)
        measured = lines.loc[lines[columns].notna().any(axis=1), columns]
        if len(measured) and (common := [column for column in columns if measured[column].notna().all()]):
            result.loc[lines.index, "retention"] = lines[common].mean(axis=1, skipna=False)
            result.loc[lines.index, "retention_on"] = ", ".join(map(data_set, common))
    return result


def retained_on(lines: pd.DataFrame) -> list[str]:
    """Return the data sets of the mean retention in a benchmark; none if it has none.

    Args:
        lines: its runs or rows. A row that is borrowed from another benchmark has no retention.
    """
    found = lines.loc[lines["retention"].notna(), "retention_on"]
    return [] if found.empty else str(found.iloc[0]).split(", ")

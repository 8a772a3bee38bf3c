"""Means over seeds, their confidence intervals, and paired tests against a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

from mergestream.reporting.collect import LeftOut
from mergestream.reporting.paper import SCALES, paper_accuracy
from mergestream.reporting.rows import BENCHMARK, MEASURES, ROW, benchmark_title, is_bound

CONFIDENCE = 0.95


def split_by_protocol(runs: pd.DataFrame, contents: Sequence[Mapping[str, Any]]) -> tuple[pd.DataFrame, list[LeftOut]]:
    """The runs whose row's runs differ in nothing but the seed; and those that differ from most of their row, or from
    each other where no protocol has most.

    Args:
        runs: of `collect`.
        contents: of `collect`, with the ``protocol`` of each.
    """
    alike = runs.groupby(ROW)["protocol"].transform("nunique") == 1
    refused: dict[int, LeftOut] = {}
    for _, group in runs[~alike].groupby(ROW, sort=False):
        counts = group["protocol"].value_counts()
        usual = (
            group.index[group["protocol"] == counts.index[0]] if 2 * counts.iloc[0] > len(group) else group.index[:0]
        )
        beside = usual if len(usual) else group.index
        for index in group.index.difference(usual, sort=False):
            difference = protocol_difference([contents[i] for i in (index, *beside)])
            reason = (
                f"runs of a row must differ in nothing but the seed; {difference}. Train it as those, or with tag=NAME"
            )
            refused[index] = LeftOut(Path(group.at[index, "path"]), reason)
    return runs.drop(index=list(refused)), list(refused.values())


def with_bounds(runs: pd.DataFrame) -> pd.DataFrame:
    """`runs`, with those of `BOUNDS` in every class-incremental benchmark of the same data set and model.

    Zero-shot and joint accuracy over all classes do not depend on T: the images, the classes and the training are the
    same, wherever ``source`` is. They are those of the T that has most seeds, which ``trained_tasks`` names; what does
    depend on T is left undefined.
    """
    of_class = runs[runs["stream"] == "class"]
    undefined = {measure: float("nan") for measure in MEASURES if measure != "final_accuracy"}
    found = [runs]
    for _, lines in of_class.groupby(["dataset", "model"], sort=False):
        for _, bound in lines[is_bound(lines)].groupby("name", sort=False):
            fullest = bound[bound["tasks"] == bound["tasks"].value_counts().idxmax()]
            missing = set(lines.loc[lines["source"].isin(fullest["source"]), "tasks"]) - set(bound["tasks"])
            found += [fullest.assign(tasks=tasks, **undefined) for tasks in sorted(missing)]
    return pd.concat(found, ignore_index=True)


def protocol_difference(results: Sequence[Mapping[str, Any]]) -> str:
    """In what results of one row differ that must differ in nothing but the seed; empty if in nothing."""
    first = results[0]
    for result in results[1:]:
        one, two = first["protocol"], result["protocol"]
        for key in sorted(one.keys() | two.keys()):
            if one.get(key) != two.get(key):
                seeds = first["config"]["seed"], result["config"]["seed"]
                return f"seed {seeds[0]} has {key}={one.get(key)}, seed {seeds[1]} has {key}={two.get(key)}"
    return ""


def aggregate(runs: pd.DataFrame) -> pd.DataFrame:
    """One line for each row: n, the seeds, and of every measure mean, sample standard deviation and half the width of
    the 95 % confidence interval (Student's t); the paper's accuracy where it has one. All are fractions.

    A value of one seed has no deviation, and a measure is averaged over the seeds that have it.
    """
    grouped = runs.groupby([*ROW, "name"], sort=False, as_index=False)
    table = grouped.agg(n=("seed", "size"), seeds=("seed", lambda s: " ".join(map(str, sorted(s)))))
    for measure in MEASURES:
        of = grouped[measure].agg(["mean", "std", "count"])
        table[measure] = of["mean"]
        table[f"{measure}_std"] = of["std"]
        table[f"{measure}_ci95"] = half_width(of["std"], of["count"])
    table["seconds"] = grouped["seconds"].mean()["seconds"]
    table["trained_tasks"] = grouped["trained_tasks"].first()["trained_tasks"]
    table["paper"] = [paper_accuracy(line) for line in table.to_dict("records")]
    table["minus_paper"] = table["final_accuracy"] - table["paper"]
    return table


def half_width(deviation: pd.Series, count: pd.Series) -> pd.Series:
    """t_{0.975, n−1} · s / √n; NaN for n < 2."""
    defined = count.where(count > 1)
    return pd.Series(stats.t.ppf((1 + CONFIDENCE) / 2, defined - 1), index=count.index) * deviation / np.sqrt(defined)


def compare(runs: pd.DataFrame, table: pd.DataFrame, baseline: str | None = None) -> pd.DataFrame:
    """`table` with the columns ``baseline``, ``minus_baseline``, ``pairs`` and ``p``: each row of a benchmark against
    the row named `baseline`, or else against MagMax (see `magmax`).

    Final accuracies are paired by seed where both have the same data in the same order (of which the order counts for
    nothing in the bounds), and ``minus_baseline`` is the mean over ``pairs`` differences; ``p`` is of the two-sided
    paired t-test, adjusted by Holm's method for all rows of the benchmark, and NaN for fewer than two pairs and where
    all differences are equal. The baseline itself has neither.
    """
    values = ["final_accuracy", "data", "source"]
    by_name = runs.pivot_table(index=[*BENCHMARK, "seed"], columns="name", values=values, aggfunc="first")
    bounds = set(table.loc[is_bound(table), "name"])
    result = table.assign(baseline="", minus_baseline=float("nan"), pairs=0, p=float("nan"))
    for benchmark, lines in table.groupby(BENCHMARK, sort=False):
        against = baseline or magmax(lines)
        accuracies, data, source = (by_name.loc[benchmark, value] for value in values)
        if against not in list(lines["name"]):
            continue
        others = [name for name in lines["name"] if name != against]
        same = data[others].eq(data[against], axis=0)
        same |= source[others].eq(source[against], axis=0) & [against in bounds or name in bounds for name in others]
        differences = accuracies[others].astype(float).sub(accuracies[against].astype(float), axis=0).where(same)
        index = lines.index[lines["name"] != against]
        result.loc[index, "baseline"] = against
        result.loc[index, "minus_baseline"] = differences.mean().to_numpy()
        result.loc[index, "pairs"] = differences.count().to_numpy()
        p = np.array([_paired(differences[name].dropna()) for name in others])
        if (defined := ~np.isnan(p)).any():
            p[defined] = multipletests(p[defined], method="holm")[1]
        result.loc[index, "p"] = p
    return result


def magmax(lines: pd.DataFrame) -> str | None:
    """Name of the MagMax row of a benchmark: the only one, or the one with the published λ."""
    plain = _magmax(lines)
    if len(plain) > 1:
        plain = plain[plain["scale"] == SCALES["magmax"]]
    return None if plain.empty else str(plain["name"].iloc[0])


def untested(table: pd.DataFrame) -> list[str]:
    """Titles of the benchmarks with rows of MagMax of which `magmax` takes none."""
    groups = table.groupby(BENCHMARK, sort=False)
    return [benchmark_title(*key) for key, lines in groups if len(_magmax(lines)) and magmax(lines) is None]


def _magmax(lines: pd.DataFrame) -> pd.DataFrame:
    return lines[(lines[["method", "strategy", "options", "tag"]] == ["seq", "magmax", "", ""]).all(axis=1)]


def _paired(differences: pd.Series) -> float:
    """Two-sided p of a mean of paired differences of 0."""
    if len(differences) < 2 or np.ptp(differences) < 1e-12:  # rounding apart
        return float("nan")
    return float(stats.ttest_1samp(differences, 0).pvalue)

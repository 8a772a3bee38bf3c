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
from mergestream.reporting.paper import PUBLISHED_SCALES, paper_accuracy
from mergestream.reporting.rows import BENCHMARK, ROW, benchmark_title, is_bound, measures_of

CONFIDENCE = 0.95
PAIRED = ["final_accuracy", "data", "source"]  # columns that `compare` needs of both runs


def split_by_protocol(runs: pd.DataFrame, protocols: Sequence[Mapping[str, Any]]) -> tuple[pd.DataFrame, list[LeftOut]]:
    """Split runs into those that may be averaged and those to leave out.

    The runs of a row must differ only in the seed. If they do not, those with the protocol of the majority stay, or
    none if no protocol has a majority.

    Args:
        runs, protocols: as in `Collected`.
    """
    alike = runs.groupby(ROW)["protocol"].transform("nunique") == 1
    refused: dict[int, LeftOut] = {}
    for _, group in runs[~alike].groupby(ROW, sort=False):
        counts = group["protocol"].value_counts()
        has_majority = 2 * counts.iloc[0] > len(group)
        majority = group.index[has_majority & (group["protocol"] == counts.index[0])]
        others = majority if has_majority else group.index
        for index in group.index.difference(majority, sort=False):
            difference = _difference(index, others, runs["seed"], protocols)
            reason = f"runs of a row must differ only in the seed; {difference}. Train it as those, or with tag=NAME"
            refused[index] = LeftOut(Path(group.at[index, "path"]), reason)
    return runs.drop(index=list(refused)), list(refused.values())


def _difference(index: int, others: Sequence[int], seeds: pd.Series, protocols: Sequence[Mapping[str, Any]]) -> str:
    """Return the first key in which the protocol of a run differs from that of any other."""
    mine = protocols[index]
    for other in others:
        theirs = protocols[other]
        for key in sorted(mine.keys() | theirs.keys()):
            if mine.get(key) != theirs.get(key):
                ours, rest = f"{key}={mine.get(key)}", f"{key}={theirs.get(key)}"
                return f"seed {seeds[index]} has {ours}, seed {seeds[other]} has {rest}"
    return ""


def borrow_bounds(runs: pd.DataFrame) -> pd.DataFrame:
    """Return `runs` and, for each class-incremental benchmark without bounds, those of another T.

    Zero-shot and joint accuracy over all classes do not depend on T if data set, stream and θ₀ (``source``) are the
    same. The T with most seeds lends its runs, which keep it as ``trained_tasks``. Measures that depend on T are NaN.
    """
    class_incremental = runs[runs["stream"] == "class"]
    undefined = {measure: float("nan") for measure in measures_of(runs) if measure != "final_accuracy"}
    found = [runs]
    for _, lines in class_incremental.groupby(["dataset", "model"], sort=False):
        for _, bound in lines[is_bound(lines)].groupby("name", sort=False):
            lender = bound[bound["tasks"] == bound["tasks"].value_counts().idxmax()]
            missing = set(lines.loc[lines["source"].isin(lender["source"]), "tasks"]) - set(bound["tasks"])
            found += [lender.assign(tasks=tasks, **undefined) for tasks in sorted(missing)]
    return pd.concat(found, ignore_index=True)


def aggregate(runs: pd.DataFrame) -> pd.DataFrame:
    """Average the runs of each row over its seeds.

    Returns:
        One line for each row: n, the seeds and their final accuracies in the same order, separated by spaces; for
        every measure the mean, the sample standard deviation and half the width of the 95 % confidence interval
        (Student's t), over the seeds that have it; the paper's accuracy. All are fractions. A single seed has no
        deviation.
    """

    def by_seed(values: pd.Series) -> str:
        return " ".join(map(str, values[runs["seed"][values.index].sort_values().index]))

    grouped = runs.groupby([*ROW, "name"], sort=False, as_index=False)
    table = grouped.agg(n=("seed", "size"), seeds=("seed", by_seed), final_accuracies=("final_accuracy", by_seed))
    for measure in measures_of(runs):
        found = grouped[measure].agg(["mean", "std", "count"])
        table[measure] = found["mean"]
        table[f"{measure}_std"] = found["std"]
        table[f"{measure}_ci95"] = half_width(found["std"], found["count"])
    table["seconds"] = grouped["seconds"].mean()["seconds"]
    table["retention_on"] = grouped["retention_on"].first()["retention_on"]
    table["trained_tasks"] = grouped["trained_tasks"].first()["trained_tasks"]
    table["paper"] = [paper_accuracy(line) for line in table.to_dict("records")]
    table["minus_paper"] = table["final_accuracy"] - table["paper"]
    return table


def half_width(deviation: pd.Series, count: pd.Series) -> pd.Series:
    """Return t_{0.975, n−1} · s / √n; NaN for n < 2."""
    defined = count.where(count > 1)
    return pd.Series(stats.t.ppf((1 + CONFIDENCE) / 2, defined - 1), index=count.index) * deviation / np.sqrt(defined)


def compare(runs: pd.DataFrame, table: pd.DataFrame, baseline: str | None = None) -> pd.DataFrame:
    """Test each row of each benchmark against the baseline.

    Final accuracies are paired by seed if both runs have the same data in the same order; for bounds, the order does
    not matter. p is that of the two-sided paired t-test, adjusted with Holm's method over all rows of the benchmark.

    Args:
        runs: the runs, as in `Collected`, with names.
        table: the rows, from `aggregate`.
        baseline: name of the row to test against; None is MagMax, see `magmax_row`.

    Returns:
        `table` with ``baseline``, ``minus_baseline`` (mean difference), ``pairs`` (number of differences) and ``p``,
        which is NaN for fewer than two pairs and if all differences are equal. The baseline has no test.
    """
    by_name = runs.pivot_table(index=[*BENCHMARK, "seed"], columns="name", values=PAIRED, aggfunc="first")
    bounds = set(table.loc[is_bound(table), "name"])
    result = table.assign(baseline="", minus_baseline=float("nan"), pairs=0, p=float("nan"))
    for benchmark, lines in table.groupby(BENCHMARK, sort=False):
        against = baseline or magmax_row(lines)
        if against is None or against not in set(lines["name"]):
            continue
        others = [name for name in lines["name"] if name != against]
        differences = _paired_differences(by_name.loc[benchmark], against, others, bounds)
        index = lines.index[lines["name"] != against]
        result.loc[index, "baseline"] = against
        result.loc[index, "minus_baseline"] = differences.mean().to_numpy()
        result.loc[index, "pairs"] = differences.count().to_numpy()
        result.loc[index, "p"] = _adjusted([_p_value(differences[name].dropna()) for name in others])
    return result


def _paired_differences(by_seed: pd.DataFrame, against: str, others: list[str], bounds: set[str]) -> pd.DataFrame:
    """Return final accuracy minus that of `against`, by seed and name; NaN where the data differ."""
    accuracies, data, source = (by_seed[column] for column in PAIRED)
    same = data[others].eq(data[against], axis=0)
    same |= source[others].eq(source[against], axis=0) & [against in bounds or name in bounds for name in others]
    return accuracies[others].astype(float).sub(accuracies[against].astype(float), axis=0).where(same)


def _p_value(differences: pd.Series) -> float:
    """Return the two-sided p of the hypothesis that the mean of paired differences is 0."""
    if len(differences) < 2 or np.ptp(differences) < 1e-12:  # equal but for rounding
        return float("nan")
    return float(stats.ttest_1samp(differences, 0).pvalue)


def _adjusted(values: Sequence[float]) -> np.ndarray:
    """Return p-values adjusted with Holm's method; NaN stays NaN and does not count."""
    p = np.array(values)
    if (defined := ~np.isnan(p)).any():
        p[defined] = multipletests(p[defined], method="holm")[1]
    return p


def magmax_row(lines: pd.DataFrame) -> str | None:
    """Return the name of the MagMax row of a benchmark: the only one, or the one with the published λ."""
    rows = _magmax_rows(lines)
    if len(rows) > 1:
        rows = rows[rows["scale"] == PUBLISHED_SCALES["magmax"]]
    return None if rows.empty else str(rows["name"].iloc[0])


def without_baseline(table: pd.DataFrame) -> list[str]:
    """Return the titles of the benchmarks that have several λ of MagMax but not the published one."""
    groups = table.groupby(BENCHMARK, sort=False)
    return [benchmark_title(*key) for key, lines in groups if len(_magmax_rows(lines)) and magmax_row(lines) is None]


def _magmax_rows(lines: pd.DataFrame) -> pd.DataFrame:
    return lines[(lines[["method", "strategy", "options", "tag"]] == ["seq", "magmax", "", ""]).all(axis=1)]

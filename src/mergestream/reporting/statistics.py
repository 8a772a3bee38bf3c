"""Means over seeds, their confidence intervals, and paired tests against a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

from mergestream.reporting.collect import BENCHMARK, MEASURES, ROW, LeftOut
from mergestream.reporting.paper import paper_accuracy

CONFIDENCE = 0.95


def split_by_protocol(runs: pd.DataFrame, contents: Sequence[Mapping[str, Any]]) -> tuple[pd.DataFrame, list[LeftOut]]:
    """The runs of the rows whose runs differ in nothing but the seed; and the other rows, by one of their runs.

    Args:
        runs: of `collect`.
        contents: of `collect`, with the ``protocol`` of each.
    """
    refused, keep = [], []
    for _, group in runs.groupby(ROW, sort=False):
        if group["protocol"].nunique() == 1:
            keep += list(group.index)
            continue
        difference = protocol_difference([contents[index] for index in group.index])
        reason = f"runs are averaged where they differ in nothing but the seed, and of this row {difference}"
        refused.append(LeftOut(Path(group["path"].iloc[0]), reason))
    return runs.loc[sorted(keep)], refused


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
    table["paper"] = [paper_accuracy(line) for line in table.to_dict("records")]
    table["minus_paper"] = table["final_accuracy"] - table["paper"]
    return table


def half_width(deviation: pd.Series, count: pd.Series) -> pd.Series:
    """t_{0.975, n−1} · s / √n; NaN for n < 2."""
    defined = count.where(count > 1)
    return pd.Series(stats.t.ppf((1 + CONFIDENCE) / 2, defined - 1), index=count.index) * deviation / np.sqrt(defined)


def compare(runs: pd.DataFrame, table: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """`table` with the columns ``minus_baseline``, ``pairs`` and ``p``: each row against the one named `baseline`.

    Final accuracies are paired by seed, which gives both the same class order; ``p`` is of the two-sided paired t-test,
    adjusted by Holm's method for all rows of the benchmark. They are NaN without at least two pairs, for the baseline
    itself, and ``p`` also where all differences are equal.
    """
    by_name = runs.pivot_table(index=[*BENCHMARK, "seed"], columns="name", values="final_accuracy", aggfunc="first")
    result = table.assign(minus_baseline=float("nan"), pairs=0, p=float("nan"))
    for benchmark, lines in table.groupby(BENCHMARK, sort=False):
        accuracies = by_name.loc[benchmark]
        if baseline not in accuracies or accuracies[baseline].isna().all():
            continue
        others = [name for name in lines["name"] if name != baseline]
        differences = accuracies[others].sub(accuracies[baseline], axis=0)
        index = lines.index[lines["name"] != baseline]
        result.loc[index, "minus_baseline"] = differences.mean().to_numpy()
        result.loc[index, "pairs"] = differences.count().to_numpy()
        p = np.array([_paired(differences[name].dropna()) for name in others])
        if (defined := ~np.isnan(p)).any():
            p[defined] = multipletests(p[defined], method="holm")[1]
        result.loc[index, "p"] = p
    return result


def _paired(differences: pd.Series) -> float:
    """Two-sided p of a mean of paired differences of 0."""
    if len(differences) < 2 or np.ptp(differences) < 1e-12:  # rounding apart
        return float("nan")
    return float(stats.ttest_1samp(differences, 0).pvalue)

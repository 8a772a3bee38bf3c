"""The aggregated results in the layouts in which they are read: as in the paper, and benchmark by benchmark."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable

import pandas as pd

from mergestream.reporting.rows import BENCHMARK, is_bound

Cell = Callable[[float, float, int], str]  # mean, deviation, rank → text
SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
SPECIAL |= {character: f"\\{character}" for character in "&%$#_{}"}
SPECIAL |= {"λ": r"$\lambda$", "±": r"$\pm$", "−": "--", "τ": r"$\tau$", "θ": r"$\theta$"}


def percent(mean: float, deviation: float = float("nan")) -> str:
    """A fraction and its deviation in per cent; nothing for what is not known."""
    if math.isnan(mean):
        return ""
    return f"{100 * mean:.2f}" + ("" if math.isnan(deviation) else f" ± {100 * deviation:.2f}")


def ranks(table: pd.DataFrame, measure: str = "final_accuracy") -> pd.Series:
    """1 for the best of a benchmark, 2 for the second, among the methods that compete; 0 for the bounds."""
    competing = table[measure].where(~is_bound(table))
    # Equal to the last digit that is shown is equal.
    return competing.round(4).groupby([table[key] for key in BENCHMARK]).rank("dense", ascending=False).fillna(0)


def overview(table: pd.DataFrame, cell: Cell) -> Iterable[tuple[str, pd.DataFrame]]:
    """The paper's layout: for every stream and model a title and a table of final accuracies, methods by benchmarks;
    the average stands where a method has all of them."""
    ranked = table.assign(rank=ranks(table))
    for (stream, model), lines in ranked.groupby(["stream", "model"], sort=False):
        columns = lines[["dataset", "tasks"]].drop_duplicates().sort_values(["dataset", "tasks"])
        texts: dict[tuple[str, int], dict[str, str]] = {key: {} for key in columns.itertuples(index=False, name=None)}
        for line in lines.to_dict("records"):
            text = cell(line["final_accuracy"], line["final_accuracy_std"], int(line["rank"]))
            texts[line["dataset"], line["tasks"]][line["name"]] = text
        cells = pd.DataFrame(texts, index=pd.Index(lines["name"].unique(), name="method")).fillna("")
        cells.columns.names = columns.columns
        if len(columns) > 1:
            by_name = lines.groupby("name")["final_accuracy"]
            means = by_name.mean().where(by_name.count() == len(columns))
            cells["average", ""] = [cell(means[name], float("nan"), 0) for name in cells.index]
        yield f"{stream}-incremental, {model}", cells.loc[in_order(lines)]


def in_order(lines: pd.DataFrame) -> list[str]:
    """Names of rows: the bounds first, then best first, by how far they are above the mean of the rows of a benchmark,
    on average over the benchmarks that they have."""
    above = lines["final_accuracy"] - lines.groupby(BENCHMARK)["final_accuracy"].transform("mean")
    rows = lines.assign(bound=is_bound(lines), above=above).groupby("name", sort=False)
    means = rows.agg({"bound": "first", "above": "mean"})
    return list(means.sort_values(["bound", "above"], ascending=False, kind="stable").index)


def latex(table: pd.DataFrame) -> str:
    """The overview as LaTeX for booktabs: accuracy in per cent, the best in bold, the second underlined."""

    def cell(mean: float, deviation: float, rank: int) -> str:
        text = escaped(percent(mean, deviation))
        return {1: rf"\textbf{{{text}}}", 2: rf"\underline{{{text}}}"}.get(rank, text)

    parts = [r"% \usepackage{booktabs,longtable}", r"\begingroup\footnotesize\setlength{\tabcolsep}{3pt}"]
    for title, cells in overview(table, cell):
        shown = cells.rename(index=escaped)
        shown.columns = pd.MultiIndex.from_tuples([(escaped(d), str(t)) for d, t in cells.columns])
        shown.index.name = None
        parts.append(
            shown.to_latex(
                escape=False,
                multicolumn_format="c",
                column_format="l" + "c" * len(cells.columns),
                caption=escaped(f"Accuracy (%) over all classes after the last task, {title}."),
                label="tab:" + re.sub(r"[^a-z0-9]+", "-", title.lower()),
                longtable=True,
            )
        )
    return "\n".join([*parts, r"\endgroup", ""])


def escaped(text: str) -> str:
    """`text` as LaTeX shows it."""
    return "".join(SPECIAL.get(character, character) for character in text)


def markdown(cells: pd.DataFrame) -> str:
    """A table of texts; the first column is the index."""
    heads = [" / ".join(str(part) for part in c if part != "") if isinstance(c, tuple) else c for c in cells.columns]
    lines = [[cells.index.name or "", *heads], ["---"] + ["--:"] * len(heads)]
    lines += [[str(name), *map(str, row)] for name, row in zip(cells.index, cells.to_numpy(), strict=True)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)

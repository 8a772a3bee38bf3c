"""The results as tables: methods by benchmarks, as in the paper, and the rows of one benchmark."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from mergestream.reporting.retention import retained_on
from mergestream.reporting.rows import BENCHMARK, DOMAIN_MEASURES, is_borrowed, is_bound, stream_title

Cell = Callable[[float, float, int], str]  # mean, deviation, rank → text
NOTABLE = 0.005  # difference from which on the macro accuracy is worth a column
LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {character: f"\\{character}" for character in "&%$#_{}"}
LATEX |= {"λ": r"$\lambda$", "±": r"$\pm$", "−": "--", "τ": r"$\tau$", "θ": r"$\theta$"}


def percent(mean: float, deviation: float = float("nan")) -> str:
    """Return a fraction and its deviation in per cent; NaN is left out."""
    if math.isnan(mean):
        return ""
    return f"{100 * mean:.2f}" + ("" if math.isnan(deviation) else f" ± {100 * deviation:.2f}")


def ranks(table: pd.DataFrame, measure: str = "final_accuracy") -> pd.Series:
    """Return 1 for the best row of a benchmark, 2 for the second and so on; 0 for the bounds."""
    competing = table[measure].where(~is_bound(table))
    # Rows that show the same digits have the same rank.
    return competing.round(4).groupby([table[key] for key in BENCHMARK]).rank("dense", ascending=False).fillna(0)


def overview(table: pd.DataFrame, cell: Cell) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield a title and a table of final accuracies for every stream and model: rows by benchmarks, as in the paper.

    A row that has every benchmark also gets the average.

    Args:
        table: the rows, from `statistics.aggregate`.
        cell: ``cell(mean, deviation, rank)`` returns the text of a cell.
    """
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
        yield f"{stream_title(stream)}, {model}", cells.loc[sorted_names(lines)]


def sorted_names(lines: pd.DataFrame) -> list[str]:
    """Return the names of rows: bounds first, then from best to worst.

    Rows are compared by how far they are above the mean of a benchmark, averaged over the benchmarks that they have.
    """
    above = lines["final_accuracy"] - lines.groupby(BENCHMARK)["final_accuracy"].transform("mean")
    rows = lines.assign(bound=is_bound(lines), above=above).groupby("name", sort=False)
    means = rows.agg({"bound": "first", "above": "mean"})
    return list(means.sort_values(["bound", "above"], ascending=False, kind="stable").index)


def benchmark_table(lines: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Return the rows of one benchmark as texts, best first, without empty columns.

    Args:
        lines: the rows, from `statistics.compare`.
        baseline: the heading of the differences if no row was tested.
    """
    baseline = lines["baseline"].max() or baseline
    ordered = lines.sort_values("final_accuracy", ascending=False, kind="stable")
    records = ordered.to_dict("records")
    shown = {
        "λ": [r["scale"].replace("selected", "on validation") for r in records],
        "seeds": [str(r["n"]) + (f" (of T = {r['trained_tasks']})" if is_borrowed(r) else "") for r in records],
        "final accuracy": [percent(r["final_accuracy"], r["final_accuracy_std"]) for r in records],
        "95 % CI": [f"± {percent(r['final_accuracy_ci95'])}" if r["n"] > 1 else "" for r in records],
        "avg. incremental": [percent(r["average_incremental_accuracy"]) for r in records],
        "forgetting": [percent(r["forgetting"]) for r in records],
        "mean over classes": _if_notable(records),
        "harmonic mean": [percent(r["harmonic_mean"]) for r in records],
        **_retention(lines, records),
        **{title: [percent(r[key]) for r in records] for key, title in DOMAIN_MEASURES.items() if key in ordered},
        f"− {baseline}": [percent(r["minus_baseline"]) + _pairs(r) for r in records],
        "p": [_p_text(r["p"]) for r in records],
        "paper": [percent(r["paper"]) for r in records],
        "− paper": [percent(r["minus_paper"]) for r in records],
    }
    frame = pd.DataFrame(shown, index=pd.Index(ordered["name"], name=""))
    return frame.loc[:, (frame != "").any()]


def _if_notable(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the macro accuracies, or nothing if none differs by `NOTABLE` from the final accuracy."""
    notable = any(abs(line["macro_accuracy"] - line["final_accuracy"]) >= NOTABLE for line in lines)
    return [percent(line["macro_accuracy"], line["macro_accuracy_std"]) if notable else "" for line in lines]


def _retention(lines: pd.DataFrame, records: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the column with the retention: on the only data set, or the mean over those that all rows share."""
    if not (sets := retained_on(lines)):
        return {}
    title = f"retention on {sets[0]}" if len(sets) == 1 else f"retention on {len(sets)} data sets"
    return {title: [percent(r["retention"], r["retention_std"]) for r in records]}


def _pairs(line: Mapping[str, Any]) -> str:
    """Return the number of pairs if it is not the number of seeds."""
    return f" ({line['pairs']} pairs)" if 0 < line["pairs"] < line["n"] else ""


def _p_text(value: float) -> str:
    return "" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def emphasised(mean: float, deviation: float, rank: int) -> str:
    """Return a cell of `overview` for Markdown: the best in bold, the second underlined."""
    text = percent(mean, deviation)
    return {1: f"**{text}**", 2: f"<u>{text}</u>"}.get(rank, text)


def markdown(cells: pd.DataFrame) -> str:
    """Return a table of texts as Markdown; its index is the first column."""
    heads = [" / ".join(str(part) for part in c if part != "") if isinstance(c, tuple) else c for c in cells.columns]
    lines = [[cells.index.name or "", *heads], ["---"] + ["--:"] * len(heads)]
    lines += [[str(name), *map(str, row)] for name, row in zip(cells.index, cells.to_numpy(), strict=True)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def latex(table: pd.DataFrame) -> str:
    """Return the overview as LaTeX for booktabs: accuracy in per cent, the best in bold, the second underlined."""

    def cell(mean: float, deviation: float, rank: int) -> str:
        text = escape_latex(percent(mean, deviation))
        return {1: rf"\textbf{{{text}}}", 2: rf"\underline{{{text}}}"}.get(rank, text)

    parts = [r"% \usepackage{booktabs,longtable}", r"\begingroup\footnotesize\setlength{\tabcolsep}{3pt}"]
    for title, cells in overview(table, cell):
        shown = cells.rename(index=escape_latex)
        shown.columns = pd.MultiIndex.from_tuples([(escape_latex(d), str(t)) for d, t in cells.columns])
        shown.index.name = None
        parts.append(
            shown.to_latex(
                escape=False,
                multicolumn_format="c",
                column_format="l" + "c" * len(cells.columns),
                caption=escape_latex(f"Accuracy (%) over all classes after the last task, {title}."),
                label="tab:" + re.sub(r"[^a-z0-9]+", "-", title.lower()),
                longtable=True,
            )
        )
    return "\n".join([*parts, r"\endgroup", ""])


def escape_latex(text: str) -> str:
    """Return LaTeX that shows `text`."""
    return "".join(LATEX.get(character, character) for character in text)

"""Tables at the end of each command."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def console() -> Console:
    """A console that is 120 columns wide where it writes into a file or a pipe; brackets are brackets."""
    plain = Console(highlight=False, markup=False)
    return plain if plain.is_terminal else Console(highlight=False, markup=False, width=120)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table; the first column is text, the others are numbers."""
    drawn = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for index, column in enumerate(columns):
        # Names fold before numbers do, but never away.
        width = None if index else min(20, max((len(str(row[0])) for row in rows), default=0))
        drawn.add_column(column, justify="right" if index else "left", no_wrap=bool(index), min_width=width)
    for row in rows:
        drawn.add_row(*(cell if isinstance(cell, str) else number(cell) for cell in row))
    console().print(drawn)


def number(value: float | int | None) -> str:
    """Three decimals for a fraction, nothing for what is not defined."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def run_table(title: str, task_names: Sequence[str], metrics: dict[str, Any]) -> None:
    """Accuracy of every task at the end, zero-shot beside it, and the summary under it."""
    agnostic, aware = metrics["accuracy"]["task_agnostic"], metrics["accuracy"]["task_aware"]
    square = len(agnostic) == len(task_names) > 1
    columns = ["task", "test images", "zero-shot", *(["when learnt"] if square else []), "final", "final, task-aware"]
    rows: list[list[Any]] = []
    for j, name in enumerate(task_names):
        learnt = [agnostic[j][j]] if square else []
        label = f"{j + 1}  {name}"
        zero_shot = metrics["zero_shot"]["task_agnostic"][j]
        rows.append([label, metrics["test_samples"][j], zero_shot, *learnt, agnostic[-1][j], aware[-1][j]])
    summary = metrics["summary"]
    blank = [""] if square else []
    rows.append(
        ["all", sum(metrics["test_samples"]), metrics["zero_shot"]["overall"], *blank, summary["final_accuracy"], ""]
    )
    table(title, columns, rows)
    parts = [
        f"{name.replace('_', ' ')} {number(summary[name])}"
        for name in summary
        if number(summary[name]) and name != "last"
    ]
    console().print("  ".join(parts))

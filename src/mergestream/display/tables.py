"""Tables that the commands print."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

NAME_WIDTH = 20  # the least width of the column of names, if they are that long


def console() -> Console:
    """Return a console that prints square brackets as they are, 120 columns wide in a file or a pipe."""
    plain = Console(highlight=False, markup=False)
    return plain if plain.is_terminal else Console(highlight=False, markup=False, width=120)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table whose first column holds names and whose other columns hold numbers."""
    drawn = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for index, column in enumerate(columns):
        # In a narrow terminal, long names wrap and numbers stay whole.
        width = None if index else min(NAME_WIDTH, max((len(str(row[0])) for row in rows), default=0))
        drawn.add_column(column, justify="right" if index else "left", no_wrap=bool(index), min_width=width)
    for row in rows:
        drawn.add_row(*(cell if isinstance(cell, str) else number(cell) for cell in row))
    console().print(drawn)


def number(value: float | int | None) -> str:
    """Return a fraction with three decimals, an integer as it is, and nothing for None and NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def run_table(title: str, task_names: Sequence[str], metrics: Mapping[str, Any]) -> None:
    """Print the accuracy on each task, zero-shot, when the task was learnt and at the end, then the summary.

    Args:
        title: the heading.
        task_names: names of the tasks.
        metrics: the content of metrics.json.
    """
    agnostic, aware = metrics["accuracy"]["task_agnostic"], metrics["accuracy"]["task_aware"]
    summary, samples, zero_shot = metrics["summary"], metrics["test_samples"], metrics["zero_shot"]
    stepwise = len(agnostic) == len(task_names) > 1  # one row of the matrix for each task
    columns = ["task", "test images", "zero-shot", *(["when learnt"] if stepwise else []), "final", "final, task-aware"]
    rows: list[list[Any]] = []
    for j, name in enumerate(task_names):
        learnt = [agnostic[j] and agnostic[j][j]] if stepwise else []  # None where the run was not evaluated
        rows.append(
            [f"{j + 1}  {name}", samples[j], zero_shot["task_agnostic"][j], *learnt, agnostic[-1][j], aware[-1][j]]
        )
    blank = [""] if stepwise else []
    rows.append(["all", sum(samples), zero_shot["overall"], *blank, summary["final_accuracy"], ""])
    table(title, columns, rows)
    shown = {name: number(value) for name, value in summary.items() if name != "last"}
    console().print("  ".join(f"{name.replace('_', ' ')} {text}" for name, text in shown.items() if text))

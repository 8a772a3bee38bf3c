"""Answers as a table, as CSV and as JSON lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from rich.cells import cell_len

from mergestream.classifier.classifier import Answer

Row = tuple[str, Answer]  # the path of a picture, and what it shows


def writer(path: Path, file: TextIO, top: int) -> Callable[[str, Answer], Any]:
    """Return a function that writes an answer.

    Args:
        path: the name of the file, which ends in .csv or .jsonl.
        file: where to write.
        top: how many classes each answer has.
    """
    return _csv(file, top) if path.suffix.lower() == ".csv" else _json_lines(file)


def _csv(file: TextIO, top: int) -> Callable[[str, Answer], Any]:
    ranks = ["", *(f"_{rank}" for rank in range(2, top + 1))]
    out = csv.writer(file, lineterminator="\n")
    out.writerow(["path", *(f"{name}{rank}" for rank in ranks for name in ("class", "probability")), "error"])

    def write(path: str, answer: Answer) -> None:
        cells = [cell for name, p in answer.classes for cell in (name, f"{p:.6g}")] or [""] * (2 * top)
        out.writerow([path, *cells, answer.reason or ""])

    return write


def _json_lines(file: TextIO) -> Callable[[str, Answer], Any]:
    def write(path: str, answer: Answer) -> None:
        found: dict[str, Any] = {"error": answer.reason}
        if answer.reason is None:
            found = {"classes": [{"class": name, "probability": float(f"{p:.6g}")} for name, p in answer.classes]}
        file.write(json.dumps({"path": path, **found}) + "\n")

    return write


def table(rows: Sequence[Row], top: int) -> Iterator[str]:
    """Yield the lines of a table: path, class, probability, and the next classes."""
    header = ["path", "class", "probability"]
    header += [text for rank in range(2, top + 1) for text in (f"class {rank}", "probability")]
    cells = [header, *([_printable(path), *_cells(answer)] for path, answer in rows)]
    # The reason why a picture cannot be read is as long as it is.
    aligned = [line for line in cells if len(line) == len(header)]
    widths = [max(cell_len(line[column]) for line in aligned) for column in range(len(header))]
    widths[0] = max(cell_len(line[0]) for line in cells)
    for line in cells:
        filled = (cell + " " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=False))
        yield "  ".join(filled).rstrip() if len(line) == len(header) else f"{next(filled)}  {line[1]}"


def _cells(answer: Answer) -> list[str]:
    if answer.reason is not None:
        return [f"not readable: {_printable(answer.reason)}"]
    return [cell for name, p in answer.classes for cell in (_printable(name), f"{p:.3f}")]


def _printable(text: str) -> str:
    """Return a text on one line, without what would confuse a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)

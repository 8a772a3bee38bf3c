"""Reads a table of text: CSV, TSV, JSON lines or Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergestream.runtime.errors import UserError, first_line


@dataclass(frozen=True)
class Table:
    """The rows of a table, all values as text.

    Args:
        columns: the names of all columns.
        unit: what `numbers` count, from 1: lines of the file, or rows where it has none.
        numbers: of the rows.
        rows: of each row, the text of every column that has a value there.
    """

    columns: list[str]
    unit: str
    numbers: list[int]
    rows: list[dict[str, str]]

    def place(self, indices: Sequence[int]) -> str:
        """Return words for some rows, such as "lines 3, 4, 9 and 5 more"."""
        numbers = ", ".join(str(self.numbers[index]) for index in indices[:3])
        more = f" and {len(indices) - 3} more" if len(indices) > 3 else ""
        return f"{self.unit}{'s' * (len(indices) > 1)} {numbers}{more}"


def read_table(path: Path) -> Table:
    """Return the content of a table, whose kind is that of its ending.

    Raises:
        UserError: if there is no such file, its ending is another, or it cannot be read.
    """
    read = READERS.get(path.suffix.lower())
    if read is None or not path.is_file():
        raise UserError(f"dataset.path must be a table, a {', '.join(READERS)} file; got dataset.path={path}")
    try:
        return read(path)
    except ImportError as error:
        raise UserError(f"{path} needs pyarrow to be read; type: pip install pyarrow") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} must be text in UTF-8; it is not: {first_line(error)}") from error
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} must be a table; it cannot be read: {first_line(error)}") from error


def _read_csv(path: Path) -> Table:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        header = [name.strip() for name in next(reader, [])]
        if twice := sorted({name for name in header if header.count(name) > 1}):
            raise UserError(f"{path} must have different columns; it has {twice[0]!r} twice")
        numbers, rows = [], []
        last = reader.line_num
        for fields in reader:
            number, last = last + 1, reader.line_num  # a quoted field may go over several lines
            if not fields:
                continue  # an empty line
            if len(fields) != len(header):
                raise UserError(f"{path}, line {number} has {len(fields)} fields; the columns are {len(header)}")
            numbers.append(number)
            rows.append({name: field for name, field in zip(header, fields, strict=True) if field.strip()})
    return Table(header, "line", numbers, rows)


def _read_json(path: Path) -> Table:
    numbers, rows = [], []
    for number, row in _json_lines(path):
        numbers.append(number)
        rows.append({name: str(value) for name, value in row.items() if value is not None and str(value).strip()})
        if strange := [name for name, value in row.items() if isinstance(value, (bool, list, dict)) and name in TEXTS]:
            raise UserError(f"{path}, line {number} must have text or a number as {strange[0]}; it has another value")
    return Table(list(dict.fromkeys(name for row in rows for name in row)), "line", numbers, rows)


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the object of every line; numbers stay as they are written."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line, parse_int=str, parse_float=str)
            except ValueError as error:
                raise UserError(f"{path}, line {number} must be a JSON object; {first_line(error)}") from error
            if not isinstance(row, dict):
                got = line.strip() if len(line) <= 60 else f"{line.strip()[:60]}…"
                raise UserError(f'{path}, line {number} must be a JSON object such as {{"path": …}}; got {got}')
            yield number, row


def _read_parquet(path: Path) -> Table:
    import pandas as pd  # takes half a second

    # Otherwise a missing whole number would make the others floats.
    frame = pd.read_parquet(path, dtype_backend="numpy_nullable")
    columns = {str(name): frame[name] for name in frame.columns}
    texts = {
        name: [None if missing else str(value) for value, missing in zip(column, column.isna(), strict=True)]
        for name, column in columns.items()
        if name in TEXTS
    }
    rows = [
        {name: text for name, values in texts.items() if (text := values[i]) and text.strip()}
        for i in range(len(frame))
    ]
    return Table(list(columns), "row", list(range(1, len(frame) + 1)), rows)


TEXTS = ("path", "label", "task", "split")  # the columns that are read
READERS: dict[str, Callable[[Path], Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".json": _read_json,
    ".parquet": _read_parquet,
}

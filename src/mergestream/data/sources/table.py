"""Any images that a table lists with their labels, and perhaps with their tasks and splits."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from mergestream.data.listing import kind_of_split
from mergestream.data.parts import Files, Part, joined, natural_key
from mergestream.data.source import Source
from mergestream.data.table import Table, read_table
from mergestream.runtime import processes
from mergestream.runtime.errors import UserError


@dataclass(frozen=True)
class Row:
    """A row whose values are right.

    Args:
        index: its place in the table.
        name: its path as the table has it, with forward slashes.
        path: of the file.
        label, task: as text; the task is empty if there are none.
        split: train, test or validation; empty if the table has no splits.
    """

    index: int
    name: str
    path: str
    label: str
    task: str
    split: str


def table(
    path: str,
    templates: Sequence[str] = ("a photo of a {}.",),
    test_fraction: float = 0.2,
    split_seed: int = 0,
    trained: Collection[str] = (),
) -> Source:
    """Return the images that a table lists. Its classes are named after the labels, its domains are the tasks.

    The columns are ``path`` (relative to the folder of the table), ``label``, and optionally ``task`` and ``split``.
    Tasks are in the order of `natural_key`. The order of the rows does not count.

    Args:
        path: the table: CSV, TSV, JSON lines or Parquet.
        templates: prompts, each with ``{}`` for the class name.
        test_fraction, split_seed: see `split_by_name`; for a table without splits.
        trained: names of tasks of which any part may be gone; all of their images are training images.

    Raises:
        UserError: if there is no such table, a column is missing, a row is wrong, a task has no training or test rows,
            a class has no training rows, or two classes share a prompt.
    """
    file = Path(str(path)).expanduser()
    content = read_table(file)
    rows = _rows(file, content, trained)
    tasks: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (natural_key(row.task), row.label, row.path)):
        tasks.setdefault(row.task, []).append(row)
    parts: list[Part] = []
    classes = {row.label for row in rows if row.split == "train" or row.task in trained}
    for name, of_task in tasks.items():
        if name in trained:
            parts.append(Part(name, _files([row for row in of_task if os.path.isfile(row.path)]), Files([], []), {}))
            continue
        if "split" not in content.columns:
            names = [row.name for row in of_task]
            parts.append(Part(name, *_files(of_task).divided(names, test_fraction, split_seed)))
            continue
        train, test = _divided(file, name, of_task)
        if strange := [row.index for row in test if row.label not in classes]:
            raise UserError(
                f"{file}, {content.place(strange)}: a class that is tested must have training rows; "
                f"{content.rows[strange[0]]['label'].strip()!r} has none"
            )
        parts.append(Part(name, _files(train), _files(test), {}))
    if len({row.label for row in rows}) < 2 and "task" not in content.columns:
        raise UserError(f"dataset.path must be a table with two labels or more; {file} has {len(rows)} rows of one")
    return joined(parts, templates)


def _files(rows: Sequence[Row]) -> Files:
    return Files([row.path for row in rows], [row.label for row in rows])


def _divided(file: Path, task: str, rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Return the training and the test rows of a task; validation rows are for testing if there are no test rows."""
    kinds = {kind: [row for row in rows if row.split == kind] for kind in ("train", "test", "validation")}
    of_task = f"task {task!r} of {file}" if task else str(file)
    if kinds["test"] and kinds["validation"]:
        processes.say(
            f"{len(kinds['validation'])} validation rows of {of_task} are not used; stream.validation=0.1 takes "
            "validation images from train"
        )
    train, test = kinds["train"], kinds["test"] or kinds["validation"]
    if not train or not test:
        raise UserError(f"{of_task} must have rows of both splits; it has no {'test' if train else 'train'} rows")
    return train, test


def _rows(file: Path, content: Table, trained: Collection[str]) -> list[Row]:
    """Return the rows of a table, without those that repeat another.

    Args:
        file: the table.
        content: of the table.
        trained: names of tasks whose files may be missing.

    Raises:
        UserError: if a column or a value is missing or wrong, a file is missing, or a path has two labels or splits.
    """
    if missing := [name for name in ("path", "label") if name not in content.columns]:
        columns = ", ".join(content.columns) or "none"
        raise UserError(f"{file} must have the columns path and label; {missing[0]} is missing, it has {columns}")
    wanted = [name for name in ("path", "label", "task", "split") if name in content.columns]
    for key in wanted:
        _refuse(file, content, [i for i, row in enumerate(content.rows) if key not in row], f"no {key}")
    rows: dict[tuple[str, str, str, str], Row] = {}
    for index, values in enumerate(content.rows):
        name = Path(values["path"]).as_posix()
        path = os.path.normpath(file.parent / name)
        split = kind_of_split(values["split"].strip()) or "" if "split" in wanted else ""
        row = Row(index, name, path, values["label"].strip(), values.get("task", "").strip(), split)
        rows.setdefault((path, row.label, row.task, split), row)
    if not rows:
        raise UserError(f"{file} must have rows; it has none")
    found = list(rows.values())
    if "split" in wanted:
        unknown = [row.index for row in found if not row.split]
        given = content.rows[unknown[0]]["split"] if unknown else ""
        _refuse(file, content, unknown, f"the split {given!r}, which is not train, test or validation")
    _refuse(file, content, [row.index for row in found if not row.label.isprintable()], "a label that is not readable")
    _refuse(file, content, [row.index for row in found if not row.task.isprintable()], "a task that is not readable")
    lost = [row for row in found if row.task not in trained and not os.path.isfile(row.path)]
    _refuse(file, content, [row.index for row in lost], f"a path that is no file, {lost[0].path}" if lost else "")
    for key in ("label", "split"):
        _require_one(key, file, content, found)
    if repeated := len(content.rows) - len(found):
        processes.say(f"{file}: left out {repeated} rows that repeat others")
    return found


def _require_one(key: str, file: Path, content: Table, rows: Sequence[Row]) -> None:
    """Check that no path has two labels, or two splits."""
    first: dict[str, Row] = {}
    for row in rows:
        other = first.setdefault(row.path, row)
        one, two = getattr(other, key), getattr(row, key)
        if one != two:
            raise UserError(
                f"{file}, {content.place([other.index, row.index])}: a path must have one {key}; {row.name} has "
                f"{one!r} and {two!r}"
            )


def _refuse(file: Path, content: Table, indices: Sequence[int], what: str) -> None:
    if indices:
        have, them = ("has", "it") if len(indices) == 1 else ("have", "them")
        raise UserError(f"{file}, {content.place(indices)} {have} {what}. Correct or remove {them}")

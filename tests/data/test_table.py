"""Images that a table lists."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest
from archives import codes, error_line, load, save
from helpers import config

from mergestream.compose.run import run_of
from mergestream.data.images import image_paths
from mergestream.data.sources.table import table
from mergestream.data.stream import describe
from mergestream.data.tasks import folder_incremental

# path, label, task, split; tasks 9 and 10 are not in the order of text, nor are the rows in any.
ROWS = [
    ("x/3.png", "7", "10", "train"),
    ("x/0.png", "red_fox", "9", "train"),
    ("x/2.png", "red_fox", "9", "TEST"),
    ("x/1.png", "7", "9", "train"),
    ("x/4.png", "red_fox", "10", "val"),
]
COLUMNS = ("path", "label", "task", "split")


@pytest.fixture
def labels(tmp_path):
    """A table in CSV with its images; the names of the images tell row and label."""
    for name, label, *_ in ROWS:
        save(tmp_path / name, int(label == "7"), int(Path(name).stem))
    return write(tmp_path / "labels.csv", ROWS)


def write(path: Path, rows: list, columns: tuple = COLUMNS) -> Path:
    frame = pd.DataFrame(rows, columns=columns)
    if path.suffix == ".parquet":
        frame.astype({"task": int}).to_parquet(path)
    elif path.suffix == ".jsonl":
        frame.astype({"task": int}).to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


def refusal(path: Path) -> str:
    return error_line("table", path.parent, f"dataset.path={path}").replace(f"{path.parent}/", "")


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_kind_of_table_is_read_alike(labels, kind):
    source = load("table", labels.parent, f"dataset.path={write(labels.with_suffix(kind), ROWS)}")
    assert source.class_names == ["7", "red fox"]
    assert source.domain_names == ["9", "10"]
    assert codes(source.train) == [(1, 1), (0, 0), (1, 3)]
    assert codes(source.test) == [(0, 2), (0, 4)]
    assert source.train.labels.tolist() == [0, 1, 0]
    assert source.train.domains.tolist() == [0, 0, 1]
    assert source.test.domains.tolist() == [0, 1]
    assert source.domain_classes == [[0, 1], [0, 1]]


def test_a_table_of_a_folder_is_that_folder(photos):
    rows = [(str(path.relative_to(photos)), path.parent.name) for path in sorted(photos.rglob("*.jpg"))]
    there = load("folder", photos, results=photos.parent / "results")
    here = table(str(write(photos / "labels.csv", rows[::-1], COLUMNS[:2])))
    assert here.notes == there.notes
    assert here.class_names == there.class_names
    for one, other in ((here.train, there.train), (here.test, there.test)):
        assert list(image_paths(one.images)) == list(image_paths(other.images))
        assert one.labels.tolist() == other.labels.tolist()


def test_rows_of_another_task_leave_the_others_as_they_were(tmp_path):
    rows = [(f"{task}{label}{i}.png", label, task) for task in "ab" for label in ("cat", "hen") for i in range(5)]
    late = [(f"c{label}{i}.png", label, "c") for label in ("ant", "cat") for i in range(5)]
    for name, *_ in rows + late:
        save(tmp_path / name, 0, 0)
    before = table(str(write(tmp_path / "labels.csv", rows, COLUMNS[:3])))
    after = table(str(write(tmp_path / "labels.csv", late + rows, COLUMNS[:3])))
    one, other = (
        describe(source, folder_incremental(source, tasks=None, seed=5, validation=0.3)) for source in (before, after)
    )
    assert after.class_names == ["cat", "hen", "ant"]
    assert other["tasks"][:2] == one["tasks"]
    assert {name: other["notes"][name] for name in "ab"} == one["notes"]
    for old, new in ((before.train, after.train), (before.test, after.test)):
        assert list(image_paths(new.images))[: len(old)] == list(image_paths(old.images))


def test_a_run_on_tasks_of_a_table_has_no_number_of_tasks():
    cfg = config("train", "dataset=table", "stream=folders", "model=tiny")
    assert run_of(cfg).path == Path("runs/table/folders/tiny/seq/seed-5")


def test_a_quoted_line_break_and_empty_lines_count(labels):
    labels.write_text('note,path,label\n"two\nlines",x/0.png,cat\n\n,x/1.png,\n,x/2.png,\n')
    assert refusal(labels) == "labels.csv, lines 5, 6 have no label. Correct or remove them"


def test_repeated_rows_count_once(labels, capsys):
    write(labels, [*ROWS, ("./x/0.png", "red_fox", "9", "train")])
    assert len(load("table", labels.parent).train) == 3
    assert capsys.readouterr().err == f"{labels}: left out 1 rows that repeat others\n"


def test_errors_for_wrong_rows(labels):
    for rows, said in (
        ([("", "cat", "1", "train")], "line 7 has no path. Correct or remove it"),
        ([("x/0.png", " ", "1", "train")] * 5, "lines 7, 8, 9 and 2 more have no label. Correct or remove them"),
        ([("x/0.png", "cat", "", "train")], "line 7 has no task. Correct or remove it"),
        ([("x/0.png", "cat", "1", "")], "line 7 has no split. Correct or remove it"),
        (
            [("x/0.png", "red_fox", "1", "eval")],
            "line 7 has the split 'eval', which is not train, test or validation. Correct or remove it",
        ),
        (
            [("x/9.png", "cat", "1", "train")],
            "line 7 has a path that is no file, x/9.png. Correct or remove it",
        ),
        ([("x/0.png", "a\tb", "1", "train")], "line 7 has a label that is not readable. Correct or remove it"),
        (
            [("./x/0.png", "7", "10", "train")],
            "lines 3, 7: a path must have one label; x/0.png has 'red_fox' and '7'",
        ),
        (
            [("x/0.png", "red_fox", "10", "test")],
            "lines 3, 7: a path must have one split; x/0.png has 'train' and 'test'",
        ),
    ):
        write(labels, [*ROWS, *rows])
        assert refusal(labels) == f"labels.csv, {said}"


@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
def test_a_value_of_blanks_is_missing(labels, kind):
    place = "row 6" if kind == ".parquet" else "line 6"
    path = write(labels.with_suffix(kind), [*ROWS, ("x/0.png", "  ", "10", "train")])
    assert refusal(path) == f"labels{kind}, {place} has no label. Correct or remove it"


def test_errors_for_splits_that_cannot_be_used(labels):
    write(labels, [row for row in ROWS if row[3] != "TEST"])
    assert refusal(labels) == "task '9' of labels.csv must have rows of both splits; it has no test rows"
    save(labels.parent / "x/5.png", 0, 0)
    write(labels, [*ROWS, ("x/5.png", "owl", "9", "test")])
    assert refusal(labels) == ("labels.csv, line 7: a class that is tested must have training rows; 'owl' has none")
    write(labels, [("x/0.png", "red_fox"), ("x/1.png", "red fox")], COLUMNS[:2])
    assert refusal(labels).startswith(
        "two classes must not share their prompts; 'red fox' and 'red_fox' are the same to CLIP"
    )
    write(labels, [("x/0.png", "cat"), ("x/1.png", "cat")], COLUMNS[:2])
    assert refusal(labels) == "dataset.path must be a table with two labels or more; labels.csv has 2 rows of one"
    write(labels, [], COLUMNS)
    assert refusal(labels) == "labels.csv must have rows; it has none"


def test_errors_for_tables_that_cannot_be_read(tmp_path, monkeypatch):
    for name, content, said in (
        (
            "a.csv",
            b"image,class\nx,y\n",
            "a.csv must have the columns path and label; path is missing, it has image, class",
        ),
        ("a.csv", b"", "a.csv must have the columns path and label; path is missing, it has none"),
        ("a.csv", b"path,label,label\n", "a.csv must have different columns; it has 'label' twice"),
        ("a.csv", b"path,label\nx,y,z\n", "a.csv, line 2 has 3 fields; the columns are 2"),
        ("a.csv", b"path,label\nx,\xe9\n", "a.csv must be text in UTF-8; it is not: "),
        ("a.tsv", b'path\tlabel\n"x\ty\n', "a.tsv must be a table; it cannot be read: unexpected end of data"),
        ("a.jsonl", b'{"path": "x", "label": 1}\n{"path"\n', "a.jsonl, line 2 must be a JSON object; "),
        ("a.json", b"[1]\n", 'a.json, line 1 must be a JSON object such as {"path": …}; got [1]'),
        (
            "a.json",
            b"[%s1]" % (b"1," * 50),
            f'a.json, line 1 must be a JSON object such as {{"path": …}}; got [{"1," * 29}1…',
        ),
        (
            "a.json",
            b'{"path": "x", "label": true}',
            "a.json, line 1 must have text or a number as label; it has another",
        ),
        ("a.parquet", b"PAR1", "a.parquet must be a table; it cannot be read: "),
        (
            "a.txt",
            b"",
            "dataset.path must be a table, a .csv, .tsv, .jsonl, .ndjson, .json, .parquet file; got dataset.",
        ),
    ):
        (tmp_path / name).write_bytes(content)
        assert refusal(tmp_path / name).startswith(said)
    assert refusal(tmp_path / "b.csv").startswith("dataset.path must be a table, a .csv")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "fastparquet", None)
    assert refusal(tmp_path / "a.parquet") == "a.parquet needs pyarrow to be read; type: pip install pyarrow"
